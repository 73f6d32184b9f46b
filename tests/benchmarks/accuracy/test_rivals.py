"""Other engines behind the library's own surface, most of it seen with one that has no model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.accuracy import rivals
from benchmarks.accuracy.rivals import open_rival
from benchmarks.engines.environments import is_ready
from benchmarks.engines.table import ENGINES, FOLDER, Engine, Variant, all_variants
from benchmarks.models import shapes
from benchmarks.models.random_checkpoint import random_model
from benchmarks.models.shapes import shape
from neuralchat_lite.errors import ConfigError, EngineError, PromptError
from neuralchat_lite.generation.prompt import encode_messages

FAKE = Path(__file__).parents[1] / "engines" / "fake_engine.py"
INT8 = ("llamacpp:Q8_0", "openvino:int8", "ctranslate2:int8", "torchao:int8")
INT4 = ("llamacpp:Q4_0", "openvino:int4", "onnxruntime:int4")


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny = shape(64, 128, 2, 4, 2) | {"vocab_size": 96}
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny)
    monkeypatch.setitem(ENGINES, "fake", Engine("fake", str(FAKE), None, {}))
    monkeypatch.setattr(rivals, "python_of", lambda engine: Path(sys.executable))
    monkeypatch.setenv("NEURALCHAT_LITE_BENCHMARKS", str(tmp_path))
    return random_model("tiny", tmp_path)


def opened(checkpoint: Path, sha256: str = "0" * 64, context: int | None = None, **options: Any):
    return open_rival(Variant("fake", "a", options, "fmt"), checkpoint, "tiny", sha256, context)


def test_logits_are_those_of_the_ids_behind_the_cache(checkpoint: Path) -> None:
    model = opened(checkpoint)
    cache = model.decoder.new_cache()
    rows = model.decoder.forward([5, 7, 11], cache, all_logits=True)
    assert rows.shape == (3, 96)  # without the engine's padding
    assert rows.argmax(-1).tolist() == [6, 8, 12]
    assert model.decoder.forward(torch.tensor([20]), cache).argmax() == 21
    assert (cache.length, cache.ids) == (4, [5, 7, 11, 20])
    cache.truncate(2)
    assert model.decoder.forward([30], cache).shape == (96,)
    assert cache.ids == [5, 7, 30]
    model.close()


def test_a_batch_and_copies_go_their_own_ways(checkpoint: Path) -> None:
    model = opened(checkpoint)
    cache = model.decoder.new_cache()
    model.decoder.forward([5, 7], cache)
    caches = [cache, cache.copy(), model.decoder.new_cache()]
    rows = model.decoder.forward_batch([[11, 13], [20], [30, 31]], caches, keep=2)
    assert [row.argmax(-1).tolist() for row in rows] == [[12, 14], [21], [31, 32]]
    assert [cache.ids for cache in caches] == [[5, 7, 11, 13], [5, 7, 20], [30, 31]]
    model.close()


def test_the_decode_loop_runs_over_it(checkpoint: Path) -> None:
    model = opened(checkpoint)
    reply = model.generate([40], max_new_tokens=5)
    assert list(reply.token_ids) == [41, 42, 43, 44, 45]
    model.close()


def test_what_reports_say_of_it(checkpoint: Path) -> None:
    model = opened(checkpoint, bits=4)
    report = model.report()
    assert report["engine"] == "fake"
    assert report["weights"] == {"bits": 4}
    assert report["versions"] == {"fake": "1.0"}
    assert report["threads_seen"] == report["threads"]
    assert model.decoder.bytes_per_token(10) == 1000 + 10 * 2 * 2 * 32 * 2
    model.close()


def test_a_format_is_written_once_for_what_the_checkpoint_holds(checkpoint: Path) -> None:
    """Other weights of the same shape are another model."""
    for sha256, count in (("a" * 64, 1), ("a" * 64, 1), ("b" * 64, 2)):
        opened(checkpoint, sha256).close()
        assert len(list(checkpoint.parents[1].glob("tiny-*/fake-fmt/complete.json"))) == count


@pytest.mark.parametrize("stage", ["prepare", "load"])
def test_what_the_engine_cannot_do_comes_in_its_own_words(checkpoint: Path, stage: str) -> None:
    with pytest.raises(EngineError, match=r"fake:a: RuntimeError: cannot (convert|load)"):
        opened(checkpoint, **{stage: "fail"})


def test_a_worker_that_dies_says_so_and_leaves_the_cache_as_it_was(checkpoint: Path) -> None:
    model = opened(checkpoint)
    cache = model.decoder.new_cache()
    model.decoder.forward([3] * 12, cache)
    with pytest.raises(EngineError, match=r"(?s)SIGKILL.*about to die"):
        model.decoder.forward([3], cache)
    assert cache.length == 12


def test_ids_and_contexts_are_checked_here(checkpoint: Path) -> None:
    model = opened(checkpoint, context=8)
    with pytest.raises(PromptError, match="8"):
        model.decoder.forward([3] * 9, model.decoder.new_cache())
    with pytest.raises(PromptError, match="96"):
        model.decoder.forward([96], model.decoder.new_cache())
    model.close()
    with pytest.raises(ConfigError, match="context_length must be"):
        opened(checkpoint, context=0)


def test_engines_keep_what_sequences_have_in_common() -> None:
    spec = importlib.util.spec_from_file_location("kept", FOLDER / "kept.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.kept([1, 2, 3], [1, 2, 3, 4], 1) == 3
    assert module.kept([1, 2, 3], [1, 2, 3], 1) == 2  # the last one gives the logits
    assert module.kept([1, 2, 3], [1, 2, 3, 4], 3) == 1
    assert module.kept([1, 9, 3], [1, 2, 3, 4], 1) == 1
    assert module.kept([], [1], 1) == 0
    assert [module.room(count) for count in (1, 2048, 2049)] == [2048, 2048, 4096]


@pytest.mark.engines
@pytest.mark.parametrize("label", [*INT8, *INT4])
def test_installed_rivals_know_what_the_little_model_knows(
    label: str, nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converted, loaded, and near transformers in fp32: at once, token by token, and going back."""
    from transformers import AutoModelForCausalLM

    from benchmarks.accuracy.measures import nano_evaluation

    variant = next(found for found in all_variants() if found.label == label)
    if not is_ready(variant.engine):
        pytest.skip(f"{variant.engine} is not installed: python -m benchmarks setup ENGINE")
    monkeypatch.setenv("NEURALCHAT_LITE_BENCHMARKS", str(tmp_path))
    model = open_rival(variant, nano, "nano", "0" * 64, None)
    problem = nano_evaluation().held_out_problems(1)[0]
    asking = encode_messages(problem.messages(), model.tokenizer).ids
    ids = [*asking, *model.tokenizer.encode(problem.answer, add_special_tokens=False)]
    whole = AutoModelForCausalLM.from_pretrained(nano, dtype=torch.float32)
    with torch.no_grad():
        wanted = whole(torch.tensor([ids])).logits[0].log_softmax(-1)
    cache = model.decoder.new_cache()
    at_once = model.decoder.forward(ids, cache, all_logits=True).log_softmax(-1)
    divergence = (wanted.exp() * (wanted - at_once)).sum(-1)[len(asking) :].mean()
    assert divergence < (1e-3 if label in INT8 else 0.05)
    cache.truncate(len(asking))
    again = [model.decoder.forward([token], cache).log_softmax(-1) for token in ids[len(asking) :]]
    # Engines that quantize activations do so with what they are fed together.
    assert (torch.stack(again) - at_once[len(asking) :]).exp().sub(1).abs().median() < 0.1
    model.close()
