"""The notebooks run from top to bottom, and are committed with the outputs of such a run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from .patience import patience

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
# What is committed has the figures of 200 problems; that every cell runs is seen with 6.
FEWER = ("held_out_problems(200)", "held_out_problems(6)")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURALCHAT_LITE_CACHE", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # little models are faster so
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace(*FEWER)
    place = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=int(patience(300)), resources=place).execute()


def test_the_notebooks_ask_for_what_is_cut_down_here() -> None:
    assert sum(path.read_text(encoding="utf-8").count(FEWER[0]) for path in NOTEBOOKS) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_with_its_outputs(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    text = path.read_text(encoding="utf-8")
    assert '"output_type": "error"' not in text
    assert str(Path.home()) not in text and "/tmp/" not in text
