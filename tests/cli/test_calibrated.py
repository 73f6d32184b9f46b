"""Every algorithm runs from the command line, with every scheme and group size."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from neuralchat_lite.kernels.layout import PackedMatrix
from neuralchat_lite.packed.format import open_packed

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]
NANO = str(ROOT / "examples/nano/model")
# Algorithm -> the package that computes it, and settings that make it quick.
ALGORITHMS = {
    "gptq": ("neural_compressor", ()),
    "autoround": ("auto_round", ("--algorithm-arg", "iters=12")),
    "awq": ("neural_compressor", ()),
    "teq": ("neural_compressor", ("--algorithm-arg", "iters=5")),
    "hqq": ("neural_compressor", ("--algorithm-arg", "iters=3")),
}
NAME = "model.layers.3.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The matrices are little: threads of torch would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Solved problems of the kind that nano was trained on, as JSONL with messages."""
    sys.path.insert(0, str(ROOT / "examples/nano"))
    try:
        from problems import held_out_problems  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    file = tmp_path_factory.mktemp("texts") / "problems.jsonl"
    lines = [
        [*problem.messages(), {"role": "assistant", "content": problem.answer}]
        for problem in held_out_problems(20)
    ]
    file.write_text("\n".join(json.dumps({"messages": line}) for line in lines))
    return str(file)


LAYOUTS = [
    *itertools.product(ALGORITHMS, ("sym", "asym"), ("32", "128")),
    *itertools.product(("hqq", "awq", "teq"), ("affine", "affine8"), ("32",)),
]


@pytest.mark.parametrize(("algorithm", "scheme", "group_size"), LAYOUTS)
def test_every_algorithm_runs_with_every_scheme_and_group_size(
    algorithm: str, scheme: str, group_size: str, run: Run, problems: str, tmp_path: Path
) -> None:
    package, settings = ALGORITHMS[algorithm]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install '.[calibration]'")
    texts = ("--calibration", problems, "--calibration-samples", "4", "--calibration-length", "64")
    layout = ("--scheme", scheme, "--group-size", group_size)
    made = tmp_path / "made"
    command = ("quantize", NANO, "-o", str(made), "--algorithm", algorithm)
    code, out, err = run(*command, *layout, *settings, *(texts if algorithm != "hqq" else ()))
    assert (code, out) == (0, f"{made}\n"), err
    manifest = json.loads((made / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["quantizer"]["name"] == algorithm
    assert [path.name for path in tmp_path.iterdir()] == ["made"], "unfinished work was left"
    plain = tmp_path / "plain"
    assert run("quantize", NANO, "-o", str(plain), *layout)[0] == 0
    ours, nearest = (open_packed(folder).weight(NAME) for folder in (made, plain))
    assert isinstance(ours, PackedMatrix) and isinstance(nearest, PackedMatrix)
    assert not torch.equal(ours.codes, nearest.codes)
    reply = run("generate", str(made), "-p", "calculate 1 + 2", "--max-new-tokens", "60")
    assert "Answer: 3" in reply[1]


def test_matrices_have_settings_of_their_own_beside_an_algorithm(
    run: Run, problems: str, tmp_path: Path
) -> None:
    if importlib.util.find_spec("neural_compressor") is None:
        pytest.skip("neural_compressor is not installed: pip install '.[calibration]'")
    texts = ("--calibration", problems, "--calibration-samples", "2", "--calibration-length", "32")
    mix = ("--override", "lm_head=int8,group_size=64", "--override", "*.v_proj=int8,scheme=asym")
    made = tmp_path / "made"
    command = ("quantize", NANO, "-o", str(made), "--algorithm", "gptq", "--group-size", "128")
    assert run(*command, *texts, *mix)[0] == 0
    packed = open_packed(made)
    found = {}
    for name in ("lm_head", "model.layers.1.self_attn.v_proj", "model.layers.1.mlp.up_proj"):
        matrix = packed.weight(f"{name}.weight")
        assert isinstance(matrix, PackedMatrix)
        found[name.rpartition(".")[2]] = (matrix.weight_dtype, matrix.group_size, matrix.scheme)
    assert found == {
        "lm_head": ("int8", 64, "sym"),
        "v_proj": ("int8", 128, "asym"),
        "up_proj": ("int4", 128, "sym"),
    }


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_missing_package_is_named_with_its_extra(
    algorithm: str, run: Run, problems: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    missing = ("neural_compressor", "auto_round")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    texts = () if algorithm == "hqq" else ("--calibration", problems)
    code, out, err = run("quantize", NANO, "--algorithm", algorithm, *texts)
    assert (code, out) == (2, "")
    assert f"algorithm={algorithm.upper()!r} needs the package" in err
    assert "pip install 'neuralchat_lite[calibration]'" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--algorithm", "gptq", "--scheme", "affine"), "gives integer zero points, and scheme="),
        (
            ("--algorithm", "autoround", "--override", "*.q_proj=scheme=affine8"),
            "gives integer zero points, and scheme='affine8' has minima: use scheme='asym'",
        ),
        (
            ("--algorithm", "hqq", "--override", "*.q_proj=int8,scheme=affine8"),
            "scheme='affine8' is for weight_dtype='int4', got weight_dtype='int8': use",
        ),
        (("--algorithm", "hqq", "--override", "*.x_proj=int8"), "matches no matrix of this model"),
        (
            ("--algorithm", "hqq", "--calibration", "{texts}", "--calibration-length", "2"),
            "algorithm 'hqq' looks at weights alone",
        ),
        (("--algorithm", "gptq"), "algorithm='GPTQ' needs texts to calibrate with, got none"),
        (("--algorithm", "best"), "algorithm must be one of"),
        (
            ("--calibration", "{texts}", "--calibration-length", "2"),
            "algorithm 'rtn' looks at weights alone",
        ),
        (("--calibration-samples", "4"), "--calibration-samples 4 needs texts"),
        (
            ("--algorithm", "gptq", "--algorithm-arg", "damp=0.1"),
            r"'damp' is not a setting of GPTQ",
        ),
        (
            ("--algorithm", "gptq", "--algorithm-arg", "percdamp=2"),
            "percdamp of GPTQ must be a number above 0, at most 1, got 2",
        ),
        (("--algorithm", "gptq", "--algorithm-arg", "mse"), "has no '='"),
        (
            ("--algorithm", "gptq", "--calibration", "{texts}", "--calibration-length", "100000"),
            "a sample has",
        ),
        (("--algorithm", "gptq", "--calibration", "/nowhere.txt"), "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_told_with_its_remedy(
    given: tuple[str, ...], message: str, run: Run, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("calculate 1 + 2\n")
    filled = [part.format(texts=texts) for part in given]
    code, out, err = run("quantize", NANO, *filled)
    assert (code, out) == (2, "")
    assert message in err and ":" in err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{", "line 1 is not JSON"),
        ('{"text": "a"}\n{"prompt": "a"}', "line 2 has neither text nor messages"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "text 1 cannot be used"),
        ("  \n", "is empty"),
    ],
)
def test_bad_lines_are_named(lines: str, message: str, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(lines)
    code, _, err = run("quantize", NANO, "--algorithm", "gptq", "--calibration", str(file))
    assert code == 2 and message in err, err
