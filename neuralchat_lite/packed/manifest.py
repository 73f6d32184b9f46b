"""The manifest of a quantized folder: what it was made from, and the digest of each of its files.

Sizes are compared at every load. Digests are compared when a folder was not verified before. A
stamp (name, size, times and inode of each file) records the result, so that files are hashed once.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuralchat_lite.errors import CacheError
from neuralchat_lite.files.digests import HashProgress, sha256_of
from neuralchat_lite.files.json_file import JSON_LIMIT, parse_json
from neuralchat_lite.files.names import (
    ADAPTER_WEIGHTS,
    MANIFEST,
    QUANTIZATION,
    SIDECARS,
    WEIGHTS,
    is_file_name,
)
from neuralchat_lite.files.regular import read_regular, remedy_of
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.values import shown

FORMAT_VERSIONS = (1, 2)

STAMP = ".verified"
REQUIRED_FILES = ("config.json", QUANTIZATION, WEIGHTS)
SCHEMA: dict[str, type | tuple[type, ...]] = {
    "format_version": int,
    "created_by": dict,
    "source": dict,
    "adapters": list,
    "quantizer": dict,
    "quantization": dict,
    "key": (str, type(None)),
    "statistics": dict,
    "files": dict,
}


def format_version(config: WeightOnlyQuantConfig) -> int:
    """The format version of what a configuration makes: the first one that can hold it, so that
    earlier releases read whatever they can."""
    return 2 if config.searches() or config.scheme == "affine" or config.overrides else 1


def noted_config(
    manifest: Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> WeightOnlyQuantConfig:
    """The configuration in a manifest, or `options` that lie beside it, by the names of its format
    version. Raises ConfigError."""
    first = manifest["format_version"] == 1
    read = WeightOnlyQuantConfig.from_first_format if first else WeightOnlyQuantConfig.from_dict
    return read(manifest["quantization"] if options is None else options)


def creator() -> dict[str, str]:
    try:
        version = importlib.metadata.version("neuralchat_lite")
    except importlib.metadata.PackageNotFoundError:
        version = "source tree"
    return {"tool": "neuralchat_lite", "version": version}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest of a folder.

    Raises CacheError when it is missing, malformed or of another format version.
    """
    path = folder / MANIFEST
    try:
        manifest = parse_json(read_regular(path, JSON_LIMIT))
    except FileNotFoundError:
        raise CacheError(
            f"{path} is missing: {folder} is not a quantized model, or was copied in part; "
            f"{remedy(folder)}"
        ) from None
    except OSError as error:
        raise CacheError(
            f"{path} cannot be read ({error.strerror}): {remedy_of(error)}, or {remedy(folder)}"
        ) from None
    except ValueError as error:
        raise CacheError(f"{path} is not JSON ({error}): {remedy(folder)}") from None
    version = manifest.get("format_version")
    if type(version) is not int or version not in FORMAT_VERSIONS:
        raise CacheError(
            f"{path} has format version {repr(version)[:40]}, but this release reads "
            f"{' and '.join(map(str, FORMAT_VERSIONS))}: {remedy(folder)}, or use the release that "
            "wrote it"
        )
    for key, kind in SCHEMA.items():
        if not isinstance(manifest.get(key, ...), kind):
            raise CacheError(f"{path}: {key!r} is missing or of the wrong type: {remedy(folder)}")
    for name, entry in manifest["files"].items():
        if not is_file_name(name) or not is_file_entry(entry):
            raise CacheError(f"{path}: files[{name[:100]!r}] is malformed: {remedy(folder)}")
    for number, adapter in enumerate(manifest["adapters"]):
        if not is_adapter(adapter):
            raise CacheError(f"{path}: adapters[{number}] is malformed: {remedy(folder)}")
    lacking = [name for name in REQUIRED_FILES if name not in manifest["files"]]
    if lacking:
        raise CacheError(f"{path} does not list {lacking[0]}: {remedy(folder)}")
    return dict(manifest)


def import_losses(folder: Path) -> dict[str, float]:
    """What a quantized folder's manifest says that its import has lost; see `Source.losses`."""
    if not (folder / MANIFEST).is_file():
        return {}
    found = read_manifest(folder)["statistics"].get("import_losses", {})
    return dict(found) if isinstance(found, dict) else {}


def is_file_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and type(entry.get("size")) is int
        and isinstance(entry.get("sha256"), str)
    )


