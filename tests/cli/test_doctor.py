"""`neuralchat-lite doctor`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., tuple[int, str, str]]


def test_doctor_says_what_runs_and_why(run: Run, cache: Path) -> None:
    code, out, _ = run("doctor")
    found = dict(re.findall(r"^([\w ]+): +(.+)$", out, re.MULTILINE))
    assert code == 0
    for name in ("version", "packages", "CPU", "CPU features", "kernels", "threads", "cache"):
        assert found[name]
    assert re.match(r"[\d.]+ GB/s with \d+ threads", found["bandwidth"])
    assert str(cache) in found["cache"]
    kernels = found["kernels"].split(":")[0]
    for kind in ("int4 x bf16", "int4 x int8", "int8 x bf16", "int8 x int8", "unquantized x fp32"):
        assert re.match(rf"\w+ of (\w+), (the set in use|as {kernels} has no)", found[kind])
