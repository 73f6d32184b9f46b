"""Hub names, with a client that is a stub, and offline with the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from neuralchat_lite.checkpoints.hub import ADAPTER, resolve
from neuralchat_lite.errors import CheckpointError, HubError

huggingface_hub = pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ON_THE_HUB = (
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "consolidated.safetensors",
    "pytorch_model-00001-of-00002.bin",
    "model.pt",
    "modeling_custom.py",
    "onnx/model.onnx",
    "original/model.safetensors",
    "README.md",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


class StubHub:
    """`snapshot_download` over a list of file names; it keeps what it was asked for."""

    def __init__(self, cache: Path, files: tuple[str, ...] = ON_THE_HUB) -> None:
        self.cache, self.files = cache, files
        self.asked: dict[str, Any] = {}
        self.error: Exception | None = None

    def __call__(self, repo_id: str, *, allow_patterns: list[str], **asked: Any) -> str:
        self.asked = {"repo_id": repo_id, **asked}
        if self.error:
            raise self.error
        folder = self.cache / f"models--{repo_id.replace('/', '--')}/snapshots/{COMMIT}"
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.files:
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(b"")
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubHub:
    stub = StubHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stub)
    monkeypatch.chdir(tmp_path)
    return stub


def test_name_becomes_a_folder_and_a_commit(hub: StubHub) -> None:
    found = resolve("Intel/neural-chat-7b-v3-2", revision="main", token="secret")
    assert found.hub == ("Intel/neural-chat-7b-v3-2", COMMIT)
    assert found.folder.name == COMMIT
    assert hub.asked == {
        "repo_id": "Intel/neural-chat-7b-v3-2",
        "revision": "main",
        "token": "secret",
        "cache_dir": None,
        "local_files_only": False,
    }


def test_only_configuration_tokenizer_and_safetensors_are_downloaded(hub: StubHub) -> None:
    folder = resolve("org/model").folder
    got = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    unwanted = {
        "consolidated.safetensors",
        "pytorch_model-00001-of-00002.bin",
        "model.pt",
        "modeling_custom.py",
        "onnx/model.onnx",
        "original/model.safetensors",
        "README.md",
    }
    assert got == set(ON_THE_HUB) - unwanted


def test_of_an_adapter_only_its_config_weights_and_tokenizer_are_downloaded(hub: StubHub) -> None:
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    hub.files = (*ON_THE_HUB, *adapter, "adapter_model.bin", "checkpoint-9/adapter_config.json")
    found = resolve("org/sft", kind=ADAPTER)
    assert found.hub == ("org/sft", COMMIT)
    tokenizer = {name for name in ON_THE_HUB if name.startswith(("token", "special", "chat"))}
    assert {path.name for path in found.folder.iterdir()} == adapter | tokenizer


def test_adapter_without_safetensors_is_refused(hub: StubHub) -> None:
    hub.files = ("adapter_config.json", "adapter_model.bin")
    with pytest.raises(
        HubError, match=r"has no adapter_model\.safetensors.*peft's save_pretrained"
    ):
        resolve("org/sft", kind=ADAPTER)
    with pytest.raises(CheckpointError, match="give the path of an adapter folder"):
        resolve("missing", kind=ADAPTER)


def test_a_single_file_is_downloaded_alone(hub: StubHub) -> None:
    hub.files = (*ON_THE_HUB, "m.Q4_0.gguf", "m.Q8_0.gguf")
    found = resolve("some/model", file="m.Q8_0.gguf")
    assert found.hub == ("some/model", COMMIT)
    assert found.folder.parent.name == COMMIT
    assert [path.name for path in found.folder.parent.iterdir()] == ["m.Q8_0.gguf"]
    with pytest.raises(HubError, match=r"has no m.Q5_0.gguf: choose a file that the repository"):
        resolve("some/model", file="m.Q5_0.gguf")


def test_existing_folder_wins_over_a_name(hub: StubHub, tmp_path: Path) -> None:
    (tmp_path / "org/model").mkdir(parents=True)
    found = resolve("org/model")
    assert (found.folder, found.hub) == (Path("org/model"), None)
    assert hub.asked == {}


def test_repository_without_safetensors_is_refused(hub: StubHub) -> None:
    hub.files = ("config.json", "pytorch_model.bin")
    with pytest.raises(HubError, match=r"has no model\*\.safetensors.*save_pretrained"):
        resolve("org/model")


@pytest.mark.parametrize("path", ["./missing", "/missing", "a/b/c", "missing", "../x", "a//b"])
def test_path_that_does_not_exist_is_not_taken_for_a_name(hub: StubHub, path: str) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        resolve(path)
    assert hub.asked == {}


def test_empty_text_is_not_the_current_folder(hub: StubHub) -> None:
    with pytest.raises(CheckpointError, match="empty string"):
        resolve("")


def test_path_object_is_never_a_name(hub: StubHub) -> None:
    with pytest.raises(CheckpointError, match="no folder 'org/model'"):
        resolve(Path("org/model"))
    assert hub.asked == {}


def test_file_is_refused(hub: StubHub, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file, expected a model folder"):
        resolve(tmp_path / "model.safetensors")


def test_revision_of_a_folder_is_refused(hub: StubHub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"revision 'main'.*leave it out"):
        resolve(tmp_path, revision="main")


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("GatedRepoError", "access must be requested.*HF_TOKEN"),
        ("RepositoryNotFoundError", "no such repository, or it is private.*spelling"),
        ("RevisionNotFoundError", "no such revision: give an existing branch"),
        ("LocalEntryNotFoundError", "not reachable.*check the connection"),
    ],
)
def test_each_failure_of_the_hub_names_its_remedy(hub: StubHub, kind: str, remedy: str) -> None:
    errors = pytest.importorskip("huggingface_hub.errors")
    error = getattr(errors, kind).__new__(getattr(errors, kind), "details\nmore")
    hub.error = error
    with pytest.raises(HubError, match=f"cannot get org/model at revision 'x': .*{remedy}"):
        resolve("org/model", revision="x")


def test_full_disk_is_told_as_it_is(hub: StubHub) -> None:
    hub.error = OSError(28, "No space left on device")
    with pytest.raises(HubError, match=r"No space left on device.*try again"):
        resolve("org/model")


def offline(tmp_path: Path, name: str) -> str:
    """What the real client, offline and with an empty cache, makes of a name."""
    code = (
        "from neuralchat_lite.checkpoints.hub import resolve\n"
        "from neuralchat_lite.errors import HubError\n"
        f"try: print(resolve({name!r}))\n"
        "except HubError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    return done.stdout.strip()


def test_offline_an_uncached_name_gives_one_clear_error(tmp_path: Path) -> None:
    said = offline(tmp_path, "Intel/neural-chat-7b-v3-2")
    assert "\n" not in said
    assert said.startswith("cannot get Intel/neural-chat-7b-v3-2: it is not in the local cache")
    for remedy in ("download it beforehand", "path of a model folder", "unset HF_HUB_OFFLINE"):
        assert remedy in said


def test_offline_a_cached_name_is_found_under_hf_home(tmp_path: Path) -> None:
    repository = tmp_path / "hub/models--org--model"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    said = offline(tmp_path, "org/model")
    assert f"('org/model', '{COMMIT}')" in said
