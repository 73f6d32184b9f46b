"""Weights that stay where and what they are: moving, casting, copying and pickling a model."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from neuralchat_lite.errors import ConfigError

from .conftest import Pair


def test_the_model_stays_where_and_what_it_is(nano: Pair) -> None:
    model = nano.ours
    assert model.to("cpu") is model.eval() is model.float() is model
    for move in (model.cuda, lambda: model.to("cuda")):
        with pytest.raises(ConfigError, match="not a CPU"):
            move()
    for cast in (model.half, model.bfloat16, model.double, lambda: model.to(torch.float16)):
        with pytest.raises(ConfigError, match="cannot be cast to"):
            cast()


def test_a_copy_shares_weights_and_a_pickle_is_refused(nano: Pair) -> None:
    twin = copy.deepcopy(nano.ours)
    assert twin.decoder is nano.ours.decoder
    twin.generation_config.max_new_tokens = 3
    assert nano.ours.generation_config.max_new_tokens != 3
    with pytest.raises(ConfigError, match="pass its folder"):
        pickle.dumps(nano.ours)
    with pytest.raises(ConfigError, match="embeddings are not available and cannot be resized"):
        nano.ours.resize_token_embeddings(700)
