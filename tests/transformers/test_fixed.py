"""Weights that stay where and what they are: moving, casting, copying and pickling a model."""

from __future__ import annotations

import copy
import pickle
from typing import Any

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


def test_parameters_say_names_shapes_dtype_and_device_and_no_values(nano: Pair) -> None:
    first = next(nano.ours.parameters())
    assert (first.dtype, first.device.type) == (torch.float32, "cpu") == (nano.ours.dtype, "cpu")
    ours = {name: each.shape for name, each in nano.ours.named_parameters()}
    assert ours == {name: each.shape for name, each in nano.theirs.named_parameters()}
    assert sum(each.numel() for each in nano.ours.parameters()) == nano.ours.num_parameters()
    assert first.isnan().all() and not first.requires_grad
    assert first.untyped_storage().nbytes() == 4


@pytest.mark.parametrize(
    ("name", "arguments", "remedy"),
    [
        ("generate_batch", [[[1, 2]]], "give `generate` a batch"),
        ("init_continuous_batching", [], "give `generate` a batch"),
        ("state_dict", [], "save_pretrained"),
        ("load_state_dict", [{}], "model class of transformers"),
        ("add_adapter", [None], r"adapters=\[folder\]"),
        ("load_adapter", ["x"], r"adapters=\[folder\]"),
        ("push_to_hub", ["a/b"], "huggingface_hub"),
        ("requires_grad_", [], "train with the model class of transformers"),
        ("gradient_checkpointing_enable", [], "does not train"),
        ("set_input_embeddings", [None], "never changed"),
        ("xpu", [], "runs on CPUs"),
    ],
)
def test_methods_without_a_meaning_here_name_the_remedy(
    nano: Pair, name: str, arguments: list[Any], remedy: str
) -> None:
    with pytest.raises(ConfigError, match=remedy):
        getattr(nano.ours, name)(*arguments)


def test_methods_that_change_nothing_work_as_in_transformers(nano: Pair) -> None:
    model = copy.copy(nano.ours)
    assert model.decoder is nano.ours.decoder
    assert model.requires_grad_(False) is model.train() is model and model.training
    assert model.eval() is model and not model.training
    assert model.num_parameters(only_trainable=True) == 0
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(model(ids).logits, nano.ours(ids).logits)
