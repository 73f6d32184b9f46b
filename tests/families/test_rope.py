"""Rotary tables. Their angles are compared with transformers' in `families/test_config_json.py`."""

from __future__ import annotations

from neuralchat_lite.families.rope import FREQUENCIES
from neuralchat_lite.families.rope_parameters import ROPE_TYPES


def test_every_rope_type_that_is_read_has_frequencies():
    assert sorted(FREQUENCIES) == sorted(ROPE_TYPES)
