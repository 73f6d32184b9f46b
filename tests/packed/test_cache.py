import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.errors import CacheError, ConfigError
from neuralchat_lite.files import digests
from neuralchat_lite.packed import cache
from neuralchat_lite.packed.cache import cache_root, cached, entries, remove, verify
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.quantization import nearest, open_quantizer
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.quantizer import QuantizerIdentity

from ..patience import patience

INT4 = WeightOnlyQuantConfig()
# About half a second of quantizing.
MEDIUM = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4}


@pytest.fixture
def checkpoint(write_checkpoint):
    return open_checkpoint(write_checkpoint())


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


def stages(steps):
    return {step.stage for step in steps}


def test_the_second_time_nothing_is_quantized(checkpoint, root):
    first, second = [], []
    entry = cached(checkpoint, INT4, root=root, progress=first.append)
    assert cached(checkpoint, INT4, root=root, progress=second.append) == entry
    assert "quantize" in stages(first)
    assert stages(second) == set()
    assert open_packed(entry).config == INT4


def test_one_entry_serves_every_compute_dtype_and_every_other_option_has_its_own(checkpoint, root):
    options = [
        {},
        {"weight_dtype": "int8"},
        {"weight_dtype": "int4_fullrange"},
        {"group_size": 64},
        {"group_size": -1},
        {"scheme": "asym"},
        {"scale_dtype": "bf16"},
        {"lm_head": "int4"},
        {"modules_to_not_convert": ["lm_head"]},
    ]
    found = {
        compute: [
            cached(checkpoint, WeightOnlyQuantConfig(**o, compute_dtype=compute), root=root)
            for o in options
        ]
        for compute in ("bf16", "fp32", "int8")
    }
    assert len(set(found["bf16"])) == len(options)
    assert found["bf16"] == found["fp32"] == found["int8"]


def test_the_key_follows_the_contents_of_a_checkpoint_and_not_its_place(
    write_checkpoint, root, tmp_path
):
    folder = write_checkpoint()
    entry = cached(open_checkpoint(folder), INT4, root=root)

    moved = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, moved)
    assert cached(open_checkpoint(moved), INT4, root=root) == entry

    assert cached(open_checkpoint(write_checkpoint(seed=1)), INT4, root=root) != entry
    (moved / "tokenizer.json").write_text('{"version": "2.0"}')
    assert cached(open_checkpoint(moved), INT4, root=root) != entry
    shutil.copy(folder / "tokenizer.json", moved)
    assert cached(open_checkpoint(moved), INT4, root=root) == entry


def test_weights_changed_in_place_get_another_entry(write_checkpoint, root):
    folder = write_checkpoint()
    entry = cached(open_checkpoint(folder), INT4, root=root)
    path = folder / "model.safetensors"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # size, inode and, set back, the time of change stay the same
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cached(open_checkpoint(folder), INT4, root=root) != entry


def test_a_hub_model_is_its_revision_and_no_weights_are_hashed(checkpoint, root, monkeypatch):
    monkeypatch.setattr(digests, "sha256_of_open", lambda *_: pytest.fail("hashed"))
    names = (("Intel/neural-chat", "a"), ("Intel/neural-chat", "b"), ("Other/neural-chat", "a"))
    one, other, third = (
        cached(open_checkpoint(checkpoint.folder, (name, commit * 40)), INT4, root=root)
        for name, commit in names
    )
    assert len({one, other, third}) == 3
    assert one.name.startswith("neural-chat-int4-g32-")
    source = json.loads((one / "manifest.json").read_text())["source"]
    assert (source["hub"], source["revision"]) == ("Intel/neural-chat", "a" * 40)


def test_another_quantizer_or_format_version_has_another_key(checkpoint, monkeypatch):
    source = checkpoint.identity()
    key = cache.cache_key(source, INT4, open_quantizer(INT4))
    with monkeypatch.context() as patch:
        patch.setattr(nearest.RoundToNearest, "identity", QuantizerIdentity("rtn", 999))
        assert cache.cache_key(source, INT4, open_quantizer(INT4)) != key
    with monkeypatch.context() as patch:
        patch.setattr(cache, "format_version", lambda config: 999)
        assert cache.cache_key(source, INT4, open_quantizer(INT4)) != key
    assert cache.cache_key(source, INT4, open_quantizer(INT4)) == key


def test_a_note_that_is_damaged_is_hashed_again(checkpoint, root):
    entry = cached(checkpoint, INT4, root=root)
    for note in (root / digests.DIGESTS).iterdir():
        note.write_text("short")
    assert cached(checkpoint, INT4, root=root) == entry


