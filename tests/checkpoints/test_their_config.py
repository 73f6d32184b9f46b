"""transformers reads what this library reads."""

from __future__ import annotations

import json

import pytest

from neuralchat_lite.checkpoints.their_config import NULL_IS_DEFAULT, their_config
from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.families.table import FAMILIES


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_null_that_means_the_default_is_read(tmp_path, tiny_config, model_type):
    nulls = dict.fromkeys((*NULL_IS_DEFAULT, "num_key_value_heads", "sliding_window"))
    config = tiny_config | {"model_type": model_type} | nulls
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = their_config(tmp_path)
    assert found.hidden_act == "silu"
    assert found.num_key_value_heads == tiny_config["num_attention_heads"]
    assert getattr(found, "sliding_window", None) is None
    assert found.name_or_path == str(tmp_path)


def test_what_transformers_refuses_is_a_checkpoint_error(tmp_path, tiny_config):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config | {"model_type": "unheard-of"}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        their_config(tmp_path)
