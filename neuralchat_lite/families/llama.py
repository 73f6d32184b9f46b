"""Llama 2 and 3, and the block that Mistral and Qwen share with it (Touvron et al., 2023)."""

from __future__ import annotations

from neuralchat_lite.errors import UnsupportedModelError
from neuralchat_lite.families.architecture import Names, Sizes
from neuralchat_lite.families.block import Block, Linear, Norm
from neuralchat_lite.families.config_values import Config, flag
from neuralchat_lite.families.family import Family
from neuralchat_lite.families.windows import no_window
from neuralchat_lite.kernels.operations import Activation
from neuralchat_lite.values import shown

ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu"}

LLAMA_NAMES = Names(
    base="model.",
    embedding="embed_tokens",
    layers="layers",
    norm="norm",
    head="lm_head",
    # Left in old checkpoints by transformers; computed anew by every decoder.
    ignored=(
        "rotary_emb.inv_freq",
        "rotary_emb.original_inv_freq",
        "rotary_emb.cos_cached",
        "rotary_emb.sin_cached",
        "self_attn.masked_bias",
        "self_attn.bias_mask",
    ),
)


def llama_block(
    config: Config,
    sizes: Sizes,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> Block:
    """Llama's block, with the biases and norms that some of its descendants add."""
    hidden, mlp, head_dim = sizes.hidden_size, sizes.intermediate_size, sizes.head_dim
    return Block(
        attention_norm=Norm("input_layernorm", hidden),
        qkv=(
            Linear("self_attn.q_proj", sizes.query_size, hidden, qkv_bias),
            Linear("self_attn.k_proj", sizes.kv_size, hidden, qkv_bias),
            Linear("self_attn.v_proj", sizes.kv_size, hidden, qkv_bias),
        ),
        query_norm=Norm("self_attn.q_norm", head_dim) if qk_norm else None,
        key_norm=Norm("self_attn.k_norm", head_dim) if qk_norm else None,
        scale=head_dim**-0.5,
        output=Linear("self_attn.o_proj", hidden, sizes.query_size, output_bias),
        mlp_norm=Norm("post_attention_layernorm", hidden),
        gate_up=(
            Linear("mlp.gate_proj", mlp, hidden, mlp_bias),
            Linear("mlp.up_proj", mlp, hidden, mlp_bias),
        ),
        activation=gate_activation(config),
        down=Linear("mlp.down_proj", hidden, mlp, mlp_bias),
    )


def gate_activation(config: Config) -> Activation:
    """The activation that "hidden_act" names. Raises UnsupportedModelError."""
    name = config.get("hidden_act")
    if name is None:
        name = "silu"
    activation = ACTIVATIONS.get(name) if isinstance(name, str) else None
    if activation is None:
        raise UnsupportedModelError(
            f"hidden_act {shown(name)} is not supported: use a model with 'silu'"
        )
    return activation


def block(config: Config, sizes: Sizes) -> Block:
    """With "attention_bias", the output projection has a bias too."""
    bias = flag(config, "attention_bias")
    mlp_bias = flag(config, "mlp_bias")
    return llama_block(config, sizes, qkv_bias=bias, output_bias=bias, mlp_bias=mlp_bias)


LLAMA = Family(LLAMA_NAMES, block, no_window, max_positions=2048)
