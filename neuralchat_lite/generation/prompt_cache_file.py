"""Remembered keys and values as a file, for another run of the same model.

The file is safetensors: a tensor "<place>.<digest>.<table>" for each page and table, in the order
in which pages are forgotten, and in the metadata what they belong to. Pages of another model, of
other weights or of another format of keys and values are of no use, so such a file is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from neuralchat_lite.errors import CacheError
from neuralchat_lite.generation.prefix_store import Kept, PrefixStore
from neuralchat_lite.kernels.kv_format import PAGE
from neuralchat_lite.kernels.pages import PagePool
from neuralchat_lite.models.decoder import Decoder
from neuralchat_lite.values import shown

VERSION = 1
PURPOSE = "neuralchat_lite prompt cache"


def identity_of(decoder: Decoder, weights_sha256: str) -> dict[str, Any]:
    """What pages belong to: what makes other keys and values of the same tokens."""
    return {
        "version": VERSION,
        "weights_sha256": weights_sha256,
        "compute_dtype": decoder.compute_dtype,
        "kv_cache_dtype": decoder.kv_format.name,
        "page_positions": PAGE,
        "pages": [list(table.shape) for table in decoder.new_cache().tables],
    }


def save_pages(store: PrefixStore, path: Path, identity: Mapping[str, Any]) -> int:
    """Write all pages of a store; returns their number. An earlier file is replaced at the end.

    Raises CacheError when it cannot be written.
    """
    tensors = {
        f"{place:08d}.{digest.hex()}.{table}": page.data
        for place, (digest, kept) in enumerate(store.kept.items())
        for table, page in enumerate(kept.pages)
        if page is not None
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, temporary, {PURPOSE: json.dumps(identity)})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise CacheError(
            f"the prompt cache cannot be written to {path} ({error}): give a file in a folder that "
            "exists, on a disk with room"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return len(store)


def load_pages(
    store: PrefixStore, pool: PagePool, path: Path, identity: Mapping[str, Any], room: int
) -> int:
    """Put the pages of a file into a store, as many of the latest as fit; returns their number.

    room: bytes that they may take

    Raises CacheError when it is no such file, is damaged, or belongs to something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            check_identity(path, (file.metadata() or {}).get(PURPOSE), identity)
            tables = len(identity["pages"])
            pages: dict[bytes, dict[int, str]] = {}
            for name in sorted(file.keys()):
                _, digest, table = parts_of(path, name, tables)
                pages.setdefault(digest, {})[table] = name
            count = 0
            taken: list[tuple[bytes, Kept]] = []
            for digest, names in reversed(pages.items()):
                data = {table: file.get_tensor(name) for table, name in names.items()}
                for table, tensor in data.items():
                    check_page(path, names[table], tensor, identity["pages"][table])
                room -= sum(tensor.nbytes for tensor in data.values())
                if room < 0:
                    break
                held = tuple(
                    pool.copy(data[table]) if table in data else None for table in range(tables)
                )
                taken.append((digest, Kept(held)))
                count += 1
    except (OSError, SafetensorError) as error:
        raise CacheError(
            f"{path} is no prompt cache that can be read ({error}): write it again with "
            "save_prompt_cache"
        ) from None
    for digest, kept in reversed(taken):
        if digest not in store:
            store.kept[digest] = kept
    return count


def check_identity(path: Path, said: str | None, identity: Mapping[str, Any]) -> None:
    try:
        found = json.loads(said or "")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CacheError(f"{path} is no prompt cache: give a file that save_prompt_cache wrote")
    for name, value in identity.items():
        if found.get(name) != value:
            raise CacheError(
                f"{path} is the prompt cache of another model: its {name} is "
                f"{shown(found.get(name))}, and this model has {shown(value)}; load the model that "
                "it was written with, or write it again"
            )


def parts_of(path: Path, name: str, tables: int) -> tuple[str, bytes, int]:
    place, _, rest = name.partition(".")
    digest, _, table = rest.partition(".")
    try:
        if int(table) not in range(tables):
            raise ValueError
        return place, bytes.fromhex(digest), int(table)
    except ValueError:
        raise CacheError(
            f"{path}: the tensor {shown(name)} has no name of a page: write the file again with "
            "save_prompt_cache"
        ) from None


def check_page(path: Path, name: str, tensor: Any, shape: list[int]) -> None:
    if str(tensor.dtype) != "torch.uint8" or list(tensor.shape) != shape:
        raise CacheError(
            f"{path}: the page {shown(name)} is {tensor.dtype} {list(tensor.shape)}, expected "
            f"torch.uint8 {shape}: write the file again with save_prompt_cache"
        )
