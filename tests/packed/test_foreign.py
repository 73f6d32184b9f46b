"""What the readers of transformers make of a quantized folder: they refuse it, by our name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

import neuralchat_lite as ncl
from neuralchat_lite.packed.foreign import KEY, REMEDY, marked
from neuralchat_lite.packed.manifest import file_entry

NANO = Path(__file__).parents[2] / "examples/nano/model"
READERS: dict[str, Callable[[Path], Any]] = {
    "AutoModelForCausalLM": hf.AutoModelForCausalLM.from_pretrained,
    "AutoModel": hf.AutoModel.from_pretrained,
    "the model's class": hf.MistralForCausalLM.from_pretrained,
    "pipeline": lambda folder: hf.pipeline("text-generation", model=str(folder)),
}
ALONE = """
import sys, transformers
try:
    transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
except ValueError as error:
    assert not [name for name in sys.modules if name.startswith("neuralchat_lite")]
    sys.exit(f"refused: {error}")
"""


def unmark(folder: Path) -> Path:
    """A folder as release 0.1 wrote it."""
    config = json.loads((folder / "config.json").read_text())
    del config[KEY]
    data = json.dumps(config).encode()
    (folder / "config.json").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["config.json"] = file_entry(data)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ncl.quantize(NANO, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def folders(entry: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A quantized folder in each of the ways in which one is made."""
    base = tmp_path_factory.mktemp("folders")
    return {
        "cache": entry,
        "quantize": ncl.quantize(NANO, output=base / "quantized"),
        "save_pretrained": ncl.load(entry).save_pretrained(base / "saved"),
    }


@pytest.mark.parametrize("way", ["cache", "quantize", "save_pretrained"])
@pytest.mark.parametrize("reader", READERS)
def test_readers_of_transformers_refuse_a_quantized_folder(
    folders: dict[str, Path], reader: str, way: str
) -> None:
    with pytest.raises(ValueError, match=r"quantized by neuralchat_lite.*neuralchat_lite\.load"):
        READERS[reader](folders[way])


def test_they_refuse_it_where_this_package_was_not_imported(folders: dict[str, Path]) -> None:
    command = [sys.executable, "-c", ALONE, str(folders["save_pretrained"])]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 1 and "refused: " in done.stderr and REMEDY in done.stderr


def test_the_harness_refuses_it(folders: dict[str, Path]) -> None:
    models = pytest.importorskip("lm_eval.models.huggingface")
    with pytest.raises(ValueError, match="quantized by neuralchat_lite"):
        models.HFLM(pretrained=str(folders["save_pretrained"]), device="cpu")


def test_its_configuration_and_tokenizer_are_read_as_before(folders: dict[str, Path]) -> None:
    folder = folders["save_pretrained"]
    plain = hf.AutoConfig.from_pretrained(NANO).to_dict()
    found = hf.AutoConfig.from_pretrained(folder).to_dict()
    assert found.pop(KEY) == REMEDY
    assert found == plain | {"_name_or_path": str(folder)}
    text = "calculate 12 + 30"
    wanted = hf.AutoTokenizer.from_pretrained(NANO)(text).input_ids
    assert hf.AutoTokenizer.from_pretrained(folder)(text).input_ids == wanted


def test_folders_of_older_releases_are_read_and_their_copies_are_marked(tmp_path: Path) -> None:
    old = unmark(ncl.quantize(NANO, output=tmp_path / "old"))
    model = ncl.load(old)
    wanted = ncl.load(NANO, cache_dir=tmp_path / "cache").generate("12 + 30", max_new_tokens=5)
    assert model.generate("12 + 30", max_new_tokens=5).token_ids == wanted.token_ids
    copy = model.save_pretrained(tmp_path / "copy")
    assert json.loads((copy / "config.json").read_text())[KEY] == REMEDY
    again = ncl.load(copy)
    assert again.generate("12 + 30", max_new_tokens=5).token_ids == wanted.token_ids


def test_a_marked_configuration_is_marked_as_before() -> None:
    once = marked(b'{"model_type": "mistral", "transformers_weights": "other.safetensors"}')
    assert marked(once) == once and json.loads(once)["model_type"] == "mistral"


def test_the_configuration_of_the_drop_in_model_has_no_mark(folders: dict[str, Path]) -> None:
    from neuralchat_lite.transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders["save_pretrained"])
    assert not hasattr(model.config, KEY)
