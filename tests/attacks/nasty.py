"""Values and files that nobody expects: what the attacks put where something else belongs."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A text in a value -> the JSON that replaces it: what json.dumps does not write.
RAW = {
    "@digits": "9" * 5000,
    "@negative digits": "-" + "9" * 4400,
    "@deep": "[" * 3000 + "]" * 3000,
    "@exponent": "1e999",
    "@lone surrogate": '"\\ud800"',
    "@nul": '"a\\u0000b"',
}
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 16, 1000, 2**31 - 1, 2**31, 2**32 + 1, 2**53 + 1),
    *(2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -1.5, 1e-308, 1e-45, 1e30, 1e38, 1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf")),
    *("", "1", "true", "null", "silu", "x" * 10_000, "\x1b[31mred\x1b]0;title\x07", "a\nb", "é▁😀"),
    *("../../etc/passwd", "/dev/zero", "%s%n", "{0}", "__class__"),
    *([], [1], [None], ["a"], [[]], [1] * 5000, {}, {"a": 1}, {"": None}, {"type": "linear"}),
    *RAW,
)


def dumps(value: Any) -> str:
    """JSON with the texts of RAW replaced."""
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text


def near(rng: random.Random, value: Any) -> Any:
    """A value that might stand in the place of this one: of its type half the time."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int) and rng.random() < 0.5:
        return rng.choice([value + 1, value - 1, value * 2, value // 2, -value, float(value)])
    if isinstance(value, float) and rng.random() < 0.5:
        return rng.choice([value * 2, value / 2, -value, value * 1e10, int(value), str(value)])
    if isinstance(value, str) and value and rng.random() < 0.3:
        return rng.choice([value[:-1], value.upper(), value + " ", f" {value}", value * 2])
    if isinstance(value, list) and value and rng.random() < 0.5:
        return rng.choice([value[:-1], [*value, value[0]], value[::-1], value[0]])
    return rng.choice(VALUES)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, as keys and indices from the top. Of long lists the first."""
    found = [path] if path else []
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items[:40]:
        found += places(inner, (*path, key))
    return found


def change_place(rng: random.Random, value: Any, depth: int = 9) -> str:
    """Change, remove, double or rename one entry of a JSON value, in place; says what."""
    found = [path for path in places(value) if len(path) <= depth]
    if not found:
        return "nothing to change"
    *above, key = path = rng.choice(found)
    holder = value
    for step in above:
        holder = holder[step]
    name = "/".join(map(str, path))
    act = rng.random()
    if act < 0.12:
        del holder[key]
        return f"{name} removed"
    if act < 0.2 and isinstance(holder, dict):
        other = rng.choice(list(holder))
        holder[key], holder[other] = holder[other], holder[key]
        return f"{name} swapped with {other}"
    if act < 0.25 and isinstance(holder, dict):
        new = rng.choice([key.upper(), key + " ", "", "\x00", "x" * 5000, "@digits"])
        holder[new] = holder.pop(key)
        return f"{name} renamed to {new[:20]!r}"
    holder[key] = near(rng, holder[key])
    return f"{name} = {repr(holder[key])[:60]}"


def is_plain(path: Path) -> bool:
    """A file of its own, small enough to be read: not what an earlier mutation made of it."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 26


def edit_json(path: Path, change: Callable[[Any], str]) -> str:
    """Change a JSON file by a function that changes its value in place and says what it did."""
    if not is_plain(path):
        return f"{path.name} left as an earlier mutation made it"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return f"{path.name} left as an earlier mutation made it"
    said = change(value)
    path.write_text(dumps(value), encoding="utf-8")
    return f"{path.name}: {said}"


# ---- whole files ----


def cut(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data) + 1)])


def flip_bits(rng: random.Random, path: Path, first: int = 0, last: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    last = len(data) if last is None else min(last, len(data))
    for _ in range(rng.choice([1, 1, 2, 8])):
        if first < last:
            data[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def append(rng: random.Random, path: Path) -> None:
    tail = rng.choice([b"\0", b"\n", b" " * 4096, b"}", b"garbage"])
    path.write_bytes(path.read_bytes() + tail)


def replace_text(text: bytes) -> Callable[[random.Random, Path], None]:
    def replace(rng: random.Random, path: Path) -> None:
        path.write_bytes(text)

    return replace


def recode(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    kind = rng.choice(["bom", "utf-16", "latin", "nul"])
    if kind == "bom":
        data = b"\xef\xbb\xbf" + data
    elif kind == "utf-16":
        data = data.decode("utf-8", "replace").encode("utf-16")
    else:
        place = rng.randrange(len(data) + 1)
        data = data[:place] + (b"\xe9" if kind == "latin" else b"\0") + data[place:]
    path.write_bytes(data)


def as_folder(rng: random.Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_pipe(rng: random.Random, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_link(target: str) -> Callable[[random.Random, Path], None]:
    def link(rng: random.Random, path: Path) -> None:
        path.unlink()
        path.symlink_to(target.format(name=path.name))

    return link


def as_link_to_copy(rng: random.Random, path: Path) -> None:
    """The same bytes, in a folder beside this one."""
    beside = path.parent.with_name(f"{path.parent.name}-outside")
    beside.mkdir(exist_ok=True)
    shutil.move(path, beside / path.name)
    path.symlink_to(beside / path.name)


def sparse(rng: random.Random, path: Path) -> None:
    """A file that says it has many gigabytes, after its own bytes."""
    os.truncate(path, 1 << rng.choice([33, 36, 40]))


def swap_files(rng: random.Random, path: Path) -> None:
    other = rng.choice(sorted(p for p in path.parent.iterdir() if p.is_file()))
    data = path.read_bytes() if path.is_file() else b""
    path.write_bytes(other.read_bytes())
    other.write_bytes(data)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
WHOLE_FILE: dict[str, Callable[[random.Random, Path], None]] = {
    "cut short": cut,
    "bits flipped": flip_bits,
    "more at the end": append,
    "another encoding": recode,
    "empty": replace_text(b""),
    "an LFS pointer": replace_text(LFS),
    "an HTML page": replace_text(b"<!DOCTYPE html>\n<html><body>404</body></html>\n"),
    "null": replace_text(b"null"),
    "a list": replace_text(b"[1, 2]"),
    "deep": replace_text(b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
    "many digits": replace_text(b'{"version": ' + b"7" * 6000 + b"}"),
    "GGUF": replace_text(b"GGUF\x03\0\0\0" + b"\0" * 64),
    "a zip": replace_text(b"PK\x03\x04" + b"\0" * 64),
    "removed": lambda rng, path: path.unlink(),
    "a folder": as_folder,
    "a pipe": as_pipe,
    "a link to itself": as_link("{name}"),
    "a link to nothing": as_link("nothing-here"),
    "a link to /dev/zero": as_link("/dev/zero"),
    "a link to /dev/null": as_link("/dev/null"),
    "a link to /etc/hostname": as_link("/etc/hostname"),
    "a link to a copy outside": as_link_to_copy,
    "gigabytes of nothing": sparse,
    "swapped with another file": swap_files,
}


def spoil_file(rng: random.Random, path: Path) -> str:
    """One of WHOLE_FILE, done to a file."""
    if not is_plain(path):
        return f"{path.name} left as an earlier mutation made it"
    kind = rng.choice(list(WHOLE_FILE))
    WHOLE_FILE[kind](rng, path)
    return f"{path.name}: {kind}"
