"""The witnesses of an answer: transformers' own model in fp32 over weights that are rounded as
PyTorch rounds them, and the tokenizers library's reading of tokenizer.json.

An answer of ours is right when they say the same. Logits are compared, not texts alone: a weight
that is read from a wrong place shows long before the likeliest token changes.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralchat_lite.kernels.layout import (
    PackedMatrix,
    dequantize,
)
from neuralchat_lite.quantization.levels import LEVELS
from neuralchat_lite.quantization.rtn import quantize_rtn
from neuralchat_lite.quantization.schemes import SEARCHED, SEARCHED_SCHEME
from neuralchat_lite.quantization.search import quantize_search

TOLERANCE = 1e-3  # of the norm of a token's logits; right ones differ by 1e-5


class NoWitness(Exception):
    """transformers does not load this either, or only with weights that it makes up."""


@dataclass(frozen=True)
class Answer:
    """What our side said: ids of the prompt and the reply, its text, logits [tokens, vocab] of
    both, and the ids of a conversation (None: refused)."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    logits: Tensor
    chat_ids: tuple[int, ...] | None


def config_of(folder: Path) -> Any:
    """transformers' configuration of a folder. Integers that its arithmetic or its checks do not
    take are floats there, and null is the default."""
    import transformers

    given = json.loads((folder / "config.json").read_bytes())
    for key, default in (("rms_norm_eps", 1e-6), ("rope_theta", 10000.0)):
        if key in given and (given[key] is None or type(given[key]) is int):
            given[key] = default if given[key] is None else float(given[key])
    for key in ("dtype", "torch_dtype"):  # the weights say it
        given.pop(key, None)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_text(json.dumps(given))
        config = transformers.AutoConfig.from_pretrained(
            place, local_files_only=True, trust_remote_code=False
        )
    for key, value in (rope := getattr(config, "rope_parameters", None) or {}).items():
        if isinstance(value, int) and abs(value) >= 2**53:
            rope[key] = float(value)
    return config


@contextlib.contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """The folder, in links, without an adapter's configuration: transformers would read a stray
    one, which is no part of the model."""
    with tempfile.TemporaryDirectory() as place:
        for path in folder.iterdir():
            if path.name != "adapter_config.json":
                (Path(place) / path.name).symlink_to(path.absolute())
        yield Path(place)


def load_witness(folder: Path) -> Any:
    """transformers' model of a folder, in fp32."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        with without_adapter(folder) as place:
            model, notes = transformers.AutoModelForCausalLM.from_pretrained(
                place,
                config=config_of(folder),
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                attn_implementation="eager",
            )
    except Exception as error:
        raise NoWitness(f"{type(error).__name__}: {str(error)[:200]}") from None
    for key in ("missing_keys", "mismatched_keys", "error_msgs"):
        if notes.get(key):
            raise NoWitness(f"{key}: {str(notes[key])[:200]}")
    return model.eval()


def round_weights(model: Any, weight_dtype: str, head_dtype: str = "int8") -> Any:
    """Every matrix as the quantizer's slow path rounds it: groups of 32, the type's own scheme,
    fp16 scales."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            kind = head_dtype if name == "lm_head" else weight_dtype
            module.weight = torch.nn.Parameter(rounded(module.weight.detach(), kind), False)
    return model


def rounded(weight: Tensor, weight_dtype: str) -> Tensor:
    if weight_dtype == SEARCHED:
        found = quantize_search(weight, group_size=32, scheme=SEARCHED_SCHEME, scale_dtype="fp16")
    else:
        found = quantize_rtn(
            weight, weight_dtype=weight_dtype, group_size=32, scheme="sym", scale_dtype="fp16"
        )
    rows, cols = weight.shape
    stored = LEVELS[weight_dtype].stored
    slab = found.packed(stored)
    return dequantize(
        PackedMatrix(stored, rows, cols, 32, slab.codes, slab.scales, slab.zeros, slab.minima)
    )


@torch.no_grad()
def logits_of(model: Any, ids: Sequence[int]) -> Tensor:
    found: Tensor = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()
    return found


def differing(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> str | None:
    """How the logits of two sides differ; None when they agree."""
    if ours.shape != theirs.shape:
        return f"logits {list(ours.shape)}, the witness has {list(theirs.shape)}"
    fine, known = ours.isfinite().all(-1), theirs.isfinite().all(-1)
    if not bool((fine == known).all()):
        return "logits are finite on one side only"
    ours, theirs = ours[fine], theirs[fine]
    if torch.equal(ours, theirs):  # also logits that are 0, of weights that are
        return None
    apart = (ours.double() - theirs.double()).norm(dim=-1) / theirs.double().norm(dim=-1)
    worst = float(apart.max())
    return None if worst <= tolerance else f"logits differ by {worst:.3g} of their norm"


# ---- tokens ----


def plain_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except BaseException as error:  # its panics are no Exception
        raise NoWitness(f"tokenizers: {str(error)[:200]}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def fast_tokenizer(folder: Path) -> Any:
    import transformers

    # Settings that rebuild parts of tokenizer.json do not count.
    plain = dict.fromkeys(("split_special_tokens", "add_prefix_space"), False)
    try:
        return transformers.PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True, **plain
        )
    except Exception as error:
        raise NoWitness(f"{type(error).__name__}: {str(error)[:200]}") from None


def wrong_tokens(
    folder: Path, prompt: str, messages: list[dict[str, str]], answer: Answer
) -> str | None:
    """How ids or text differ from what both readings of tokenizer.json say; None when one
    agrees."""
    plain = plain_tokenizer(folder)
    readings: list[tuple[Callable[[str], list[int]], Callable[[list[int]], str]]] = [
        (lambda text: plain.encode(text).ids, plain.decode)
    ]
    with contextlib.suppress(NoWitness):
        fast = fast_tokenizer(folder)
        readings.append((fast.encode, lambda ids: fast.decode(ids, skip_special_tokens=True)))
    said = [reading_differs(*reading, prompt, answer) for reading in readings]
    if None not in said:
        return said[0]
    if answer.chat_ids is None:
        return None
    fast = fast_tokenizer(folder)
    if fast.chat_template is None:  # neural-chat's prompt, of one message
        text = f"### User:\n{messages[0]['content']}\n### Assistant:\n"
    else:
        try:
            text = fast.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template may raise anything
            raise NoWitness(f"the template: {type(error).__name__}: {str(error)[:200]}") from None
    ids = tuple(plain.encode(text, add_special_tokens=False).ids)
    if ids == answer.chat_ids:
        return None
    return f"chat ids are {answer.chat_ids}, tokenizer.json says {ids} of {text!r}"[:500]


def reading_differs(
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    prompt: str,
    answer: Answer,
) -> str | None:
    try:
        ids = tuple(encode(prompt))
        before = decode(list(answer.prompt_ids))
        whole = decode([*answer.prompt_ids, *answer.ids])
        alone = decode(list(answer.ids))
    except BaseException as error:
        return f"the witness cannot tokenize: {str(error)[:100]}"
    if ids != answer.prompt_ids:
        return f"ids of the prompt are {answer.prompt_ids}, tokenizer.json says {ids}"[:300]
    wanted = {whole[len(before) :] if whole.startswith(before) else alone, alone}
    if not any(text.strip(" \ufffd") == answer.text.strip(" \ufffd") for text in wanted):
        return f"the text is {answer.text!r}, tokenizer.json says {sorted(wanted)}"[:300]
    return None
