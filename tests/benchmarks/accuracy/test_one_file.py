"""One GGUF file in two engines, and what it is compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.accuracy.one_file import LLAMACPP, REFERENCE, compared, logits_of
from benchmarks.cli.latency import open_model
from benchmarks.engines.environments import is_ready
from benchmarks.engines.table import file_variants
from neuralchat_lite.errors import ConfigError

from ...made_gguf import write_gguf

pytest.importorskip("gguf", reason="needs the gguf package: pip install gguf")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("NEURALCHAT_LITE_CACHE", "NEURALCHAT_LITE_BENCHMARKS"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    write_gguf(tmp_path / "model.gguf", lambda name: "Q8_0" if "embd" in name else "Q4_1")
    return tmp_path / "model.gguf"


def test_each_model_is_beside_the_reference_and_ours_beside_llama_cpp() -> None:
    logits = {name: torch.tensor([[0.0, top]]) for name, top in ((LLAMACPP, 1.0), (REFERENCE, 2.0))}
    rows = list(compared({**logits, "ours": torch.tensor([[0.0, 2.0]])}))
    assert [(row.reference, row.model) for row in rows] == [
        (REFERENCE, LLAMACPP),
        (REFERENCE, "ours"),
        (LLAMACPP, "ours"),
    ]
    p = 1 / (1 + torch.tensor(-2.0).exp())
    q = 1 / (1 + torch.tensor(-1.0).exp())
    want = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert rows[0].kl == pytest.approx(float(want), rel=1e-5)
    assert rows[1].kl == 0 and rows[1].same_top == 1


def test_a_file_is_a_model_of_the_benchmarks_with_a_digest_of_its_bytes(file: Path) -> None:
    model = open_model(None, str(file))
    assert model.architecture.vocab_size == 272
    stored = {variant.label: model.stored(variant) for variant in file_variants()}
    assert stored["llamacpp:as-is"] == file
    assert stored["neuralchat_lite:as-is"] == stored["neuralchat_lite:as-is-bf16"] != file
    write_gguf(file, lambda name: "Q8_0")
    assert open_model(None, str(file)).digest != model.digest


def test_a_text_that_is_too_short_is_refused_with_its_length(file: Path) -> None:
    with pytest.raises(ConfigError, match="the text has 3 tokens, expected 512"):
        logits_of(file, "the", 512)


@pytest.mark.engines
def test_fp32_and_bf16_are_nearer_to_the_weights_than_llama_cpp_is(file: Path) -> None:
    if not is_ready("llamacpp"):
        pytest.skip("llamacpp is not installed: python -m benchmarks setup llamacpp")
    rows = list(compared(logits_of(file, "the " * 64, 64)))
    kl = {row.model: row.kl for row in rows if row.reference == REFERENCE}
    assert kl["neuralchat_lite fp32"] < 1e-6
    assert kl["neuralchat_lite bf16"] < kl[LLAMACPP] < 0.05
