"""A loaded model: what it answers, one prompt or many, at once or as it comes."""

from __future__ import annotations

import contextlib
import os
from asyncio import gather
from collections.abc import AsyncGenerator, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, overload

from torch import Tensor
from typing_extensions import Unpack

from neuralchat_lite.checkpoints.kinds import is_packed
from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.engines.engine import Decoder, Engine, can_embed
from neuralchat_lite.engines.native import NativeEngine
from neuralchat_lite.errors import ConfigError, visible
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.files.folder import given_folder
from neuralchat_lite.files.names import WEIGHTS
from neuralchat_lite.files.progress_bar import ProgressOption, shown
from neuralchat_lite.generation.batch import Limits
from neuralchat_lite.generation.conversation import Conversation
from neuralchat_lite.generation.defaults import recommended
from neuralchat_lite.generation.embedding import Pooling, embed
from neuralchat_lite.generation.handle import Handle, pieces_of
from neuralchat_lite.generation.loop import stream as stream_one
from neuralchat_lite.generation.options import (
    GenerationKeywords,
    GenerationOptions,
    options_of_answers,
    refuse_several_answers,
)
from neuralchat_lite.generation.prompt import PromptInput, encode_prompt
from neuralchat_lite.generation.prompt_cache_file import identity_of, load_pages, save_pages
from neuralchat_lite.generation.scheduler import Scheduler
from neuralchat_lite.generation.score import Score, score
from neuralchat_lite.generation.sequence import Piece, Reply
from neuralchat_lite.generation.sequence import Sequence as One
from neuralchat_lite.generation.several import (
    Prompts,
    each,
    generate_all,
    is_several,
    stream_all,
)
from neuralchat_lite.generation.several import generate as generate_one
from neuralchat_lite.generation.stream import Stream
from neuralchat_lite.generation.texts import is_one
from neuralchat_lite.generation.turn_ends import turn_ends
from neuralchat_lite.kernels.leaving import at_work
from neuralchat_lite.packed.manifest import import_losses, read_manifest
from neuralchat_lite.packed.save import save_copy
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.shortages import shortages


