"""A PreTrainedModel over the native decoder, so that `generate` is transformers' own.

Sampling, beams, stopping criteria, streamers and assisted generation come from transformers. The
decoder computes the rows of a batch together, so that a step reads the weights once.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import warnings
from contextvars import ContextVar
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutputWithPast

from neuralchat_lite.checkpoints.their_config import their_config
from neuralchat_lite.errors import ConfigError, PromptError
from neuralchat_lite.kernels.interruption import Interrupted, interrupted_by
from neuralchat_lite.kernels.leaving import at_work
from neuralchat_lite.model import Model
from neuralchat_lite.models.decoder import Decoder
from neuralchat_lite.packed.foreign import KEY as MARK
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.transformers.arguments import generation_hint
from neuralchat_lite.transformers.cache import NativeCache
from neuralchat_lite.transformers.candidates import fitting
from neuralchat_lite.transformers.criteria import PromptCriteria
from neuralchat_lite.transformers.feeding import feed
from neuralchat_lite.transformers.fixed import REFUSED, FixedWeights
from neuralchat_lite.transformers.padding import check_positions, real_columns
from neuralchat_lite.transformers.together import greedy, is_plain
from neuralchat_lite.values import shown

# The name of the cache argument: it changed within version 5 of transformers.
CACHE = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)
# Of the `generate` that runs in this thread; `forward` asks them while it feeds the prompt.
CRITERIA: ContextVar[PromptCriteria | None] = ContextVar("criteria", default=None)
NO_EMBEDS = (
    "inputs_embeds is not available from the native kernels, which look tokens up themselves: give "
    "input_ids, or use the model class of transformers"
)
GENERATE = inspect.signature(GenerationMixin.generate)
# What `generate` takes beside the options of GenerationConfig, of its own and for `forward`.
ARGUMENTS = {
    *GENERATE.parameters,
    "assistant_tokenizer",
    "attention_mask",
    "input_ids",
    "past_key_values",
    "tokenizer",
} - {"self", "kwargs"}
# Arguments that `generate` passes to the model and that the model does not need: they are for other
# objects, or the cache already knows their values.
NOT_NEEDED = {
    "tokenizer",
    "assistant_tokenizer",
    "assistant_model",
    "cache_position",
    "token_type_ids",  # some tokenizers return them; no model of the Llama kind uses them
}


class NativeForCausalLM(FixedWeights, PreTrainedModel, GenerationMixin):  # type: ignore[misc, no-untyped-call]
    """The model that `AutoModelForCausalLM.from_pretrained` returns.

    native: the `neuralchat_lite.Model`. It generates without transformers, and `native.report()`
        says what runs
    quantization_config: how the weights are quantized; None if they are not

    The weights are mapped from disk, shared between processes and never written. So `parameters()`
    says shapes, dtype and device, and training, `state_dict`, `resize_token_embeddings` and another
    device are not supported.
    """

    config_class = PretrainedConfig
    main_input_name = "input_ids"
    base_model_prefix = ""

    def __init__(self, native: Model) -> None:
        config = their_config(native.folder)
        if hasattr(config, MARK):
            delattr(config, MARK)  # it is for the class of transformers, see packed.foreign
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
        raise TypeError("use AutoModelForCausalLM.from_pretrained, which prepares the weights")

    @functools.wraps(GenerationMixin.generate)
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`generate` of transformers. Stopping criteria that do not depend on ids end it during
        the prompt too; it then returns the prompt alone."""
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError(NO_EMBEDS)
        given = GENERATE.bind_partial(self, *args, **kwargs).arguments
        ids = given.get("inputs", kwargs.get("input_ids"))
        check_ids(ids)
        check_prompt_of_cache(ids, kwargs)
        with at_work():
            criteria = given.get("stopping_criteria")
            if not criteria or not isinstance(ids, Tensor):
                return super().generate(*args, **kwargs)
            token = CRITERIA.set(PromptCriteria(criteria, ids))
            try:
                return super().generate(*args, **kwargs)
            except Interrupted:
                return self.prompt_alone(ids, given, kwargs)
            finally:
                CRITERIA.reset(token)

    def prompt_alone(self, ids: Tensor, given: dict[str, Any], options: dict[str, Any]) -> Any:
        """What `generate` returns when it was ended before the first token."""
        if given.get("streamer") is not None:
            given["streamer"].end()
        configs = (given.get("generation_config"), self.generation_config)
        asked = [options, *(vars(config) for config in configs if config is not None)]

        def option(name: str) -> Any:
            return next((each[name] for each in asked if each.get(name) is not None), None)

        ids = ids.repeat_interleave(option("num_return_sequences") or 1, dim=0)
        if option("return_dict_in_generate"):
            return GenerateDecoderOnlyOutput(sequences=ids)  # type: ignore[arg-type]
        return ids

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
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Feed a batch of tokens after those that the cache holds.

        input_ids: [batch, new] token ids
        attention_mask: [batch, past + new], 0 where a row has padding, on either side. Padding is
            not computed. Positions count the tokens of a row, as in `generate`.
        position_ids: [batch, new]. They must count the tokens of a row. Counting the padding before
            its first token too is allowed, since rotary attention depends on distances alone.
        past_key_values, cache: the cache that an earlier call returned, under either name
        labels: [batch, new], -100 where there is no label. The loss is the mean cross-entropy of
            each token given those before it in this call.
        logits_to_keep: the number of last columns to return logits of (0: all), or their indices

        Returns fp32 logits [batch, columns, vocab], zero where a row has padding. Raises ValueError
        for shapes that do not fit, PromptError for ids outside the vocabulary or a full context.
        """
        unknown = sorted(others.keys() - NOT_NEEDED)
        if unknown:
            raise TypeError(f"forward() got unexpected arguments: {', '.join(unknown)}")
        unsupported = {
            "inputs_embeds": inputs_embeds is not None,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }
        if any(unsupported.values()):
            asked = ", ".join(name for name, given in unsupported.items() if given)
            raise ValueError(
                f"{asked} is not available from the native kernels: leave it out, or use the model "
                "class of transformers"
            )
        if input_ids is None or input_ids.ndim != 2 or not input_ids.numel():
            shape = None if input_ids is None else tuple(input_ids.shape)
            raise ValueError(
                f"input_ids must be [batch, tokens] with at least one token, got {shape}: give "
                "token ids"
            )
        if past_key_values is not None and cache is not None:
            raise ValueError("past_key_values and cache are two names of one argument: give one")
        past = past_key_values if cache is None else cache
        if use_cache is None:
            use_cache = bool(getattr(self.config, "use_cache", True))
        kept = self.checked_cache(past)
        before, new = kept.get_seq_length(), input_ids.shape[1]
        real = real_columns(input_ids, attention_mask, kept)
        check_positions(position_ids, real, kept)
        wanted = logits_to_keep if isinstance(logits_to_keep, int) and labels is None else 0
        criteria = CRITERIA.get()
        if criteria is None or before + new > criteria.ids.shape[1]:
            logits = feed(input_ids, real, kept, wanted)
        else:
            with interrupted_by(criteria.check()):
                logits = feed(input_ids, real, kept, wanted)
        loss = None
        if labels is not None:
            preceded = torch.nn.functional.pad(real[:, :-1], (1, 0))
            labels = labels.masked_fill(~preceded, -100)  # padding predicts nothing
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
                f"the cache is {shown(past)}, expected a NativeCache of this model: leave it out, "
                "or start with neuralchat_lite.transformers.NativeCache(model.decoder)"
            )
        return past

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Called by `generate`: refuses arguments that nobody uses. Says what may be meant."""
        try:
            super()._validate_model_kwargs(model_kwargs)  # type: ignore[misc]
        except ValueError as error:
            unknown = (name for name in model_kwargs if repr(name) in str(error))
            hint = generation_hint(unknown, ARGUMENTS)
            raise ValueError(f"{error}: {hint}" if hint else str(error)) from None

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Called by `generate`: makes a NativeCache instead of a DynamicCache."""
        kind = generation_config.cache_implementation
        if kind is not None and not kind.startswith("dynamic"):
            raise ValueError(
                f"cache_implementation={shown(kind)} is a cache of transformers, and the native "
                "decoder needs its own: leave it out"
            )
        mask = model_kwargs.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise ValueError(
                "attention_mask ends with padding, and generation goes on from the last column: "
                "pad on the left, with tokenizer.padding_side = 'left'"
            )
        limit = self.decoder.context_length
        if generation_config.max_length > limit:
            warnings.warn(
                f"max_length={generation_config.max_length} is longer than the context of {limit} "
                "tokens: the text will end there",
                stacklevel=3,
            )
            generation_config.max_length = limit
        if model_kwargs.get(CACHE) is None and generation_config.use_cache is not False:
            model_kwargs[CACHE] = NativeCache(self.decoder)
            model_kwargs[CACHE].of_generate = True

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Called by `generate` for greedy ids and samples: the loop, or what takes its place."""
        asked = logits_processor, stopping_criteria, generation_config, streamer, model_kwargs
        longer = (stopping_criteria.max_length or 0) > input_ids.shape[1]
        if longer and not synced_gpus and is_plain(*asked):
            pad = generation_config._pad_token_tensor
            return greedy(self.native, input_ids, stopping_criteria, pad, model_kwargs)
        whole: Any = super()
        return whole._sample(
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            synced_gpus=synced_gpus,
            streamer=streamer,
            **model_kwargs,
        )

    def _get_candidate_generator(self, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        """Called by `generate` with an assistant or with prompt lookup."""
        whole: Any = super()
        generator = whole._get_candidate_generator(generation_config, *args, **kwargs)
        longest = generation_config.max_length
        most = self.decoder.prefill_block if any(self.decoder.architecture.windows) else longest
        generator.get_candidates = fitting(generator.get_candidates, longest, most)
        return generator

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        **without_effect: Any,
    ) -> None:
        """Write the quantized model to a folder that needs no checkpoint, for `from_pretrained`.

        Arguments about shards and formats (max_shard_size, safe_serialization ...) have no effect:
        the packed format decides. Raises ConfigError for a model that is not quantized and for
        push_to_hub.
        """
        if push_to_hub:
            raise ConfigError(f"push_to_hub=True is not supported: {REFUSED['push_to_hub']}")
        self.native.save_pretrained(save_directory)
        self.generation_config.save_pretrained(save_directory)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of all weights as they are mapped, without key/value caches."""
        return self.decoder.weight_bytes + self.decoder.table_bytes

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of weights in the checkpoint, before quantizing. A tied head counts once."""
        if only_trainable:
            return 0
        specs = list(self.decoder.architecture.tensors())
        if self.decoder.architecture.tied:
            specs = [spec for spec in specs if spec.role != "lm_head"]
        if exclude_embeddings:
            specs = [spec for spec in specs if spec.role != "embedding"]
        return sum(math.prod(spec.shape) for spec in specs)

    def __copy__(self) -> NativeForCausalLM:
        twin = type(self)(self.native)
        twin.generation_config = self.generation_config
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeForCausalLM:
        """A second model with its own generation_config. It shares the weights."""
        twin = type(self)(self.native)
        twin.generation_config = deepcopy(self.generation_config, memo)
        return twin


