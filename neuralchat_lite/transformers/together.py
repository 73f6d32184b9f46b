"""Greedy `generate` through the scheduler: calls of several threads are computed together.

The loop of transformers keeps what only it can do: samples drawn with torch's own generator, beams,
assistants, logits processors and criteria over the whole batch, streamers, and scores or a cache
that the caller sees. A greedy answer is none of that, and has the same ids either way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.prompt import Prompt
from neuralchat_lite.generation.sequence import Sequence
from neuralchat_lite.generation.several import generate_all
from neuralchat_lite.model import Model
from neuralchat_lite.models.decoder import check_ids
from neuralchat_lite.transformers.cache import NativeCache
from neuralchat_lite.transformers.padding import check_positions, real_columns

CRITERIA = (EosTokenCriteria, MaxLengthCriteria)
# What `generate` hands to a loop for a plain call; anything else is for `forward`.
PLAIN = {
    "attention_mask",
    "cache",
    "cache_position",
    "logits_to_keep",
    "past_key_values",
    "position_ids",
    "use_cache",
}
SEEN = ("return_dict_in_generate", "prefill_chunk_size", "do_sample")  # options of other loops


def is_plain(processors: Any, criteria: Any, config: Any, streamer: Any, model: Any) -> bool:
    """Whether a call of transformers' loop asks for greedy ids and nothing beside.

    model: the arguments for `forward`
    """
    cache = cache_of(model)
    return (
        not processors
        and streamer is None
        and all(type(each) in CRITERIA for each in criteria)
        and any(type(each) is MaxLengthCriteria for each in criteria)
        and not any(getattr(config, name, None) for name in SEEN)
        and model.keys() <= PLAIN
        and cache is not None
        and cache.of_generate
        and not cache.rows
    )


def cache_of(model: Any) -> NativeCache | None:
    return next((value for value in model.values() if isinstance(value, NativeCache)), None)


def greedy(
    native: Model, input_ids: Tensor, criteria: Any, pad: Tensor | None, model: Any
) -> Tensor:
    """[batch, columns + new] ids: those given, and each row's likeliest next ones.

    criteria: of CRITERIA; pad: what follows after a row has ended
    model: the arguments for `forward`, of PLAIN

    Raises PromptError for ids outside the vocabulary, ValueError as `forward` does.
    """
    decoder, cache = native.decoder, cache_of(model)
    assert cache is not None
    longest = min(each.max_length for each in criteria if type(each) is MaxLengthCriteria)
    eos = {
        int(token)
        for each in criteria
        if type(each) is EosTokenCriteria
        for token in each.eos_token_id.tolist()
    }
    real = real_columns(input_ids, model.get("attention_mask"), cache)
    check_positions(model.get("position_ids"), real, cache)
    prompts = [ids[columns_of] for ids, columns_of in zip(input_ids, real, strict=True)]
    for ids in prompts:  # one that cannot be fed would end those of other callers
        check_ids(ids, 0, decoder.context_length, decoder.architecture)
    options = GenerationOptions(max_new_tokens=longest - input_ids.shape[1])
    sequences = []
    for ids in prompts:
        sequence = Sequence(decoder, native.tokenizer, Prompt(tuple(ids.tolist())), options)
        sequence.eos = eos
        sequences.append(sequence)
    found = [reply.token_ids for reply in generate_all(native.scheduler, sequences, None)]
    new = max(map(len, found))
    filler = 0 if pad is None else int(pad)
    rows = torch.tensor([[*ids, *[filler] * (new - len(ids))] for ids in found])
    return torch.cat([input_ids, rows], dim=-1)
