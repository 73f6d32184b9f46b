"""IPEX and ITREX themselves, where `neuralchat-lite engines setup` has installed them.

Also as on a CPU without AVX-512: their dispatchers can be told to stop at AVX2.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite as ncl
from neuralchat_lite.environments.environment import engine_environment
from neuralchat_lite.errors import EngineError
from neuralchat_lite.generation.sequence import Reply

from .conftest import native_fp32, request_for

pytestmark = pytest.mark.engines

AVX2_ONLY = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
PROMPT = "Once upon a time"
Loader = Callable[..., ncl.Model]


@pytest.fixture
def load(stories: Path) -> Iterator[Loader]:
    """`ncl.load` of the little model; what it has loaded is closed."""
    loaded: list[ncl.Model] = []

    def opener(engine: str, **options: Any) -> ncl.Model:
        require(engine)
        loaded.append(ncl.load(stories, engine=engine, **options))
        return loaded[-1]

    yield opener
    for model in loaded:
        model.close()


def require(engine: str) -> None:
    if engine == "torch":
        return
    environment = engine_environment(engine)
    if environment.state() != "ready":
        pytest.skip(f"needs `neuralchat-lite engines setup {engine}`")
    if obstacles := environment.obstacles():
        pytest.skip("; ".join(obstacles))


def golden_ids(stories: Path) -> list[int]:
    (golden, *_) = json.loads((stories / "golden.json").read_text())
    assert golden["prompt"] == PROMPT
    return list(golden["greedy_ids"][len(golden["input_ids"]) :])


def tell(model: ncl.Model, count: int = 60) -> Reply:
    return model.generate(PROMPT, max_new_tokens=count)


def test_ipex_in_fp32_tells_the_known_story(load: Loader, stories: Path) -> None:
    golden = golden_ids(stories)
    assert list(tell(load("ipex", dtype="fp32"), len(golden)).token_ids) == golden


@pytest.mark.parametrize("variables", [{}, AVX2_ONLY], ids=["this CPU", "AVX2 only"])
def test_ipex_in_bf16_speaks_and_names_its_flags(
    load: Loader,
    stories: Path,
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    model = load("ipex")
    # bf16 may leave the story of fp32 at a close call, but not at once.
    assert list(tell(model).token_ids[:20]) == golden_ids(stories)[:20]
    report = model.report()
    assert report["compute_dtype"] == "bf16"
    assert report["versions"]["intel-extension-for-pytorch"] == "2.8.0"
    if variables:
        assert "AVX-512" in report["flags"]["weights_prepack=False"]


def test_a_stream_from_a_worker_can_be_cancelled_and_repeated(load: Loader) -> None:
    model = load("ipex", dtype="fp32")
    pieces = model.stream(PROMPT, max_new_tokens=60)
    first = [next(pieces).token_id for _ in range(5)]
    pieces.close()
    assert list(tell(model).token_ids[:5]) == first


def test_a_conversation_with_a_worker_keeps_its_cache(load: Loader) -> None:
    texts = []
    for engine in ("torch", "ipex"):
        talk = load(engine, dtype="fp32").conversation(max_new_tokens=20)
        replies = [talk.say(line) for line in ("A cat.", "A dog.")]
        assert replies[1].timings.cached_tokens > 0
        texts.append([reply.text for reply in replies])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("compute_dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("weight_dtype", ["int8", "int4_clip"])
def test_ipex_runs_its_own_weight_only_quantization(
    load: Loader, stories: Path, weight_dtype: str, compute_dtype: str
) -> None:
    scheme = (
        "asym" if weight_dtype == "int4_clip" else "sym"
    )  # int8 by int8 must be symmetric there
    config = {"weight_dtype": weight_dtype, "compute_dtype": compute_dtype, "scheme": scheme}
    model = load("ipex", quantization_config=config)
    agreed = 10 if weight_dtype == "int8" else 2
    assert list(tell(model).token_ids[:agreed]) == golden_ids(stories)[:agreed]
    assert model.report()["weights"]["weight_dtype"] == weight_dtype


def test_itrex_in_int8_computes_what_round_to_nearest_computes_here(
    load: Loader, stories: Path, tmp_path: Path
) -> None:
    options = {"weight_dtype": "int8", "compute_dtype": "fp32", "scale_dtype": "fp32"}
    theirs = load("itrex", quantization_config=options)
    ours = ncl.load(
        stories,
        {**options, "modules_to_not_convert": ["lm_head"]},
        cache_dir=tmp_path,
    )
    assert tell(theirs).token_ids == tell(ours).token_ids


@pytest.mark.parametrize("threads", [None, 1])
@pytest.mark.parametrize(
    ("weight_dtype", "compute_dtype"),
    [("int4_clip", "fp32"), ("int4_clip", "int8"), ("int8", "int8")],
)
def test_itrex_calculates(weight_dtype: str, compute_dtype: str, threads: int | None) -> None:
    """With fewer threads than cores QBits once left half of its work undone."""
    require("itrex")
    nano = Path(__file__).parents[2] / "examples/nano/model"
    config = {"weight_dtype": weight_dtype, "compute_dtype": compute_dtype}
    model = ncl.load(nano, config, engine="itrex", context_length=256, threads=threads)
    question = [{"role": "user", "content": "calculate 100 + 520 + 60"}]
    assert "680" in model.generate(question, max_new_tokens=120).text
    model.close()


def test_old_caches_go_back() -> None:
    """transformers 4.41, which ITREX needs, has no way to shorten one."""
    require("itrex")
    nano = Path(__file__).parents[2] / "examples/nano/model"
    model = ncl.load(nano, engine="itrex", context_length=256)
    cache = model.decoder.new_cache()
    model.decoder.forward([5, 6, 7, 8, 9], cache)
    cache.truncate(2)
    back = model.decoder.forward([10, 11], cache)
    straight = model.decoder.forward([5, 6, 10, 11], model.decoder.new_cache())
    assert back.allclose(straight, atol=1e-3)
    model.close()


def test_itrex_without_amx_refuses_bf16_in_its_own_words(load: Loader) -> None:
    if "amx_bf16" in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has AMX")
    with pytest.raises(EngineError, match=r"Qbits: device ISA must support AMX-BF16.* choose"):
        load("itrex", quantization_config={"weight_dtype": "int8", "compute_dtype": "bf16"})


@pytest.mark.parametrize("engine", ["ipex", "itrex"])
def test_old_transformers_sees_windows_and_rotary_parameters(
    engine: str, windowed_model: Path
) -> None:
    from neuralchat_lite.engines.engine import float_precision
    from neuralchat_lite.engines.remote import open_remote

    require(engine)
    environment = engine_environment(engine)
    request = request_for(windowed_model)
    precision = float_precision("torch", request, default="fp32")
    running = open_remote(
        engine, "transformers", request, precision, environment.python, environment.variables()
    )
    native = native_fp32(windowed_model)
    here, there = native.new_cache(), running.decoder.new_cache()
    # ITREX's transformers is wrong beyond the window of 8, and refused there.
    beyond = [] if engine == "itrex" else [list(range(3, 33)), [40], [41, 42]]
    for ids in ([1, 3, 4, 5], [6], [7, 8], *beyond):
        want, got = native.forward(ids, here), running.decoder.forward(ids, there)
        assert float((want - got).abs().max() / want.abs().max()) < 1e-4
    running.close()
