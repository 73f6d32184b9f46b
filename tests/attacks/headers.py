"""Mutations of a safetensors file: its header, the tensors that it names, and their bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .nasty import VALUES, change_place, dumps, flip_bits, is_plain, spoil_file

DTYPES = (
    "BF16",
    "F16",
    "F32",
    "F64",
    "I8",
    "U8",
    "I16",
    "I64",
    "BOOL",
    "F8_E4M3",
    "F4",
    "bf16",
    "",
)


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(path: Path, header: str, body: bytes, length: int | None = None) -> None:
    text = header.encode("utf-8", "surrogatepass")
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)


def one(rng: random.Random, header: dict[str, Any]) -> str:
    return rng.choice([name for name in header if name != "__metadata__"])


def change_entry(rng: random.Random, header: dict[str, Any], body: bytes) -> tuple[str, bytes]:
    return change_place(rng, header), body


def change_dtype(rng: random.Random, header: dict[str, Any], body: bytes) -> tuple[str, bytes]:
    name = one(rng, header)
    header[name]["dtype"] = rng.choice(DTYPES)
    return f"{name} is {header[name]['dtype']}", body


def change_shape(rng: random.Random, header: dict[str, Any], body: bytes) -> tuple[str, bytes]:
    name = one(rng, header)
    shape = header[name]["shape"]
    act = rng.randrange(6)
    if act == 0:
        shape.reverse()
    elif act == 1:
        shape.append(1)
    elif act == 2:
        header[name]["shape"] = [2, *shape[:-1], shape[-1] / 2]
    elif act == 3:
        shape[0] = rng.choice(VALUES)
    elif act == 4:
        header[name]["shape"] = [2**32, 2**32, 0]
    else:
        header[name]["shape"] = [shape[0] * 2, *(size // 2 for size in shape[1:])]
    return f"{name} has the shape {str(header[name]['shape'])[:60]}", body


def change_offsets(rng: random.Random, header: dict[str, Any], body: bytes) -> tuple[str, bytes]:
    name, other = one(rng, header), one(rng, header)
    first, last = header[name]["data_offsets"]
    header[name]["data_offsets"] = rng.choice(
        [
            header[other]["data_offsets"],
            [first + 2, last + 2],
            [first - 2, last - 2],
            [last, first],
            [first, last - 1],
            [-1, last],
            [0, 2**64 - 1],
            [first, last + 2**32],
            [first],
            [float(first), float(last)],
            [str(first), str(last)],
        ]
    )
    return f"{name} lies at {header[name]['data_offsets']}", body


def swap_tensors(rng: random.Random, header: dict[str, Any], body: bytes) -> tuple[str, bytes]:
    name, other = one(rng, header), one(rng, header)
    header[name], header[other] = header[other], header[name]
    return f"{name} is {other}, and the other way round", body


def rename_tensor(rng: random.Random, header: dict[str, Any], body: bytes) -> tuple[str, bytes]:
    name = one(rng, header)
    new = rng.choice(
        [
            name.replace("model.", "", 1),
            f"_orig_mod.{name}",
            name.replace("weight", "bias"),
            name.replace("layers.0", "layers.1"),
            name.upper(),
            f"{name}\x1b[2J",
            "n" * 4000,
            "",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "lm_head.weight",
        ]
    )
    header[new] = header.pop(name)
    return f"{name} is called {new[:60]!r}", body


def prefix_all(rng: random.Random, header: dict[str, Any], body: bytes) -> tuple[str, bytes]:
    prefix = rng.choice(["_orig_mod.", "module.", "language_model.", "base_model.model.", "x."])
    for name in [name for name in header if name != "__metadata__"]:
        header[prefix + name] = header.pop(name)
    return f"every name begins with {prefix}", body


def add_tensor(rng: random.Random, header: dict[str, Any], body: bytes) -> tuple[str, bytes]:
    name = rng.choice(
        [
            "lm_head.weight",
            "model.layers.2.mlp.up_proj.weight",
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.0.self_attn.rotary_emb.cos_cached",
            "model.rotary_emb.inv_freq",
            "v_head.summary.weight",
            "score.weight",
            "extra",
        ]
    )
    begin = len(body)
    header[name] = {"dtype": "F32", "shape": [4], "data_offsets": [begin, begin + 16]}
    return f"{name} added", body + b"\0\0\x80\x3f" * 4


def drop_tensor(rng: random.Random, header: dict[str, Any], body: bytes) -> tuple[str, bytes]:
    name = one(rng, header)
    first, last = header.pop(name)["data_offsets"]
    for entry in header.values():
        if "data_offsets" in entry and entry["data_offsets"][0] >= last:
            entry["data_offsets"] = [place - (last - first) for place in entry["data_offsets"]]
    return f"{name} left out", body[:first] + body[last:]


def flip_payload(rng: random.Random, header: dict[str, Any], body: bytes) -> tuple[str, bytes]:
    data = bytearray(body)
    for _ in range(rng.choice([1, 2, 16])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return "bits of weights flipped", bytes(data)


def fill_payload(rng: random.Random, header: dict[str, Any], body: bytes) -> tuple[str, bytes]:
    first, last = header[one(rng, header)]["data_offsets"]
    fill = rng.choice([b"\0", b"\xff", b"\x7f", b"\x80", b"\1"]) * (last - first)
    return f"weights of {fill[:1]!r}", body[:first] + fill + body[last:]


def metadata(rng: random.Random, header: dict[str, Any], body: bytes) -> tuple[str, bytes]:
    header["__metadata__"] = rng.choice([*VALUES, {"format": "neuralchat_lite"}, {"format": "mlx"}])
    return "__metadata__ changed", body


HEADER: dict[str, Callable[[random.Random, dict[str, Any], bytes], tuple[str, bytes]]] = {
    "entry": change_entry,
    "dtype": change_dtype,
    "shape": change_shape,
    "offsets": change_offsets,
    "swap": swap_tensors,
    "rename": rename_tensor,
    "prefix": prefix_all,
    "add": add_tensor,
    "drop": drop_tensor,
    "payload": flip_payload,
    "fill": fill_payload,
    "metadata": metadata,
}


def change_header(rng: random.Random, path: Path) -> str:
    try:
        header, body = split(path)
        said, body = HEADER[rng.choice(list(HEADER))](rng, header, body)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError):
        return f"{path.name} left as an earlier mutation made it"
    join(path, dumps(header), body)
    return f"{path.name}: {said}"


def double_key(rng: random.Random, path: Path) -> str:
    """The same name twice in the header, which JSON leaves to the reader."""
    try:
        header, body = split(path)
        name, other = one(rng, header), one(rng, header)
    except (ValueError, IndexError, OSError):
        return f"{path.name} left as an earlier mutation made it"
    text = dumps(header)[:-1] + f", {json.dumps(name)}: {dumps(header[other])}}}"
    join(path, text, body)
    return f"{path.name}: {name} twice, the second time as {other}"


def change_length(rng: random.Random, path: Path) -> str:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    new = rng.choice(
        [0, 1, length - 1, length + 1, length * 2, 2**31, 2**63, 2**64 - 1, 99_000_000]
    )
    path.write_bytes(new.to_bytes(8, "little") + data[8:])
    return f"{path.name}: a header of {new} bytes, it is {length}"


def flip_header(rng: random.Random, path: Path) -> str:
    length = int.from_bytes(path.read_bytes()[:8], "little")
    flip_bits(rng, path, 0, 8 + length)
    return f"{path.name}: bits of the header flipped"


def spoil_weights(rng: random.Random, path: Path) -> str:
    """One mutation of a safetensors file."""
    left = f"{path.name} left as an earlier mutation made it"
    if not is_plain(path):
        return left
    change = rng.choice([change_header] * 6 + [double_key, change_length, flip_header, spoil_file])
    try:
        return change(rng, path)
    except (OverflowError, RecursionError):  # of a header that is spoilt already
        return left
