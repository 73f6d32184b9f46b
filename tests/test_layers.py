"""The layers of the package: imports point down, and importing it does no work."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "neuralchat_lite"
NAME = "neuralchat_lite"

# From top to bottom. A module may import from rows below its own and from its own row; a folder
# stands for all its modules. `errors` and `values` may be imported by all.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("ipex", "__main__"),
    ("cli", "transformers"),
    ("server",),
    ("mixed_precision",),
    ("api",),
    ("model",),
    ("loading",),
    ("chat",),
    ("generation",),
    ("engines",),
    ("environments",),
    ("models",),
    ("packed",),
    ("adapters",),
    ("quantization",),
    ("checkpoints",),
    ("families",),
    ("files",),
    ("kernels",),
    ("shortages",),
    ("errors", "values", "picture_style"),
)
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}
INIT_MAY_IMPORT = set(LEVEL)  # for type checkers only; test_importing_... sees that it does not


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str | None:
    """`neuralchat_lite.packed.cache` -> "weights"; the package itself -> None."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def imports(source: str) -> Iterator[str]:
    """Every module of ours that a source imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that the arrow can be read"
            if node.module == NAME:
                for alias in node.names:
                    inside = alias.name in LEVEL
                    yield f"{NAME}.{alias.name}" if inside else NAME
            elif node.module and is_ours(node.module):
                yield node.module


def is_ours(module: str) -> bool:
    return module == NAME or module.startswith(f"{NAME}.")


def violations(module: str, source: str) -> list[str]:
    own = part_of(module)
    wrong = []
    for target in imports(source):
        other = part_of(target)
        if own is None or other is None or own == other:
            continue
        if LEVEL[other] < LEVEL[own]:
            wrong.append(f"{module} imports {target}")
    return wrong


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_module_has_a_layer() -> None:
    found = {part_of(module_name(path)) for path in modules()} - {None}
    assert found <= set(LEVEL)


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_point_down(path: Path) -> None:
    assert violations(module_name(path), path.read_text(encoding="utf-8")) == []


def test_an_import_that_points_up_is_seen_wherever_it_stands() -> None:
    inside = "def f():\n    from neuralchat_lite.api import load"
    assert violations("neuralchat_lite.kernels.cpu", inside)
    assert violations("neuralchat_lite.generation.conversation", "import neuralchat_lite.api")
    assert violations("neuralchat_lite.generation.conversation", "from neuralchat_lite import api")
    assert violations("neuralchat_lite.quantization.rtn", "import neuralchat_lite.packed.cache")
    assert not violations(
        "neuralchat_lite.generation.conversation", "from neuralchat_lite.models import decoder"
    )


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def loaded_after(statement: str) -> set[str]:
    heavy = ("torch", "transformers", "huggingface_hub", "tokenizers", "safetensors", "numpy")
    code = f"import sys\n{statement}\nprint(*[name for name in {heavy!r} if name in sys.modules])"
    return set(run_python(code).split())


@pytest.mark.parametrize(
    "statement",
    [
        "import neuralchat_lite",
        "from neuralchat_lite import errors, PromptError",
        "import neuralchat_lite.cli.app",
        "import neuralchat_lite.checkpoints.hub",
        "import neuralchat_lite.transformers, neuralchat_lite.ipex",
    ],
)
def test_importing_loads_no_heavy_package(statement: str) -> None:
    assert loaded_after(statement) == set()


def test_importing_the_package_starts_no_thread_and_changes_no_environment() -> None:
    code = (
        "import os, threading, logging\nbefore = dict(os.environ)\n"
        "import neuralchat_lite.api, neuralchat_lite.cli.app\n"
        "assert dict(os.environ) == before, 'environment'\n"
        "assert threading.active_count() == 1, 'threads'\n"
        "assert not logging.getLogger().handlers\n"
        "assert not logging.getLogger('neuralchat_lite').handlers\n"
    )
    run_python(code)


def test_every_public_name_is_there() -> None:
    code = (
        "import neuralchat_lite as ncl\n"
        "for name in ncl.__all__: assert getattr(ncl, name) is not None, name\n"
        "assert set(ncl.__all__) <= set(dir(ncl)); print(ncl.__version__)"
    )
    assert run_python(code)


def test_dir_shows_public_names_alone() -> None:
    code = (
        "import neuralchat_lite as ncl\n"
        "ncl.load\n"
        "assert set(dir(ncl)) == {*ncl.__all__, '__version__'}, dir(ncl)"
    )
    run_python(code)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    run_python(
        "import neuralchat_lite\n"
        "try: neuralchat_lite.nothing\n"
        "except AttributeError as e: assert 'nothing' in str(e)\n"
        "else: raise SystemExit(1)"
    )
