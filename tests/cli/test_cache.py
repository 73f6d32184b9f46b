"""`neuralchat-lite cache`: what it lists, finds damaged, and removes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import neuralchat_lite

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


def test_the_list_says_from_where_and_when(
    run: Run, stories: str, cache: Path, tmp_path: Path
) -> None:
    source = tmp_path / "my\tmodel"
    shutil.copytree(stories, source)
    before = datetime.now().replace(second=0, microsecond=0)
    run("quantize", str(source))
    name, size, date, made_from, settings, state = run("cache", "list")[1].rstrip("\n").split("\t")
    assert name.startswith("my_model-int4-g32-") and size.endswith("kB") and state == "whole"
    assert settings == "int4 affine8 g32, head int8"
    assert made_from == str(source).replace("\t", " ")
    assert before <= datetime.strptime(date, "%Y-%m-%d %H:%M") <= datetime.now()
    copy = neuralchat_lite.load(source).save_pretrained(tmp_path / "copy")
    assert str(tmp_path) not in (copy / "manifest.json").read_text()


def test_the_beginning_of_a_name_will_do_when_only_one_has_it(run: Run, stories: str) -> None:
    first = Path(run("quantize", stories)[1].strip())
    second = Path(run("quantize", stories, "--group-size", "64")[1].strip())
    stem = first.name.partition("-int4")[0]
    for command in ("remove", "verify"):
        code, _, err = run("cache", command, stem)
        assert code == 2 and err.count("\n") == 1
        assert first.name in err and second.name in err and "give more of the name" in err
    assert run("cache", "remove", "")[0] == 2
    assert run("cache", "verify", f"{stem}-int4-g32", first.name)[1] == f"{first.name}\twhole\n"
    assert run("cache", "remove", f"{stem}-int4-g32")[1] == f"{first.name}\tremoved\n"
    assert second.exists() and not first.exists()
    assert run("cache", "remove", "")[0] == 2  # not the only one either
    assert run("cache", "remove", stem)[0] == 0 and not second.exists()


def test_entries_with_equal_names_are_told_apart_by_their_settings(run: Run, stories: str) -> None:
    ways: dict[str, tuple[str, ...]] = {
        "int4 affine8 g32, head int8": (),
        "int4 asym g32, head int8": ("--scheme", "asym"),
        "int4 affine8 g32, lm_head=int4,scale_dtype=bf16, model.layers.0.*=group_size=64": (
            "--override",
            "lm_head=int4,scale_dtype=bf16",
            "--override",
            "model.layers.0.*=group_size=64",
        ),
    }
    made = {
        Path(run("quantize", stories, *way)[1].strip()).name: text for text, way in ways.items()
    }
    rows = [line.split("\t") for line in run("cache", "list")[1].splitlines()]
    assert {row[0]: row[4] for row in rows} == made
    assert len({name.rpartition("-")[0] for name in made}) == 1, "the names are the same but for it"


def test_listing_and_removing_load_no_heavy_package(run: Run, stories: str) -> None:
    folder = Path(run("quantize", stories)[1].strip())
    code = (
        "import sys\nfrom neuralchat_lite.cli.app import app\n"
        "app(['cache', 'list'], standalone_mode=False)\n"
        f"app(['cache', 'remove', {folder.name!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'safetensors', 'tqdm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(folder.name) == 2


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
