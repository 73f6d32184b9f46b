"""The evaluation harness' view of a model: log-likelihoods and greedy texts from a decoder.

Few-shot prompts are long and mostly shared: the choices of one question differ in their last
words only. Requests are therefore answered in the order of their token ids, and the key/value
cache goes back to what the next one has in common with it, so that shots are not computed again.
Several questions, and the choices of each, go through the layers together. Texts are written
together too, by the model's scheduler.

Works on every engine's decoder (`neuralchat_lite.engines.engine.Decoder`).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs
from torch import Tensor
from tqdm import tqdm

import neuralchat_lite as ncl
from neuralchat_lite.engines.engine import Decoder
from neuralchat_lite.errors import ConfigError, PromptError
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.prefix_cache import PrefixCache, common_prefix
from neuralchat_lite.generation.prompt import Prompt
from neuralchat_lite.generation.sequence import Sequence
from neuralchat_lite.generation.several import generate_all

TOGETHER = 8  # continuations of one context: each has a copy of the key/value cache
ROWS = 512  # tokens that are fed together
IN_COMMON = 16  # tokens that are rather computed twice than fed in two batches
NEW_TOKENS = 256  # of generate_until, where a task names no number: the harness' own default


@dataclass(frozen=True)
class Asking:
    """ids to feed, and of how many of the last the logits are wanted"""

    ids: tuple[int, ...]
    tail: int

    @property
    def context(self) -> tuple[int, ...]:
        """What other continuations of the same context are fed too."""
        return self.ids[: len(self.ids) - self.tail + 1]


def together(askings: Iterable[Asking]) -> Iterator[list[Asking]]:
    """Sorted askings in groups of one context."""
    group: list[Asking] = []
    for asking in askings:
        if group and (len(group) == TOGETHER or asking.context != group[0].context):
            yield group
            group = []
        group.append(asking)
    if group:
        yield group


def with_company(
    groups: Iterable[list[Asking]], prefix: PrefixCache
) -> Iterator[list[list[Asking]]]:
    """Groups that are fed together: up to ROWS tokens, and none that has much more in common with
    the one before it than with what is known already, since that would be computed twice."""
    several: list[list[Asking]] = []
    rows = 0
    for group in groups:
        ids = group[0].ids
        if several:
            beside = common_prefix(several[-1][0].ids, ids)
            if rows >= ROWS or beside > common_prefix(prefix.ids, ids) + IN_COMMON:
                yield several
                several, rows = [], 0
        several.append(group)
        known = common_prefix(prefix.ids, ids)
        rows += len(group[0].context) - known + sum(one.tail for one in group)
    if several:
        yield several


class Shared:
    """Feeds requests over one key/value cache, and counts what that costs."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.prefix = PrefixCache(decoder)
        self.computed = 0  # tokens that went through the layers

    def feed(self, groups: list[list[Asking]]) -> list[list[Tensor]]:
        """The logits, [tail, vocab], that each asking of each group asks for.

        First the contexts of all groups go through the layers together, then all continuations.
        """
        contexts = [group[0].ids[: len(group[0].context) - 1] for group in groups]
        caches = [self.prefix.branch(context) for context in contexts]
        try:
            # Its last token gives the first logits, so that one belongs to the continuation.
            missing = [ids[cache.length :] for ids, cache in zip(contexts, caches, strict=True)]
            shared = [i for i, group in enumerate(groups) if len(group) > 1 and missing[i]]
            self.computed += sum(len(missing[i]) for i in shared)
            if shared:
                self.decoder.forward_batch(
                    [missing[i] for i in shared], [caches[i] for i in shared], keep=0
                )
            asked = [asking for group in groups for asking in group]
            used = [
                cache if place == 0 else cache.copy()
                for cache, group in zip(caches, groups, strict=True)
                for place in range(len(group))
            ]
            fed = [one.ids[cache.length :] for one, cache in zip(asked, used, strict=True)]
            self.computed += sum(map(len, fed))
            logits = self.decoder.forward_batch(fed, used, keep=[one.tail for one in asked])
        finally:
            self.prefix.take(caches[-1], groups[-1][0].ids)
        rows = iter(logits)
        return [[next(rows) for _ in group] for group in groups]


