"""A folder's config.json as a configuration object of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neuralchat_lite.checkpoints.tokenizer_json import staged
from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.files.json_file import read_json

# Where null means the default, as for `families`. transformers 5 refuses it there, older versions
# wrote it.
NULL_IS_DEFAULT = (
    "attention_bias",
    "attention_dropout",
    "hidden_act",
    "initializer_range",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
    "use_cache",
    "use_sliding_window",
)


def their_config(folder: Path) -> Any:
    """Read config.json with transformers. Raises CheckpointError when it refuses the file."""
    from transformers import AutoConfig

    given = read_json(folder / "config.json")
    values = {
        key: value
        for key, value in given.items()
        if value is not None or key not in NULL_IS_DEFAULT
    }
    if "num_key_value_heads" in values and values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values.get("num_attention_heads")
    try:
        with staged(folder, (), {"config.json": values}) as place:
            config: Any = AutoConfig.from_pretrained(place, local_files_only=True)
    # Its checks raise several kinds, and in other versions other ones.
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"transformers refuses {folder / 'config.json'} ({why}): download the file again"
        ) from None
    config.name_or_path = str(folder)
    return config
