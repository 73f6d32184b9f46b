"""`neuralchat-lite quantize` and `merge`: the folders that they write."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., tuple[int, str, str]]
PROMPT = "Once upon a time"
NANO = str(Path(__file__).parents[2] / "examples/nano/model")


def test_quantize_writes_a_folder_that_generate_reads(
    run: Run, stories: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    code, out, _ = run("quantize", stories, "-o", str(folder), "--weight-dtype", "int8")
    assert (code, out) == (0, f"{folder}\n")
    stored = json.loads((folder / "quantization_config.json").read_text(encoding="utf-8"))
    assert stored["weight_dtype"] == "int8"
    assert run("generate", str(folder), "-p", PROMPT, "--max-new-tokens", "3")[0] == 0


def test_overrides_are_typed_as_pattern_and_settings(
    run: Run, stories: str, tmp_path: Path
) -> None:
    folder, command = tmp_path / "out", ("quantize", stories, "-o", str(tmp_path / "out"))
    layer, head = "model.layers.0.*=int8", "lm_head=group_size=64,scheme=asym"
    assert run(*command, "--override", layer, "--override", head)[0] == 0
    stored = json.loads((folder / "quantization_config.json").read_text(encoding="utf-8"))
    assert stored["overrides"] == {
        "model.layers.0.*": {"weight_dtype": "int8"},
        "lm_head": {"group_size": 64, "scheme": "asym"},
    }
    for bad, message in (("lm_head", "needs a pattern"), ("lm_head=int3", "weight_dtype must be")):
        code, _, err = run(*command, "--override", bad)
        assert code == 2
        assert message in err


def test_adapters_are_merged_before_generating_and_quantizing(
    run: Run, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    sft, dpo = (str(make_adapter(NANO, name, seed)) for seed, name in enumerate(("sft", "dpo")))
    merged = str(tmp_path / "merged")
    code, out, err = run("merge", NANO, sft, dpo, "-o", merged)
    assert (code, out) == (0, merged + "\n")
    assert re.search(r"^Merging \([\d.]+ MB\)$", err, re.MULTILINE)
    command = (
        "generate",
        "-p",
        "calculate 1 + 2",
        "--max-new-tokens",
        "8",
        "--dtype",
        "bf16",
        "--raw",
    )
    code, want, _ = run(*command, merged)
    assert code == 0
    both = ("--adapter", sft, "--adapter", dpo)
    assert run(*command, NANO, *both)[:2] == (0, want)
    assert run(*command, NANO)[1] != want
    folder = Path(run("quantize", NANO, *both)[1].strip())
    assert len(json.loads((folder / "manifest.json").read_text())["adapters"]) == 2
    assert folder == Path(run("quantize", NANO, *both)[1].strip())
    for again in (("quantize", NANO, "--adapter", merged), ("merge", NANO, sft, "-o", merged)):
        code, out, err = run(*again)
        assert (code, out, err.count("\n")) == (2, "", 1)