def is_adapter(entry: Any) -> bool:
    """Whether an adapter is named: by the hub's name, or by the digest of its weights."""
    if not isinstance(entry, dict) or not isinstance(entry.get("files"), dict):
        return False
    hub, weights = entry.get("hub"), entry["files"].get(ADAPTER_WEIGHTS)
    return isinstance(hub if hub is not None else weights, str)


def check_sizes(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise CacheError unless each file of the manifest is there and has its size."""
    for name, entry in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CacheError(
                f"{path} cannot be read ({error.strerror}): {remedy(folder)}"
            ) from None
        if size != entry["size"]:
            raise CacheError(
                f"{path} has {size} bytes, the manifest says {entry['size']}: {remedy(folder)}"
            )
    # Otherwise another model's tokenizer would be used without a warning.
    strangers = [
        name for name in SIDECARS if name not in manifest["files"] and (folder / name).exists()
    ]
    if strangers and not is_released(manifest):
        raise CacheError(
            f"{folder / strangers[0]} is not in the manifest, so it is from another model: "
            f"remove that file, or put it into the checkpoint and quantize again"
        )


def released(
    manifest: Mapping[str, Any], config: WeightOnlyQuantConfig, shapes: bytes
) -> dict[str, Any]:
    """The manifest of a saved copy. It lists only weights and configuration, so that users may
    replace tokenizer files, for example with `tokenizer.save_pretrained`.

    config: what quantization_config.json of the copy says
    shapes: its config.json
    """
    files = {name: manifest["files"][name] for name in REQUIRED_FILES}
    files["config.json"] = file_entry(shapes)
    files[QUANTIZATION] = file_entry(config.to_json().encode())
    rest = {key: value for key, value in manifest.items() if key != "origin"}
    return {**rest, "key": None, "quantization": config.to_dict(), "files": files}


def file_entry(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def is_released(manifest: Mapping[str, Any]) -> bool:
    return manifest["key"] is None and set(manifest["files"]) == set(REQUIRED_FILES)


def check_digests(
    folder: Path, manifest: Mapping[str, Any], progress: HashProgress | None = None
) -> None:
    """Raise CacheError unless every file has the manifest's sha256. Writes a stamp if they do, and
    removes it if they do not, so that the next load compares digests again."""
    before = stamp_of(folder, manifest)
    for name, entry in manifest["files"].items():
        try:
            found = sha256_of(folder / name, progress)
        except OSError as error:
            kept = remove_stamp(folder)
            raise CacheError(
                f"{folder / name} cannot be read ({error.strerror}){kept}: {remedy(folder)}"
            ) from None
        if found != entry["sha256"]:
            kept = remove_stamp(folder)
            raise CacheError(
                f"{folder / name} is damaged: its sha256 is {found[:12]}…, the manifest says "
                f"{shown(entry['sha256'][:12])}…{kept}: {remedy(folder)}"
            )
    if stamp_of(folder, manifest) == before:
        write_stamp(folder, before)


def is_stamped(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether these files were verified and have not changed since."""
    try:
        noted = parse_json(read_regular(folder / STAMP, JSON_LIMIT))
    except (OSError, ValueError):
        return False
    return bool(noted == stamp_of(folder, manifest))


def stamp_of(folder: Path, manifest: Mapping[str, Any]) -> dict[str, list[int]]:
    """Raises CacheError when another process removes the folder meanwhile."""
    try:
        stats = {name: (folder / name).stat() for name in (MANIFEST, *manifest["files"])}
    except OSError as error:
        raise CacheError(
            f"{folder} was removed or changed while it was opened ({error.strerror}): load again"
        ) from None
    # ctime too: no program can set it back.
    return {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in stats.items()}


def write_stamp(folder: Path, stamp: Mapping[str, list[int]]) -> None:
    # Written under another name and renamed, as two processes may verify at once. In a read-only
    # folder there is no stamp, and each load hashes again.
    aside = folder / f"{STAMP}.{os.getpid()}"
    try:
        aside.write_text(json.dumps(stamp))
        aside.replace(folder / STAMP)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def remove_stamp(folder: Path) -> str:
    """Forget that the files were found good; what the error must say where that is impossible."""
    try:
        (folder / STAMP).unlink(missing_ok=True)
    except OSError as error:
        return (
            f" (and it is noted in {STAMP} that the files were good, which cannot be removed: "
            f"{error.strerror}; until the folder is deleted, loading does not look again)"
        )
    return ""


def remedy(folder: Path) -> str:
    return (
        "delete the folder and quantize again "
        f"(in the cache: `neuralchat-lite cache remove {folder.name}`)"
    )
