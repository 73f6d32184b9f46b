"""The snippets of neural-chat's card, with nothing but their imports changed, say what transformers
says on the same weights."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks.accuracy.agreement import write_dequantized

from .patience import patience
from .transformers.conftest import NANO

CARD = Path(__file__).parent / "card"
EXAMPLE = Path(__file__).parents[1] / "examples/migrate_from_itrex.py"
# What is written on a line of imports instead of what.
OURS = {
    "import transformers": "import neuralchat_lite.transformers as transformers",
    "intel_extension_for_transformers.transformers": "neuralchat_lite.transformers",
    "import intel_extension_for_pytorch as ipex": "import neuralchat_lite.ipex as ipex",
}
# The same with transformers alone, for the text that is expected.
THEIRS = {
    "from intel_extension_for_transformers.transformers import": "from transformers import",
    ", WeightOnlyQuantConfig": "",
    "import intel_extension_for_pytorch as ipex": "",
}
StandIn = Callable[[Path], dict[str, str]]


def with_imports(snippet: str, changes: dict[str, str]) -> str:
    lines = []
    for line in snippet.splitlines():
        if line.startswith(("import ", "from ")):
            for old, new in changes.items():
                line = line.replace(old, new)
        lines.append(line)
    return "\n".join(lines) + "\n"


def printed(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience(300),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=["stories", "nano"])
def model(request: pytest.FixtureRequest) -> Path:
    if request.param == "nano":
        return NANO
    found: Path = request.getfixturevalue("stories")
    return found


def test_the_fp32_snippet_prints_what_transformers_prints(
    model: Path, stand_in: StandIn, tmp_path: Path
) -> None:
    snippet = (CARD / "fp32.py").read_text(encoding="utf-8")
    # Without eos the story would outgrow the model; transformers goes on into nonsense.
    snippet = snippet.replace("max_length=1000", "max_length=500")
    in_fp32 = snippet.replace("(model_name)", "(model_name, dtype='float32')", 1)
    environment = stand_in(model)
    assert printed(with_imports(snippet, OURS), environment) == printed(in_fp32, environment)


def ids_of(code: str, environment: dict[str, str]) -> tuple[str, list[int]]:
    """What a snippet prints, and its `outputs`."""
    out = printed(code + "\nprint(end='\\0'); print(outputs[0].tolist())", environment)
    text, _, ids = out.partition("\0")
    return text, json.loads(ids)


def assert_same_until_a_tie(ours: Any, theirs: Any, plain: Path) -> None:
    """The same text; or the same tokens up to two that bf16 cannot tell apart."""
    if ours == theirs:
        return
    (text, ids), (expected_text, expected) = ours, theirs
    pairs = enumerate(zip(ids, expected, strict=False))
    first = next(i for i, (mine, other) in pairs if mine != other)
    reference = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    logits = reference(torch.tensor([expected[:first]])).logits[0, -1]
    best, chosen = float(logits[expected[first]]), float(logits[ids[first]])
    step = 2.0 ** (math.floor(math.log2(abs(best))) - 7)  # bf16 has 8 significant bits
    assert best - chosen <= step, f"token {first}: {best} and {chosen} are no tie in bf16"
    assert first > 50 and text[:100] == expected_text[:100]


@pytest.mark.parametrize("weight_dtype", ["int4", "int8"])
def test_the_quantized_snippet_prints_what_transformers_prints_on_dequantized_weights(
    stories: Path, stand_in: StandIn, tmp_path: Path, weight_dtype: str
) -> None:
    snippet = (CARD / "int4.py").read_text(encoding="utf-8")
    snippet = snippet.replace('="int4")', f'="{weight_dtype}")')
    environment = stand_in(stories)
    found = ids_of(with_imports(snippet, OURS), environment)
    [entry] = Path(environment["NEURALCHAT_LITE_CACHE"]).glob(f"[!.]*-{weight_dtype}-*")
    dequantized = tmp_path / "plain"
    write_dequantized(entry, dequantized)
    plain = with_imports(snippet, THEIRS).replace("config = ", "# ")
    plain = plain.replace("quantization_config=config", "dtype='float32'")
    assert_same_until_a_tie(found, ids_of(plain, stand_in(dequantized)), dequantized)


def test_the_bf16_snippet_prints_what_transformers_prints(stories: Path, stand_in: StandIn) -> None:
    snippet = (CARD / "bf16_ipex.py").read_text(encoding="utf-8")
    environment = stand_in(stories)
    # In fp32, to which our bf16 is closer than that of transformers.
    plain = with_imports(snippet, THEIRS).replace("model = ipex", "# ")
    plain = plain.replace("torch.bfloat16", "torch.float32")
    found = ids_of(with_imports(snippet, OURS), environment)
    assert_same_until_a_tie(found, ids_of(plain, environment), stories)


def test_the_migration_example_differs_from_the_snippet_in_its_import_line_alone() -> None:
    snippet = (CARD / "int4.py").read_text(encoding="utf-8").splitlines()
    example = EXAMPLE.read_text(encoding="utf-8").splitlines()
    changed = [pair for pair in zip(snippet, example, strict=True) if pair[0] != pair[1]]
    [(before, after)] = changed
    assert before.partition(" import ")[2] == after.partition(" import ")[2]
    assert after.startswith("from neuralchat_lite.transformers import ")


def test_the_migration_example_runs(stand_in: StandIn) -> None:
    out = printed(EXAMPLE.read_text(encoding="utf-8"), stand_in(NANO))
    assert out.startswith("Once upon a time, there existed a little girl,") and len(out) > 60
