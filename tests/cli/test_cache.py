"""`neuralchat-lite cache`: what it lists, finds damaged, and removes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Run = Callable[..., tuple[int, str, str]]


def test_cache_lists_verifies_and_removes(run: Run, stories: str, cache: Path) -> None:
    folder = Path(run("quantize", stories)[1].strip())
    assert folder.parent == cache
    assert run("cache", "list")[1].startswith(f"{folder.name}\t")
    assert run("cache", "verify")[:2] == (0, f"{folder.name}\twhole\n")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    code, out, err = run("cache", "verify")
    assert code == 2
    assert "damaged: " in out
    assert f"cache remove {folder.name}" in err
    assert run("cache", "remove", folder.name)[:2] == (0, f"{folder.name}\tremoved\n")
    assert not folder.exists()
    assert run("cache", "list")[1] == ""


def test_the_cache_removes_only_what_it_made(run: Run, stories: str, cache: Path) -> None:
    run("generate", stories, "-p", "Once", "--max-new-tokens", "1")
    thesis = cache / "thesis-int4-g32-notes"
    thesis.mkdir()
    (thesis / "text").write_text("precious")
    unfinished = cache / ".tmp-0123-4194304"  # no process has so large a number
    unfinished.mkdir()
    (unfinished / "part").write_bytes(bytes(5000))
    code, out, err = run("cache", "list")
    assert code == 0 and "thesis" not in out and "1 model," in err
    assert "5 kB of interrupted runs" in err
    assert run("cache", "remove", "thesis-int4-g32-notes")[0] == 2
    assert run("cache", "remove", "--all")[0] == 0
    assert (thesis / "text").read_text() == "precious"
    assert not unfinished.exists()
    assert run("cache", "list")[1] == ""


def test_an_entry_without_its_weights_is_not_called_whole(
    run: Run, stories: str, cache: Path
) -> None:
    run("generate", stories, "-p", "Once", "--max-new-tokens", "1")
    next(cache.glob("*/model.safetensors")).unlink()
    _, out, _ = run("cache", "list")
    assert "model.safetensors cannot be read" in out and "whole" not in out
