"""The memory of a cache of keys and values is what its format says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neuralchat_lite.families.config_json import parse_architecture
from neuralchat_lite.kernels.kv_format import KV_FORMATS
from neuralchat_lite.models.kv_cache import KVCache


@pytest.mark.parametrize("name", KV_FORMATS)
def test_a_cache_takes_the_bytes_that_its_format_says(tiny_config, name):
    arch, kv_format = parse_architecture(tiny_config), KV_FORMATS[name]
    cache = KVCache(arch, kv_format, capacity=48, limit=100, prefill_block=16)
    for layer in cache.layers:
        size = kv_format.bytes_per_position(arch.kv_heads, arch.head_dim)
        assert layer.keys.nbytes + layer.values.nbytes == 48 * size
        assert layer.keys.dtype == layer.values.dtype == kv_format.dtype


def test_growing_keeps_every_position_where_it_was(tiny_config):
    arch = parse_architecture(tiny_config)
    cache = KVCache(arch, KV_FORMATS["fp32"], capacity=16, limit=100, prefill_block=16)
    layer = cache.layers[0]
    layer.keys.normal_()
    layer.values.normal_()
    keys, values = layer.keys.clone(), layer.values.clone()
    cache.reserve(70)
    assert layer.capacity == 80
    assert layer.keys[:, :1].equal(keys) and layer.values[:, :16].equal(values)
    assert layer.keys[:, 1:].eq(0).all() and layer.values[:, 16:].eq(0).all()


def test_the_ring_of_a_window_has_room_for_one_block_of_the_prompt(tiny_config):
    arch = parse_architecture(tiny_config)
    arch = replace(arch, windows=(32,) * arch.layers)
    for block, slots in ((16, 64), (48, 96)):
        cache = KVCache(arch, KV_FORMATS["bf16"], capacity=2000, limit=2000, prefill_block=block)
        assert cache.layers[0].capacity == slots