def test_an_entry_with_another_key_is_not_used_and_not_replaced(checkpoint, root):
    entry = cached(checkpoint, INT4, root=root)
    path = entry / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": entry.name[-12:]}))
    before = path.read_bytes()
    with pytest.raises(CacheError, match=f"cache remove {entry.name}"):
        cached(checkpoint, INT4, root=root)
    assert path.read_bytes() == before
    path.unlink()
    with pytest.raises(CacheError, match=r"manifest\.json is missing"):
        cached(checkpoint, INT4, root=root)


def test_entries_are_listed_verified_and_removed(checkpoint, root):
    assert entries(root) == []
    path = cached(checkpoint, INT4, root=root)
    (entry,) = entries(root)
    assert (entry.name, entry.path, entry.problem) == (path.name, path, None)
    assert entry.disk_bytes == sum(file.stat().st_size for file in path.iterdir())
    seen = []
    verify(entry, seen.append)
    assert stages(seen) == {"verify"}
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    with pytest.raises(CacheError, match=r"model\.safetensors is damaged"):
        verify(entry)
    (path / "manifest.json").write_text("{")
    (damaged,) = entries(root)
    assert damaged.manifest is None
    assert "manifest.json is not JSON" in damaged.problem
    remove(damaged.path)
    assert entries(root) == []
    assert not list(root.glob(".tmp-*"))
    with pytest.raises(CacheError, match="cannot be removed"):
        remove(damaged.path)
    assert cached(checkpoint, INT4, root=root) == path


def test_a_cache_that_cannot_be_made_is_an_error_with_the_remedy(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"NEURALCHAT_LITE_CACHE.*quantize MODEL -o"):
        cached(checkpoint, INT4, root=tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EOPNOTSUPP, r"\(Operation not supported\): its file system does not do this, so"),
        (errno.ENOLCK, r"\(No locks available\): its file system does not do this, so choose"),
        (errno.ENOSPC, r"\(No space left on device\): make room"),
        (errno.EROFS, r"\(Read-only file system\): check permissions"),
        (None, r"its file system has no locks\): its file system does not do this"),
    ],
)
def test_a_lock_that_is_refused_is_told_with_its_own_remedy(
    checkpoint, root, monkeypatch, code, remedy
):
    def refuse(self, timeout):
        if code is None:  # what filelock made of a file system without locks for long
            raise NotImplementedError("FileSystem does not appear to support flock")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(CacheError, match=remedy) as caught:
        cached(checkpoint, INT4, root=root)
    assert str(caught.value).count("make room") == (code == errno.ENOSPC)
    assert str(caught.value).count("check permissions") == (code == errno.EROFS)


@pytest.mark.parametrize("text", ["{", "[]", "{}", ""])
def test_a_broken_manifest_is_told_as_that_and_not_as_a_cache_that_cannot_be_written(
    checkpoint, root, text
):
    entry = cached(checkpoint, INT4, root=root)
    (entry / "manifest.json").write_text(text)
    with pytest.raises(CacheError, match=r"manifest\.json (is not|has format version)") as caught:
        cached(checkpoint, INT4, root=root)
    said = str(caught.value)
    assert "cannot be written" not in said and "make room" not in said
    assert said.count("cache remove") == 1


