"""What people see while weights are quantized."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import neuralchat_lite as ncl
from neuralchat_lite.files import progress_bar
from neuralchat_lite.files.progress import Progress
from neuralchat_lite.files.progress_bar import ProgressBar


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


WORK: dict[str, Callable[..., object]] = {
    "load": lambda model, out, **more: ncl.load(model, cache_dir=out, **more),
    "quantize": lambda model, out, **more: ncl.quantize(model, output=out, **more),
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_python_shows_a_bar_on_a_terminal_and_a_log_elsewhere(
    work: Callable[..., object],
    stories: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "neuralchat_lite")
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    work(stories, tmp_path / "bar")
    assert "Quantizing: " in screen.getvalue() and "B/s" in screen.getvalue()
    assert "Quantizing" not in caplog.text

    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    work(stories, tmp_path / "log")
    assert "Quantizing (" in caplog.text
    assert file.getvalue() == ""

    caplog.clear()
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    work(stories, tmp_path / "silent", progress=False)
    assert (screen.getvalue(), caplog.text) == ("", "")


def test_a_notebook_counts_as_somebody_who_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for config, drawn in (({"IPKernelApp": {}}, True), ({}, False)):
        shell = SimpleNamespace(config=config)
        ipython = SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", ipython)  # type: ignore[arg-type]
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        assert progress_bar.can_draw() is drawn


def test_a_bar_counts_each_file_to_its_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Screen())
    with ProgressBar() as bar:
        for name, total in (("a", 5), ("b", 900)):
            for done in (1, total):
                bar.update(Progress("hash", name, done, total))
                assert (bar.bar.n, bar.bar.total) == (done, total)
        bar.update(Progress("wait", "x", 0, 0))
        assert bar.bar.total is None


@pytest.mark.parametrize("value", ["yes", 1, 0, []])
def test_another_value_of_progress_is_refused(value: object, stories: Path, tmp_path: Path) -> None:
    with pytest.raises(ncl.ConfigError, match="progress must be a function, False"):
        ncl.load(stories, cache_dir=tmp_path, progress=value)  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())