@register_model("neuralchat-lite")
class NeuralchatLM(TemplateLM):
    """The harness' model "neuralchat-lite", once this module is imported.

        lm_eval.simple_evaluate("neuralchat-lite", "pretrained=FOLDER,weight_dtype=int4", ...)

    pretrained: a folder or hub name, or a model that `neuralchat_lite.load` returned
    max_length: tokens of context, the model's own unless given; longer prompts lose their
        beginning, as with the harness' other backends
    batch_size, max_batch_size, device: the harness gives them always; only the CPU is served
    options: of `neuralchat_lite.load` (dtype, compute_dtype ...), or of a WeightOnlyQuantConfig
    """

    def __init__(
        self,
        pretrained: str | ncl.Model,
        max_length: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if device not in (None, "cpu"):
            raise ConfigError(f"device must be 'cpu', got {device!r}: leave it out")
        self.model = load(pretrained, options) if isinstance(pretrained, str) else pretrained
        self.decoder = self.model.decoder
        self.tokenizer: Any = self.model.tokenizer
        self.max_length = max_length or self.decoder.context_length
        if self.max_length > self.decoder.context_length:
            raise ConfigError(
                f"max_length must not exceed the context of {self.decoder.context_length}, got "
                f"{max_length}: load the model with a larger context_length"
            )
        self.shared = Shared(self.decoder)
        self.cut = 0  # requests that lost their beginning

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        if add_special_tokens is None:
            starts_so = has_bos_prefix(string, self.tokenizer.decode([self.prefix_token_id]))
            add_special_tokens = not starts_so
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        # Bars are for people: into a file they are thousands of lines.
        quiet = disable_tqdm or not sys.stderr.isatty()
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=quiet)
        return answers

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = True,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding writes it) of each continuation."""
        asked: dict[Asking, list[int]] = {}  # continuations of one token share what is fed
        for index, (_, context, continuation) in enumerate(requests):
            count = len(continuation)
            if not 0 < count <= self.max_length:
                raise PromptError(
                    f"a continuation must have 1 to {self.max_length} tokens, got {count}: "
                    "use a model with a longer context"
                )
            # The last token is only predicted, never fed, so one more than the context fits.
            whole = context + continuation
            fed = whole[-(self.max_length + 1) :][:-1]
            self.cut += len(whole) > self.max_length + 1
            asked.setdefault(Asking(tuple(fed), count), []).append(index)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        bar = tqdm(total=len(requests), desc="log-likelihoods", disable=disable_tqdm)
        groups = together(sorted(asked, key=lambda asking: asking.ids))
        for several in with_company(groups, self.shared.prefix):
            found = chain.from_iterable(self.shared.feed(several))
            for asking, logits in zip(chain.from_iterable(several), found, strict=True):
                # In fp64: a long continuation is a sum of hundreds, beside which fp32 is coarse.
                log_probs = logits.double().log_softmax(-1)
                for index in asked[asking]:
                    request, _, continuation = requests[index]
                    answers[index] = log_likelihood(log_probs, continuation)
                    if request is not None:
                        self.cache_hook.add_partial("loglikelihood", request, answers[index])
                bar.update(len(asked[asking]))
        bar.close()
        return answers

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, each token predicted once, windows disjoint."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [(None, *utils.make_disjoint_window(window)) for window in windows]
            total = sum(value for value, _ in self._loglikelihood_tokens(pairs))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            totals.append(total)
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Greedy texts, up to and without the first stop string, all computed together."""
        sequences = [self.to_write(*request.args) for request in requests]
        replies = generate_all(self.model.scheduler, sequences, None)
        for request, reply in zip(requests, replies, strict=True):
            costs = reply.timings
            self.shared.computed += costs.prompt_tokens - costs.cached_tokens
            self.cache_hook.add_partial("generate_until", request.args, reply.text)
        return [reply.text for reply in replies]

    def to_write(self, context: str, given: dict[str, Any]) -> Sequence:
        kwargs = normalize_gen_kwargs(given, NEW_TOKENS)
        new_tokens = kwargs["max_gen_toks"]
        if kwargs.get("do_sample"):
            raise ConfigError("do_sample must be False: these tasks are judged on greedy texts")
        if new_tokens >= self.max_length:
            raise PromptError(
                f"{new_tokens} new tokens leave no room for a prompt in a context of "
                f"{self.max_length}: use a model with a longer context"
            )
        prompt = self.tok_encode(context)
        ids = prompt[-(self.max_length - new_tokens) :]
        self.cut += len(ids) < len(prompt)
        options = GenerationOptions(
            max_new_tokens=new_tokens, stop=[stop for stop in kwargs["until"] if stop]
        )
        return Sequence(self.decoder, self.tokenizer, Prompt(tuple(ids)), options)


def log_likelihood(log_probs: Tensor, continuation: list[int]) -> tuple[float, bool]:
    """Of [n, vocab] log-probabilities and the n ids that come: (sum, whether all are likeliest)."""
    wanted = torch.tensor(continuation)
    chosen = log_probs.gather(1, wanted[:, None]).sum()
    return float(chosen), bool((log_probs.argmax(-1) == wanted).all())


def load(name: str, options: dict[str, Any]) -> ncl.Model:
    """`neuralchat_lite.load` with options of both kinds in one dictionary."""
    names = set(inspect.signature(ncl.load).parameters)
    direct = {key: value for key, value in options.items() if key in names}
    quantization = {key: value for key, value in options.items() if key not in names}
    return ncl.load(name, quantization or None, **direct)
