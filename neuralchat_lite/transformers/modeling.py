"""A PreTrainedModel over the native decoder, so that `generate` is transformers' own.

Sampling, beams, stopping criteria, streamers, assisted generation: none of it is written again
here. The decoder sees rows of a batch together, so that a step reads the weights once.
"""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from neuralchat_lite.api import Model
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.models.decoder import Decoder
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.transformers.cache import NativeCache

# What `generate` calls the cache: the name changed within version 5.
CACHE = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)
# What `generate` hands on to the model though it is meant for others, or is known from the cache.
PASSED_ON = {
    "tokenizer",
    "assistant_tokenizer",
    "assistant_model",
    "cache_position",
    "token_type_ids",  # some tokenizers give them, and no Llama has a use for them
}
DTYPES = {"bf16": torch.bfloat16, "int8": torch.bfloat16, "fp32": torch.float32}


class NativeForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """What `AutoModelForCausalLM.from_pretrained` returns.

    native: the `neuralchat_lite.Model`, which speaks without transformers and tells by
        `native.report()` what runs
    quantization_config: how it is quantized; None when it is not

    Weights are shared, mapped and never written: `parameters()` has none, and training,
    `resize_token_embeddings` and moving to another device are refused or do not exist.
    """

    config_class = PretrainedConfig
    main_input_name = "input_ids"
    base_model_prefix = ""

    def __init__(self, native: Model) -> None:
        config = AutoConfig.from_pretrained(native.folder, local_files_only=True)
        super().__init__(config)
        self.native = native
        assert isinstance(native.decoder, Decoder)
        self.decoder = native.decoder
        self.quantization_config: WeightOnlyQuantConfig | None = native.config
        if (native.folder / "generation_config.json").exists():
            self.generation_config = GenerationConfig.from_pretrained(
                native.folder, local_files_only=True
            )
        self.train(False)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("use AutoModelForCausalLM.from_pretrained, which finds kernels and cache")

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: NativeCache | None = None,
        cache: NativeCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **of_generate: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Feed a batch of tokens behind what the cache holds.

        input_ids: [batch, new] token ids
        attention_mask: [batch, past + new], 0 where a row has padding, on either side. Padding is
            not computed; positions count the tokens of a row, as they do in `generate`.
        position_ids: [batch, new], which may say nothing else (counting padding too is the same)
        past_key_values, cache: what an earlier call returned (both names mean the same)
        labels: [batch, new], -100 where there is none; the loss is the mean cross-entropy of each
            token given those before it in this call
        logits_to_keep: logits of so many last columns (0: of all), or of these columns

        Returns fp32 logits [batch, columns, vocab], zero where a row has padding. Raises ValueError
        for shapes that do not fit, PromptError for ids outside the vocabulary and a full context.
        """
        unknown = sorted(of_generate.keys() - PASSED_ON)
        if unknown:
            raise TypeError(f"forward() got unexpected arguments: {', '.join(unknown)}")
        if input_ids is None or input_ids.ndim != 2 or not input_ids.numel():
            shape = None if input_ids is None else tuple(input_ids.shape)
            raise ValueError(
                f"input_ids must be [batch, tokens], with one token at least, got {shape}: give "
                "token ids"
            )
        unmet = {
            "inputs_embeds": inputs_embeds is not None,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }
        if any(unmet.values()):
            asked = ", ".join(name for name, given in unmet.items() if given)
            raise ValueError(
                f"{asked} cannot be had from the native kernels: leave it out, or use the model "
                "class of transformers"
            )
        if past_key_values is not None and cache is not None:
            raise ValueError("past_key_values and cache mean the same: give one")
        past = past_key_values if cache is None else cache
        if use_cache is None:
            use_cache = bool(getattr(self.config, "use_cache", True))
        kept = self.checked_cache(past)
        real = real_columns(input_ids, attention_mask, kept)
        check_positions(position_ids, real, kept)
        wanted = logits_to_keep if isinstance(logits_to_keep, int) and labels is None else 0
        logits = self.feed(input_ids, real, kept, wanted)
        loss = None
        if labels is not None:
            before = torch.nn.functional.pad(real[:, :-1], (1, 0))
            labels = labels.masked_fill(~before, -100)  # padding predicts nothing
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1])
        if isinstance(logits_to_keep, Tensor):
            logits = logits[:, logits_to_keep]
        elif labels is not None:
            logits = logits[:, -logits_to_keep:]
        kept_for: dict[str, Any] = {CACHE: kept if use_cache else None}
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **kept_for)
        return output if return_dict is not False else output.to_tuple()

    def checked_cache(self, past: Any) -> NativeCache:
        if past is None:
            return NativeCache(self.decoder)
        if not isinstance(past, NativeCache) or past.decoder is not self.decoder:
            raise ValueError(
                f"the cache is {past!r}, expected one that this model has made: leave it out, or "
                "start with neuralchat_lite.transformers.NativeCache(model.decoder)"
            )
        return past

    def feed(self, input_ids: Tensor, real: Tensor, cache: NativeCache, columns: int) -> Tensor:
        """Feed the real tokens; the logits of the last `columns` columns (0: of all)."""
        batch, new = input_ids.shape
        cache.grow(real)
        before = [row.length for row in cache.rows]
        try:
            found = self.feed_rows(input_ids, real, cache, columns)
        except BaseException:
            cache.go_back(before, cache.real.shape[1] - new)
            raise
        shown = min(columns or new, new)
        shape = (batch, shown, self.decoder.architecture.vocab_size)
        logits = torch.zeros(shape, dtype=torch.float32)
        for row in range(batch):
            places = real[row, new - shown :]
            count = int(places.sum())
            if count:
                logits[row, places] = found[row][len(found[row]) - count :]
        return logits

    def feed_rows(
        self, input_ids: Tensor, real: Tensor, cache: NativeCache, columns: int
    ) -> list[Tensor]:
        """For each row the logits of its last tokens, at least of those in the last columns."""
        tokens = [ids[mask] for ids, mask in zip(input_ids, real, strict=True)]
        # Beams and returned sequences begin alike: what several rows say first is fed once.
        first = [self.twin_of(row, tokens, cache.rows) for row in range(len(tokens))]
        leaders = [row for row in range(len(tokens)) if first[row] == row and len(tokens[row])]
        logits = dict.fromkeys(range(len(tokens)), torch.zeros((0, 0)))
        if leaders:
            found = self.decoder.forward_batch(
                [tokens[row] for row in leaders],
                [cache.rows[row] for row in leaders],
                keep=columns or None,
            )
            logits |= dict(zip(leaders, found, strict=True))
        for row, leader in enumerate(first):
            if leader != row:
                cache.rows[row] = cache.rows[leader].copy()
                logits[row] = logits[leader]
        return list(logits.values())

    @staticmethod
    def twin_of(row: int, tokens: Sequence[Tensor], rows: Sequence[Any]) -> int:
        """The first row that begins with the same tokens, or this row itself."""
        if rows[row].length:
            return row
        same = (
            other
            for other in range(row)
            if not rows[other].length and torch.equal(tokens[other], tokens[row])
        )
        return next(same, row)

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Called by `generate`: our own cache instead of a DynamicCache."""
        kind = generation_config.cache_implementation
        if kind is not None and not kind.startswith("dynamic"):
            raise ValueError(
                f"cache_implementation={kind!r} is a cache of transformers, and the native decoder "
                "fills its own: leave it out"
            )
        mask = model_kwargs.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise ValueError(
                "attention_mask ends with padding, and there is nothing to go on from behind it: "
                "pad on the left, with tokenizer.padding_side = 'left'"
            )
        limit = self.decoder.context_length
        if generation_config.max_length > limit:
            warnings.warn(
                f"a text of {generation_config.max_length} tokens is asked for, and the context "
                f"has {limit}: it will end there",
                stacklevel=3,
            )
            generation_config.max_length = limit
        if model_kwargs.get(CACHE) is None and generation_config.use_cache is not False:
            model_kwargs[CACHE] = NativeCache(self.decoder)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        **without_effect: Any,
    ) -> None:
        """Write the quantized model to a folder that stands alone, for `from_pretrained`.

        How the folder is cut and written (max_shard_size, safe_serialization ...) is the format's
        own affair. Raises ConfigError for a model that is not quantized and for push_to_hub.
        """
        if push_to_hub:
            raise ConfigError(
                "push_to_hub=True is not offered: save to a folder, and upload it with "
                "huggingface_hub"
            )
        self.native.save_pretrained(save_directory)
        self.generation_config.save_pretrained(save_directory)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of all weights, as they are mapped; caches of conversations come on top."""
        return self.decoder.weight_bytes + self.decoder.embedding.nbytes

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Weights of the checkpoint, before quantizing; a tied head counts once."""
        if only_trainable:
            return 0
        specs = list(self.decoder.architecture.tensors())
        if self.decoder.architecture.tied:
            specs = [spec for spec in specs if spec.role != "lm_head"]
        if exclude_embeddings:
            specs = [spec for spec in specs if spec.role != "embedding"]
        return sum(math.prod(spec.shape) for spec in specs)

    def to(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> NativeForCausalLM:
        """Stays where and what it is. Raises ConfigError for another device or dtype."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type != "cpu":
            raise ConfigError(f"device {str(device)!r} is no CPU, and this library runs on CPUs")
        if dtype is not None and dtype != self.dtype:
            raise ConfigError(
                f"the weights cannot become {dtype}: load the model with another compute_dtype, or "
                "another dtype when it is not quantized"
            )
        return self

    def type(self, dst_type: Any) -> NativeForCausalLM:
        return self.to(dst_type)

    def double(self) -> NativeForCausalLM:
        return self.to(torch.float64)

    def half(self, *args: Any) -> NativeForCausalLM:
        return self.to(torch.float16)

    def float(self, *args: Any) -> NativeForCausalLM:
        return self.to(torch.float32)

    def bfloat16(self, *args: Any) -> NativeForCausalLM:
        return self.to(torch.bfloat16)

    def cuda(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> NativeForCausalLM:
        return self.to("cuda")

    def get_input_embeddings(self) -> Any:
        raise ConfigError(
            "the native weights are mapped and never changed, so that embeddings cannot be had or "
            "resized: change the checkpoint with the model class of transformers first"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeForCausalLM:
        """Another model with a generation_config of its own; the weights are shared."""
        twin = type(self)(self.native)
        twin.generation_config = deepcopy(self.generation_config, memo)
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ConfigError(
            f"the model cannot be pickled: give its folder {self.folder} to the other process, "
            "which maps the same weights"
        )

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.decoder.compute_dtype]

    @property
    def folder(self) -> Path:
        """Where the weights lie; for a quantized model the folder in the cache."""
        return self.native.folder


def named_class(model_type: str) -> type[NativeForCausalLM]:
    """The class under the name that transformers gives this architecture, such as
    MistralForCausalLM: its pipelines look at names."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    return type(name, (NativeForCausalLM,), {"__doc__": NativeForCausalLM.__doc__})


def real_columns(input_ids: Tensor, mask: Tensor | None, cache: NativeCache) -> Tensor:
    """[batch, new] bool: where the new columns hold tokens and not padding."""
    batch, new = input_ids.shape
    cache.check_batch(batch)
    past = cache.get_seq_length()
    if mask is None:
        return torch.ones((batch, new), dtype=torch.bool)
    if mask.shape != (batch, past + new):
        raise ValueError(
            f"attention_mask must be [batch, past + new] = {[batch, past + new]}, got "
            f"{list(mask.shape)}: 1 for tokens and 0 for padding"
        )
    real = mask.bool()
    if past and not torch.equal(real[:, :past], cache.real):
        raise ValueError(
            "attention_mask hides other columns than those that were padding when they were fed: "
            "start with a new cache"
        )
    real = real[:, past:]
    if not past and not bool(real.any(dim=1).all()):
        empty = int((~real.any(dim=1)).nonzero()[0])
        raise ValueError(f"row {empty} of attention_mask has no token: give at least one a row")
    return real


def check_positions(position_ids: Tensor | None, real: Tensor, cache: NativeCache) -> None:
    """Raise ValueError unless positions count the tokens of each row, or columns of which all
    those between two tokens are tokens."""
    before = torch.cat((cache.real, real), dim=1) if cache.rows else real
    if position_ids is None:
        # transformers counts columns then, padding between two tokens too.
        starts = before[:, 1:] & ~before[:, :-1]
        runs = before[:, 0].long() + starts.sum(dim=1)
        if bool((runs > 1).any()):
            raise ValueError(
                f"row {int(runs.argmax())} of attention_mask has padding between two tokens: give "
                "position_ids that count its tokens, attention_mask.cumsum(1) - 1"
            )
        return
    columns = torch.arange(before.shape[1])[-real.shape[1] :].expand_as(real)
    tokens = (before.cumsum(dim=1) - 1)[:, -real.shape[1] :]
    given = position_ids.expand_as(real)
    for row in range(len(real)):
        here = real[row]
        places = given[row, here].long()
        if not any(torch.equal(places, count[row, here]) for count in (tokens, columns)):
            raise ValueError(
                f"position_ids of row {row} are {places.tolist()[:8]}..., expected "
                f"{tokens[row, here].tolist()[:8]}...: the native decoder counts tokens, leave "
                "them out"
            )
