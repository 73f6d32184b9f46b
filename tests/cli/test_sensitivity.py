"""`neuralchat-lite sensitivity`: from a text to a mix, and from the mix to a quantized model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import neuralchat_lite as ncl
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

Run = Callable[..., tuple[int, str, str]]
NANO = str(Path(__file__).parents[2] / "examples/nano/model")
LINES = ["calculate 12 + 30", "what is 7 * 8 + 5?", "please add 100, 20 and 3", "5 - 2 = 3"]


@pytest.fixture
def texts(tmp_path: Path) -> str:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(f"{line}, number {i}" for i in range(40) for line in LINES))
    return str(file)


@pytest.fixture
def given(texts: str) -> tuple[str, ...]:
    return ("--calibration", texts, "--calibration-samples", "2", "--calibration-length", "48")


def figures(err: str) -> dict[str, list[float]]:
    """The two rows of the table on stderr: bits, sum, KL, KL on other text."""
    rows = [line for line in err.splitlines() if line.startswith(("as configured", "proposed"))]
    words = [row.replace("as configured", "configured").split() for row in rows]
    # The size has a unit.
    return {row[0]: [float(row[1]), *map(float, row[4:])] for row in words}


def test_the_proposed_mix_takes_no_more_bytes_and_loses_less(
    run: Run, given: tuple[str, ...], tmp_path: Path, cache: Path
) -> None:
    mix = tmp_path / "mix.json"
    code, out, err = run("sensitivity", NANO, *given, "-o", str(mix))
    assert code == 0, err
    assert json.loads(out) == json.loads(mix.read_text())
    found = figures(err)
    (bits, _, kl, _), (wanted_bits, _, wanted_kl, _) = found["proposed"], found["configured"]
    assert bits <= wanted_bits and kl < 0.9 * wanted_kl
    made = run("quantize", NANO, "--config", str(mix))[1].strip()
    stored = open_packed(made).config
    assert stored.bytes_config() == WeightOnlyQuantConfig(**json.loads(out)).bytes_config()
    assert stored.overrides
    (measured,) = (cache / "sensitivity").glob("*.jsonl")
    before = measured.read_bytes()
    code, out, err = run("sensitivity", NANO, *given, "--budget", "6")
    assert code == 0 and figures(err)["proposed"][0] == pytest.approx(6, abs=0.1)
    assert measured.read_bytes() == before, "another budget needs no measuring"


def test_a_limit_of_divergence_is_kept_as_it_is_measured(run: Run, given: tuple[str, ...]) -> None:
    _, out, err = run("sensitivity", NANO, *given)
    limit = figures(err)["configured"][2] / 3
    code, out, err = run("sensitivity", NANO, *given, "--kl", f"{limit:.6f}")
    assert code == 0 and figures(err)["proposed"][2] <= limit
    code, out, err = run("sensitivity", NANO, *given, "--kl", "1e-12")
    assert (code, out) == (2, "") and "kl=1e-12 is not reached" in err


def test_python_has_the_same_and_more_candidates(texts: str, tmp_path: Path) -> None:
    calibration = {"file": texts, "samples": 2, "length": 48}
    found = ncl.sensitivity(
        NANO,
        {"group_size": 128},
        calibration=calibration,
        budget="1.7MB",
        candidates=["int8", {"weight_dtype": "int4", "group_size": 32}],
        cache_dir=tmp_path,
    )
    assert found.proposed.nbytes <= 1_700_000 and found.proposed.kl < found.configured.kl
    assert found.tokens == 96 and found.proposed.kl_elsewhere is not None
    assert found.options["group_size"] == 128 and found.options["overrides"] == found.overrides
    made = ncl.quantize(NANO, found.options, tmp_path / "made")
    assert open_packed(made).config.overrides
    mixed = {option.settings.group_size for option in found.chosen}
    assert mixed == {32, 128}


def test_pictures_are_drawn_for_light_and_dark(
    run: Run, given: tuple[str, ...], tmp_path: Path
) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed: pip install '.[plot]'")
    for name in ("mix.svg", "mix.png"):
        assert run("sensitivity", NANO, *given, "--plot", str(tmp_path / name))[0] == 0
    svg = (tmp_path / "mix.svg").read_text()
    assert "prefers-color-scheme: dark" in svg and "self_attn.q_proj" in svg
    style = svg.partition("</style>")[0]
    assert "#1f2430" in style and "#1f2430" not in svg.removeprefix(style)
    assert (tmp_path / "mix.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "sensitivity needs texts to measure on, got none: give calibration=FILE"),
        (("--calibration", "{texts}", "--budget", "much"), "budget must be bits per weight such"),
        (("--calibration", "{texts}", "--budget", "5 TB"), "a unit is one of"),
        (("--calibration", "{texts}", "--budget", "-1"), "budget must be bits per weight"),
        (("--calibration", "{texts}", "--budget", "2"), "is too small: the smallest candidates"),
        (("--calibration", "{texts}", "--kl", "0"), "kl must be a positive number of nats"),
        (("--calibration", "{texts}", "--kl", "1", "--budget", "5"), "the only budget"),
        (("--calibration", "{texts}", "--candidate", "int3"), "weight_dtype must be one of"),
        (("--calibration", "{texts}", "--compute-dtype", "int8"), "not a property of weights"),
        (("--calibration", "{texts}", "--plot", "mix.jpg"), "must end in .svg"),
        (("--calibration", "{texts}", "-o", "/nowhere/mix.json"), "/nowhere is not a folder"),
        (("--calibration", "{texts}", "--config", "/nowhere.json"), "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_told_with_its_remedy(
    options: tuple[str, ...], message: str, run: Run, texts: str
) -> None:
    short = ("--calibration-samples", "1", "--calibration-length", "8") if options else ()
    code, out, err = run(
        "sensitivity", NANO, *(part.format(texts=texts) for part in options), *short
    )
    assert (code, out) == (2, "")
    assert message in err, err


def test_a_quantized_folder_and_whole_blocks_are_refused(
    run: Run, texts: str, tmp_path: Path
) -> None:
    made = run("quantize", NANO)[1].strip()
    code, _, err = run("sensitivity", made, "--calibration", texts)
    assert code == 2 and "is quantized already: give the checkpoint" in err
    with pytest.raises(ConfigError, match=r"algorithm='GPTQ' a whole block"):
        ncl.sensitivity(NANO, {"algorithm": "GPTQ"}, calibration=texts, cache_dir=tmp_path)


def test_a_matplotlib_that_is_missing_is_named_before_anything_is_measured(
    run: Run, texts: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    code, _, err = run("sensitivity", NANO, "--calibration", texts, "--plot", "mix.svg")
    assert code == 2 and "pip install 'neuralchat_lite[plot]'" in err
    assert not (cache / "sensitivity").exists()


def test_a_cache_that_cannot_be_written_is_told(run: Run, texts: str, cache: Path) -> None:
    cache.mkdir()
    (cache / "sensitivity").write_text("in the place of the folder")
    short = ("--calibration-samples", "1", "--calibration-length", "8")
    code, _, err = run("sensitivity", NANO, "--calibration", texts, *short)
    assert code == 2 and "cannot be written" in err and err.count("\n") == 2, err


# ---- --config ----


def test_options_replace_those_of_the_file_and_overrides_come_before_its(
    run: Run, tmp_path: Path, stories: str
) -> None:
    file = tmp_path / "mix.json"
    noted = {"group_size": 64, "overrides": {"model.layers.0.*": "int8", "*.q_proj": "int8"}}
    file.write_text(json.dumps(noted))
    more = ("--group-size", "128", "--override", "*.q_proj=group_size=32")
    made = run("quantize", stories, "--config", str(file), *more)[1].strip()
    config = open_packed(made).config
    assert config.group_size == 128
    assert [each.pattern for each in config.overrides] == ["*.q_proj", "model.layers.0.*"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "mix.json: the quantization config is not JSON"),
        ('{"wieght_dtype": "int4"}', "mix.json: 'wieght_dtype' is not an option"),
        ('{"overrides": {"lm_head": "int3"}}', "mix.json: overrides['lm_head']: weight_dtype must"),
    ],
)
def test_a_bad_configuration_file_is_named(
    text: str, message: str, run: Run, tmp_path: Path, stories: str
) -> None:
    file = tmp_path / "mix.json"
    file.write_text(text)
    code, out, err = run("quantize", stories, "--config", str(file))
    assert (code, out) == (2, "") and message in err, err