def check_ids(ids: Any) -> None:
    """Raise PromptError unless the ids of `generate` are a batch, or left out."""
    if ids is None or (isinstance(ids, Tensor) and ids.ndim == 2):
        return
    got = list(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
    raise PromptError(
        f"input_ids must be a tensor [batch, tokens], got {got}: give "
        "tokenizer(text, return_tensors='pt').input_ids"
    )


def check_prompt_of_cache(ids: Any, options: dict[str, Any]) -> None:
    """Raise ValueError for ids of `generate` that a given cache holds already."""
    past = next((options[name] for name in (CACHE, "past_key_values") if name in options), None)
    if not isinstance(past, NativeCache) or not isinstance(ids, Tensor):
        return
    mask = options.get("attention_mask")
    columns, held = ids.shape[1] if mask is None else mask.shape[1], past.get_seq_length()
    if held and columns <= held:
        raise ValueError(
            f"the cache holds {held} columns, and the prompt has {columns}: give all ids, those of "
            f"the cache first and at least one more, shorten it with cache.crop({columns - 1}), or "
            "leave it out"
        )


def named_class(model_type: str) -> type[NativeForCausalLM]:
    """The class under the name that transformers gives this architecture, such as
    MistralForCausalLM. The pipelines of transformers look at the name."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    return type(name, (NativeForCausalLM,), {"__doc__": NativeForCausalLM.__doc__})