@pytest.mark.parametrize("name", ["NEURALCHAT_LITE_CACHE", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("value", ["~nobody-of-this-name/x", "x" * 5000, "x/" * 3000])
def test_a_variable_that_cannot_be_a_path_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.delenv("NEURALCHAT_LITE_CACHE", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{name} ") as caught:
        cache_root()
    assert len(str(caught.value)) < 500


def test_a_user_without_a_home_is_told_the_remedy(monkeypatch):
    for name in ("NEURALCHAT_LITE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache.Path, "home", homeless)
    with pytest.raises(ConfigError, match=r"no home folder.*set NEURALCHAT_LITE_CACHE"):
        cache_root()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_a_read_only_cache_serves_what_it_has_and_refuses_the_rest(checkpoint, root):
    entry = cached(checkpoint, INT4, root=root)
    root.chmod(0o555)
    try:
        assert cached(checkpoint, INT4, root=root) == entry
        with pytest.raises(CacheError, match="NEURALCHAT_LITE_CACHE"):
            cached(checkpoint, WeightOnlyQuantConfig(group_size=64), root=root)
    finally:
        root.chmod(0o755)


def test_an_interrupt_leaves_no_entry_and_no_temporary_folder(checkpoint, root):
    def interrupt(step):
        if step.stage == "quantize":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(checkpoint, INT4, root=root, progress=interrupt)
    assert entries(root) == []
    assert not list(root.glob(".tmp-*"))
    assert open_packed(cached(checkpoint, INT4, root=root))  # and the lock is free


def test_leftovers_of_the_same_key_are_removed(checkpoint, root):
    entry = cached(checkpoint, INT4, root=root)
    key = json.loads((entry / "manifest.json").read_text())["key"]
    remove(entries(root)[0].path)
    (root / f".tmp-{key}-123").mkdir()
    other = root / f".tmp-{'0' * 64}-123"
    other.mkdir()
    cached(checkpoint, INT4, root=root)
    assert list(root.glob(".tmp-*")) == [other]


@pytest.mark.parametrize(
    ("environment", "want"),
    [
        ({"NEURALCHAT_LITE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/neuralchat_lite"),
        ({}, "/home/me/.cache/neuralchat_lite"),
    ],
)
def test_the_environment_says_where_the_cache_is(monkeypatch, environment, want):
    for name in ("NEURALCHAT_LITE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(want)


def test_the_name_of_an_entry_is_readable_and_one_folder(checkpoint, root):
    entry = cached(open_checkpoint(checkpoint.folder, ("../a/.b c", "0" * 40)), INT4, root=root)
    assert entry.parent == root
    assert entry.name.startswith("b_c-int4-g32-")


def test_one_key_has_one_entry(checkpoint, root):
    options = [{"weight_dtype": name, "scheme": "asym"} for name in ("int4_clip", "int4_fullrange")]
    options += [{"modules_to_not_convert": ["lm_head", "q_proj"]}]
    options += [{"modules_to_not_convert": ["q_proj", "lm_head", "q_proj"]}]
    found = [cached(checkpoint, WeightOnlyQuantConfig(**o), root=root) for o in options]
    assert found[0] == found[1]
    assert found[2] == found[3]


def test_the_stored_config_is_that_of_the_key(checkpoint, root):
    config = dataclasses.replace(INT4, compute_dtype="int8")
    assert open_packed(cached(checkpoint, config, root=root)).config.compute_dtype == "bf16"


def test_killing_at_twenty_random_moments_leaves_no_entry_or_a_whole_one(tiny_config, root):
    script = Path(__file__).with_name("killed_quantizing.py")
    config = json.dumps(tiny_config | MEDIUM)
    command = [sys.executable, script, config, root, "20"]
    left = json.loads(subprocess.check_output(command, text=True, timeout=patience(120)))
    assert len(left) == 20
    assert left.count("none") >= 5, "too few kills came in the middle to show anything"


TOGETHER = """
import json, sys, time
from pathlib import Path
from neuralchat_lite.quantization import nearest
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.quantizer import QuantizerIdentity
from neuralchat_lite.packed.cache import cached
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint

config, root, me = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
root.mkdir(exist_ok=True)
(root / f".ready{me}").touch()
while len(list(root.glob(".ready*"))) < 2:
    time.sleep(0.001)
stages = set()
entry = cached(RandomCheckpoint(config), WeightOnlyQuantConfig(), root=root,
               progress=lambda step: stages.add(step.stage))
print(json.dumps([str(entry), sorted(stages)]))
"""


def test_two_processes_at_once_quantize_once(tiny_config, root):
    config = json.dumps(tiny_config | MEDIUM)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, config, root, str(me)], stdout=subprocess.PIPE
        )
        for me in range(2)
    ]
    replies = [json.loads(process.communicate(timeout=patience(120))[0]) for process in processes]
    (one, did), (other, waited) = sorted(replies, key=lambda reply: reply[1])
    assert one == other
    assert [did, waited] == [["quantize"], ["wait"]]
    open_packed(one, verify="always")


def test_random_checkpoints_are_told_apart_by_seed_and_shape(tiny_config, root):
    sources = [
        RandomCheckpoint(tiny_config, 0),
        RandomCheckpoint(tiny_config, 1),
        RandomCheckpoint(tiny_config | {"vocab_size": 61}, 0),
    ]
    assert len({cached(source, INT4, root=root) for source in sources}) == 3


def test_a_second_look_at_a_large_checkpoint_does_not_hash_it(checkpoint, root, monkeypatch):
    cached(checkpoint, INT4, root=root)
    monkeypatch.setattr(digests, "sha256_of_open", lambda *_: pytest.fail("hashed"))
    start = time.perf_counter()
    cached(checkpoint, INT4, root=root)
    assert time.perf_counter() - start < patience(1)