@dataclass(frozen=True, repr=False)
class Model:
    """A model that is ready to generate text. Made by `load`.

    Its weights are shared and never written. Each generation has keys and values and a random
    generator of its own. Those that run at the same time, from whichever threads, are computed
    together, step by step, and each gives the text that it gives alone.

    engine: what runs it
    folder: where its files lie; for a quantized model the quantized folder
    config: how it is quantized; None when it is not
    load_s: what loading took, in seconds (quantizing included, when it was needed)
    adapters: what was merged into it, in order: hub names, folder names, or in a quantized model
        the digests of local adapters
    """

    engine: Engine
    tokenizer: Tokenizer
    folder: Path
    config: WeightOnlyQuantConfig | None
    load_s: float
    adapters: tuple[str, ...] = ()
    limits: InitVar[Limits | None] = None
    scheduler: Scheduler = field(init=False)

    def __repr__(self) -> str:
        runs = self.engine.describe()
        weights = "unquantized" if self.config is None else self.config.short_name
        return (
            f"<Model {visible(self.folder.name)}: {weights} weights, "
            f"{runs['compute_dtype']} compute, engine {runs['engine']}>"
        )

    def __post_init__(self, limits: Limits | None) -> None:
        object.__setattr__(self, "scheduler", Scheduler(self.decoder, limits))

    def __copy__(self) -> Model:
        """The weights and the scheduler are shared anyway."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __getstate__(self) -> NoReturn:
        """Asked for by pickle, such as for an argument of another process, and by deepcopy."""
        raise ConfigError(
            f"the model cannot be pickled or deeply copied: pass its folder {self.folder} to the "
            "other process, and call load(folder) there, which maps the same weights; threads can "
            "share one model"
        )

    @property
    def decoder(self) -> Decoder:
        return self.engine.decoder

    @property
    def architecture(self) -> Architecture:
        return self.decoder.architecture

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts too
        self,
        prompt: PromptInput,
        *,
        progress: ProgressOption = None,
        **options: Unpack[GenerationKeywords],
    ) -> Reply: ...

    @overload
    def generate(
        self,
        prompt: Prompts,
        *,
        progress: ProgressOption = None,
        **options: Unpack[GenerationKeywords],
    ) -> list[Reply]: ...

    def generate(
        self,
        prompt: Any,
        *,
        progress: ProgressOption = None,
        **options: Unpack[GenerationKeywords],
    ) -> Any:
        """Answer a prompt, or several together: a list of texts, of conversations (each a list of
        messages) or of lists of token ids.

        options: those of `GenerationOptions`, for all prompts
        progress: of several prompts, how many are answered: by default a bar on a terminal or in a
            notebook; False for none, or a function (see `files.progress.Progress`)

        Returns a Reply, or a list of them in the order of the prompts; with the option `n` > 1 in
        place of each Reply the list of its `n`. Raises PromptError or
        ConfigError before anything is computed; later the first error ends all prompts.
        """
        settings = GenerationOptions.of(options)
        several = is_several(prompt)
        answers = options_of_answers(settings)
        made = each(
            prompt if several else [prompt],
            lambda one: [self.sequence(one, answer) for answer in answers],
        )
        if not several and len(answers) == 1:
            return generate_one(made[0][0], self.scheduler)
        with shown(progress) as step:
            flat = [sequence for of_one in made for sequence in of_one]
            replies = iter(generate_all(self.scheduler, flat, step))
        if len(answers) == 1:
            return list(replies)
        grouped = [[next(replies) for _ in answers] for _ in made]
        return grouped if several else grouped[0]

    @overload
    def stream(  # type: ignore[overload-overlap]
        self, prompt: PromptInput, **options: Unpack[GenerationKeywords]
    ) -> Stream: ...

    @overload
    def stream(
        self, prompt: Prompts, **options: Unpack[GenerationKeywords]
    ) -> Stream[tuple[int, Piece]]: ...

    def stream(self, prompt: Any, **options: Unpack[GenerationKeywords]) -> Any:
        """Answer a prompt token by token; `cancel` of the stream ends it, from any thread.

        prompt: a text, a list of {"role", "content"} messages, or token ids (see
            `generation.prompt.encode_prompt`); or several, as in `generate`: their pieces then come
            as (which prompt, piece), in the order in which they are computed
        options: those of `GenerationOptions`
        Raises PromptError or ConfigError at once, before the first piece is asked for.
        """
        if not is_several(prompt):
            return stream_one(self.only_answer(prompt, options), self.scheduler)
        sequences = self.only_answers(prompt, options)
        return Stream(lambda cancelled: stream_all(self.scheduler, sequences, cancelled))

    def submit(self, prompt: PromptInput, **options: Unpack[GenerationKeywords]) -> Handle:
        """Begin to answer a prompt, and return at once: see `Handle`, for threads and asyncio.

        Raises PromptError or ConfigError at once.
        """
        return Handle(self.scheduler, self.only_answer(prompt, options))

    async def agenerate(self, prompt: Any, **options: Unpack[GenerationKeywords]) -> Any:
        """`generate` in asyncio. When its task is cancelled, the answers end."""
        several = is_several(prompt)
        handles = self.submit_all(prompt if several else [prompt], options)
        try:
            replies = await gather(*handles)
        finally:
            for handle in handles:
                handle.cancel()
        return replies if several else replies[0]

    async def astream(
        self, prompt: Any, **options: Unpack[GenerationKeywords]
    ) -> AsyncGenerator[Any, None]:
        """`stream` in asyncio, as an asynchronous generator. Closing it ends the answers."""
        several = is_several(prompt)
        handles = self.submit_all(prompt if several else [prompt], options)
        try:
            async with contextlib.aclosing(pieces_of(handles)) as pieces:
                async for index, piece in pieces:
                    yield (index, piece) if several else piece
        finally:
            for handle in handles:
                handle.cancel()

    def submit_all(self, prompts: Sequence[Any], options: GenerationKeywords) -> list[Handle]:
        sequences = self.only_answers(prompts, options)
        return [Handle(self.scheduler, sequence) for sequence in sequences]

    def only_answers(self, prompts: Sequence[Any], options: GenerationKeywords) -> list[One]:
        return each(prompts, lambda prompt: self.only_answer(prompt, options))

    def only_answer(self, prompt: PromptInput, options: GenerationKeywords) -> One:
        settings = GenerationOptions.of(options)
        refuse_several_answers(settings)
        return self.sequence(prompt, settings)

    @shortages()
    @at_work()
    def sequence(self, prompt: PromptInput, settings: GenerationOptions) -> One:
        check_draft(settings.draft, self.tokenizer)
        size, limit = self.architecture.vocab_size, self.decoder.context_length
        encoded = encode_prompt(prompt, self.tokenizer, size, limit, settings)
        return One(self.decoder, self.tokenizer, encoded, settings, load_s=self.load_s)

    @overload
    def score(self, texts: str | list[int] | Tensor, top_logprobs: int = 0) -> Score: ...

    @overload
    def score(
        self, texts: list[str] | list[list[int]] | list[Tensor], top_logprobs: int = 0
    ) -> list[Score]: ...

    @shortages()
    @at_work()
    def score(self, texts: Any, top_logprobs: int = 0) -> Score | list[Score]:
        """The log-probability of each token of a text after those before it, or of each text of
        a list; texts of a list are computed together.

        texts: a text, or token ids, or a list of them
        top_logprobs: how many of the likeliest tokens at each place are wanted too, 0 to 20

        Raises PromptError for no texts, and for one that is empty, has another form or is longer
        than the context; ConfigError for another `top_logprobs`.
        """
        GenerationOptions.of({"logprobs": True, "top_logprobs": top_logprobs})
        if is_one(texts):
            return score(self.decoder, self.tokenizer, [texts], top_logprobs)[0]
        return score(self.decoder, self.tokenizer, texts, top_logprobs)

    @shortages()
    @at_work()
    def embed(self, texts: Any, pooling: Pooling = "mean", normalize: bool = True) -> Tensor:
        """A vector for each text: the hidden states of its tokens after the last norm, pooled.

        texts: a text, or token ids, or a list of them, which are computed together
        pooling: "mean" of all tokens, or the "last" one
        normalize: to the Euclidean length 1

        Returns [hidden] fp32 for one text, [len(texts), hidden] for a list. Raises ConfigError for
        an engine that gives no hidden states, and for another pooling; PromptError as `score` does.
        """
        if not can_embed(self.decoder):
            raise ConfigError(
                f"engine {self.engine.describe()['engine']!r} gives logits and no hidden states: "
                "load the model with engine='native' or 'torch' to embed texts"
            )
        if is_one(texts):
            return embed(self.decoder, self.tokenizer, [texts], pooling, normalize)[0]
        return embed(self.decoder, self.tokenizer, texts, pooling, normalize)

    def conversation(
        self, system: str | None = None, **options: Unpack[GenerationKeywords]
    ) -> Conversation:
        """A conversation of several turns, which keeps what was said in its key/value cache."""
        return Conversation(self.decoder, self.tokenizer, system, self.scheduler, **options)

    def report(self) -> dict[str, Any]:
        """What runs, and why: engine, threads, precisions, sizes (bytes), times (seconds).

        embedding, embedding_bytes: the type of its numbers, and its size; 0 where it is the head's
            matrix too
        scheduler: what it has computed so far, and what keys and values take
        import_losses: what putting codes of another format into ours has lost: for each matrix the
            squared error, as a part of the sum of squares; those that are not named are exact
        generation_config_not_used: what the model's generation_config.json recommends about
            choosing tokens. `generate` and `stream` do not use it; pass it as options.
        """
        return {
            "folder": str(self.folder),
            "model_type": self.architecture.model_type,
            "weights": self.config.to_dict() if self.config else "as in the checkpoint",
            "adapters": list(self.adapters),
            "chat_template": "the model's own" if self.tokenizer.chat_template else "neural-chat's",
            "turn_ends": self.turn_ends(),
            "import_losses": import_losses(self.folder),
            "context_length": self.decoder.context_length,
            "generation_config_not_used": recommended(self.folder),
            "load_s": self.load_s,
            "scheduler": self.scheduler.describe(),
            **self.engine.describe(),
        }

    def turn_ends(self) -> list[dict[str, Any]]:
        """The tokens that end an answer to messages, and which files name each."""
        size = self.architecture.vocab_size
        return [
            {
                "id": index,
                "token": self.tokenizer.convert_ids_to_tokens(index) if index < size else None,
                "from": sources,
            }
            for index, sources in sorted(turn_ends(self.tokenizer, self.architecture).items())
        ]

    def close(self) -> None:
        """End the process of an engine that has one of its own; the model answers no more.

        Models that nobody holds are closed too.
        """
        self.engine.close()

    def save_prompt_cache(self, path: str | os.PathLike[str]) -> int:
        """Write the keys and values that are remembered of earlier prompts, as safetensors, for
        `load_prompt_cache` of another run; returns the number of pages, of 64 tokens each.

        Raises ConfigError for a model that is not in a quantized folder, CacheError when the file
        cannot be written.
        """
        batch, file = self.scheduler.batch, given_folder(path, "the file to save to")
        identity = self.prompt_cache_identity()
        return self.scheduler.between_steps(lambda: save_pages(batch.store, file, identity))

    def load_prompt_cache(self, path: str | os.PathLike[str]) -> int:
        """Remember what `save_prompt_cache` has written, as far as `kv_memory` allows; returns the
        number of pages.

        Raises CacheError when the file is damaged, or was written with other weights, another
        compute_dtype or kv_cache_dtype; ConfigError as `save_prompt_cache` does.
        """
        batch, file = self.scheduler.batch, given_folder(path, "the file to load")
        identity = self.prompt_cache_identity()

        def read() -> int:
            room = batch.kv_bytes - batch.pool.nbytes
            return load_pages(batch.store, batch.pool, file, identity, room)

        return self.scheduler.between_steps(read)

    def prompt_cache_identity(self) -> dict[str, Any]:
        if not (isinstance(self.engine, NativeEngine) and is_packed(self.folder)):
            raise ConfigError(
                "a prompt cache belongs to weights whose digest is known, those of a quantized "
                "folder: load the model with a WeightOnlyQuantConfig and engine='native'"
            )
        weights = read_manifest(self.folder)["files"][WEIGHTS]["sha256"]
        return identity_of(self.engine.decoder, weights)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the quantized model to a folder that stands alone; `load` maps it.

        An earlier copy there, also the model's own folder, is replaced; other files stay. A
        tokenizer may be saved there too, before or after. Raises ConfigError when the model is
        not quantized, CacheError when the folder holds another model or cannot be written.
        """
        if self.config is None:
            raise ConfigError(
                f"this model has the weights of its checkpoint: copy {self.folder} (if adapters "
                "are merged into it, write it with neuralchat_lite.merge), or load it with a "
                "WeightOnlyQuantConfig first"
            )
        if not is_packed(self.folder):
            raise ConfigError(
                f"engine {self.report()['engine']!r} has quantized this model in its own memory: "
                "load it with engine='native' to save it"
            )
        return save_copy(self.folder, self.config, given_folder(folder, "the folder to save to"))


def check_draft(draft: Any, tokenizer: Tokenizer) -> None:
    """Raise ConfigError for a model as a draft whose tokens are others."""
    if isinstance(draft, Model) and draft.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"the draft {visible(draft.folder.name)} has another vocabulary than this model: give "
            "a model with the same tokens, or draft='ngram'"
        )
