"""The table of engines, and the files and requirements that its rows name."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from benchmarks.engines.environments import environment_of, python_of
from benchmarks.engines.table import ENGINES, FOLDER, all_variants, chosen_variants
from benchmarks.latency.cases import PROFILES
from neuralchat_lite.errors import ConfigError, EngineError


def functions(path: Path) -> set[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_file_defines_what_the_worker_calls(name: str) -> None:
    engine = ENGINES[name]
    wanted = {"versions", "load"}
    if any(stored for _, stored in engine.variants.values()):
        wanted.add("prepare")
    assert wanted <= functions(engine.path)


def test_rivals_give_logits() -> None:
    """Or they could not be asked what the others are."""
    for name in (name for name, engine in ENGINES.items() if engine.loaded is None):
        text = ENGINES[name].path.read_text(encoding="utf-8")
        assert "def logits(self, ids, tail):" in text or "HuggingFaceEngine" in text


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_engine_files_run_without_this_library(path: Path) -> None:
    ours = {"benchmarks"} if path.name == "native.py" else {"benchmarks", "neuralchat_lite"}
    assert not imported(path) & ours


@pytest.mark.parametrize("name", ENGINES)
def test_an_environment_says_what_it_costs(name: str) -> None:
    environment = environment_of(name)
    if environment is None:
        assert python_of(name) == Path(sys.executable)
        return
    assert {"about", "download", "disk", "python"} <= environment.facts().keys()


def test_variants_that_load_the_same_files_were_converted_alike() -> None:
    """Only what decides arithmetic may differ between variants of one stored format."""
    arithmetic = {"compute_dtype"}
    by_format: dict[tuple[str, str], list[dict]] = {}
    for variant in all_variants():
        if variant.stored is not None:
            rest = {k: v for k, v in variant.options.items() if k not in arithmetic}
            by_format.setdefault((variant.engine, variant.stored), []).append(rest)
    for alike in by_format.values():
        assert all(options == alike[0] for options in alike)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_name_variants_that_exist(name: str) -> None:
    assert chosen_variants(PROFILES[name].variants)


def test_an_engine_stands_for_all_its_variants_in_the_order_of_the_table() -> None:
    chosen = [variant.label for variant in chosen_variants(["transformers", "llamacpp:Q8_0"])]
    assert chosen == ["transformers:bf16", "transformers:fp32", "llamacpp:Q8_0"]


@pytest.mark.parametrize(
    ("name", "choices"), [("vllm", "transformers"), ("llamacpp:Q5_K", "Q4_K_M"), ("x:y", "ipex")]
)
def test_a_name_that_is_not_there_is_refused_with_those_that_are(name: str, choices: str) -> None:
    with pytest.raises(ConfigError, match=choices):
        chosen_variants([name])


def test_a_file_has_variants_of_its_own() -> None:
    chosen = chosen_variants(["llamacpp", "neuralchat_lite:as-is"], file=True)
    assert [variant.label for variant in chosen] == ["neuralchat_lite:as-is", "llamacpp:as-is"]
    refused = {
        ("transformers:bf16", True): "choose one of neuralchat_lite, llamacpp",
        ("llamacpp:Q4_0", True): "choose one of as-is",
        ("llamacpp:as-is", False): "choose one of Q4_0",
    }
    for (name, file), why in refused.items():
        with pytest.raises(ConfigError, match=why):
            chosen_variants([name], file=file)


def test_an_engine_that_is_not_installed_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURALCHAT_LITE_ENVIRONMENTS", str(tmp_path))
    with pytest.raises(EngineError, match="python -m benchmarks setup llamacpp"):
        python_of("llamacpp")
