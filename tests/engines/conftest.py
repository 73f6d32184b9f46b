"""Tests marked `engines` run when they are asked for; little models that all engines can load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.engines.engine import Request
from neuralchat_lite.models.build import load_decoder
from neuralchat_lite.models.decoder import Decoder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "engines" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("engines"):
            item.add_marker(pytest.mark.skip(reason="runs by `make test-engines`"))


@pytest.fixture(scope="session")
def windowed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mistral that sees 8 positions, with grouped heads and its own rope_theta; in the
    files of old versions, which have no rope_parameters."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=8,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    folder = tmp_path_factory.mktemp("windowed")
    transformers.MistralForCausalLM(config).save_pretrained(folder)
    return folder


CONTEXT = 64  # of the windowed model it is more than the default


def native_fp32(folder: Path) -> Decoder:
    return load_decoder(open_checkpoint(folder), compute_dtype="fp32", context_length=CONTEXT)


def request_for(
    folder: Path,
    *,
    asked: dict[str, Any] | None = None,
    dtype: str | None = None,
    context_length: int = CONTEXT,
) -> Request:
    architecture = open_checkpoint(folder).architecture
    return Request(folder, architecture, asked, dtype, context_length, threads=1)
