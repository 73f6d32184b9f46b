"""The table of families, and what a description may not contradict."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from neuralchat_lite import families
from neuralchat_lite.families.config_json import parse_architecture
from neuralchat_lite.families.family import Family
from neuralchat_lite.families.table import FAMILIES, family_of

CONFIG = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_row_leads_to_a_family_in_a_file_of_its_own(model_type):
    assert isinstance(family_of(model_type), Family)
    folder = Path(families.__file__).parent
    assert FAMILIES[model_type].startswith(f"neuralchat_lite.families.{model_type}:")
    assert (folder / f"{model_type}.py").exists()


def test_the_table_imports_a_family_when_a_model_asks_for_it():
    code = (
        "import sys, neuralchat_lite.families.config_json as c\n"
        "loaded = lambda: {n for n in sys.modules if n.endswith(('.mistral', '.qwen2'))}\n"
        "before = loaded()\n"
        f"c.parse_architecture({CONFIG!r} | {{'model_type': 'mistral'}})\n"
        "print(sorted(before), sorted(loaded()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] ['neuralchat_lite.families.mistral']"


def test_the_names_of_a_layer_are_those_of_transformers():
    from transformers import AutoConfig, AutoModelForCausalLM

    for model_type in sorted(FAMILIES):
        for bias in (False, True):
            config = CONFIG | {"head_dim": 16, "attention_bias": bias, "mlp_bias": bias}
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))
            want = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
            specs = parse_architecture(config | {"model_type": model_type}).tensors()
            assert {spec.name: spec.shape for spec in specs} == want


def test_a_block_that_contradicts_the_sizes_is_our_own_mistake():
    architecture = parse_architecture(CONFIG | {"model_type": "llama"})
    block = architecture.block
    for wrong in (
        replace(block, qkv=block.qkv[:2]),
        replace(block, gate_up=block.gate_up[:1]),
    ):
        with pytest.raises(AssertionError):
            replace(architecture, block=wrong)
    with pytest.raises(AssertionError):
        replace(architecture, windows=(None,))
