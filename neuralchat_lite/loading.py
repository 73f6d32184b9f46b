"""From what a user names to weights and a tokenizer: checkpoints, and adapters to be merged."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from neuralchat_lite.adapters.adapter import Adapter, MergedCheckpoint, open_adapter
from neuralchat_lite.checkpoints.checkpoint import Checkpoint, open_checkpoint
from neuralchat_lite.checkpoints.hub import ADAPTER, HUB_NAME, Resolved, resolve
from neuralchat_lite.checkpoints.kinds import is_packed
from neuralchat_lite.checkpoints.tokenizer import Tokenizer, load_tokenizer
from neuralchat_lite.errors import CheckpointError, ConfigError
from neuralchat_lite.families.architecture import checked_context
from neuralchat_lite.files.names import ADAPTER_WEIGHTS, TOKENIZER
from neuralchat_lite.models.rope import RotaryTable
from neuralchat_lite.packed.format import PackedModel

log = logging.getLogger(__name__)

Adapters = Sequence[str | os.PathLike[str] | Resolved]


def resolve_adapters(adapters: Adapters | None, token: str | None, **where: Any) -> list[Resolved]:
    """where: `cache_dir` and `local_files_only` of `hub.resolve`"""
    if adapters is None:
        return []
    if isinstance(adapters, str | os.PathLike) or not isinstance(adapters, Sequence):
        raise ConfigError(
            f"adapters must be a list of folders or hub names, got {adapters!r}: write it as "
            f"[{str(adapters)!r}]"
        )
    return [resolve(adapter, None, token, kind=ADAPTER, **where) for adapter in adapters]


def merged_adapters(weights: Checkpoint | MergedCheckpoint | PackedModel) -> tuple[str, ...]:
    if isinstance(weights, MergedCheckpoint):
        return tuple(each.hub[0] if each.hub else each.name for each in weights.adapters)
    if isinstance(weights, Checkpoint):
        return ()
    return tuple(
        each.get("hub") or f"sha256 {each['files'][ADAPTER_WEIGHTS][:12]}"
        for each in weights.manifest["adapters"]
    )


def refuse_adapters_of_quantized(folder: Path, adapters: Sequence[Any]) -> None:
    if adapters and is_packed(folder):
        raise ConfigError(
            f"adapters are merged before quantizing, and {folder} is quantized: give the original "
            "checkpoint with them"
        )


def open_source(
    found: Resolved, adapters: Sequence[Resolved] = (), context_length: int | None = None
) -> tuple[Checkpoint | MergedCheckpoint, Tokenizer]:
    """A checkpoint, merged with adapters if there are any, and its tokenizer, found to be fit to
    speak before minutes of work."""
    checkpoint = open_checkpoint(found.folder)
    checked_context(checkpoint.architecture, context_length)
    RotaryTable(checkpoint.architecture)
    if not adapters:
        return checkpoint, load_tokenizer(found.folder)
    opened = [open_adapter(each.folder, checkpoint, each.hub) for each in adapters]
    for adapter in opened:
        warn_of_another_base(adapter, found.hub)
    merged = MergedCheckpoint(checkpoint, opened)
    return merged, merged_tokenizer(merged)


def warn_of_another_base(adapter: Adapter, hub: tuple[str, str] | None) -> None:
    """Shapes decide whether an adapter fits; its word for its base is often a path of the machine
    on which it was trained, so only another name on the hub is worth a warning."""
    said = adapter.config.base or ""
    if hub is not None and HUB_NAME.fullmatch(said) and said != hub[0]:
        log.warning(
            "the adapter %s says that it was trained on %s; its shapes fit %s, and it is merged "
            "into that",
            adapter.name,
            said,
            hub[0],
        )


def merged_tokenizer(merged: MergedCheckpoint) -> Tokenizer:
    """The tokenizer of a merged checkpoint, read from files put together as in its folder."""
    files = merged.sidecars()
    origin = next((path.parent for path in files if path.name in TOKENIZER), merged.base.folder)
    with tempfile.TemporaryDirectory(prefix="neuralchat-lite-") as folder:
        for path in files:
            shutil.copyfile(path, Path(folder) / path.name)
        tokenizer = load_tokenizer(Path(folder), origin)
    size = len(cast(Any, tokenizer))
    if origin != merged.base.folder and size > merged.architecture.vocab_size:
        raise CheckpointError(
            f"the tokenizer in {origin} has {size} tokens, but the base's embedding only "
            f"{merged.architecture.vocab_size} rows: give a base whose embedding was resized for "
            "the adapter, or remove the adapter's tokenizer files to keep the base's"
        )
    return tokenizer
