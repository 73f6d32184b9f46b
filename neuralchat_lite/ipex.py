"""The functions of intel_extension_for_pytorch (IPEX) that scripts call, for native models.

    import neuralchat_lite.ipex as ipex
    model = ipex.optimize(model.eval(), dtype=torch.bfloat16, inplace=True)

A model of `neuralchat_lite.transformers` runs on the native kernels from the start, so there is
nothing to optimize. The functions check their arguments and return the model. A script that asks
for another precision than the model has gets an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neuralchat_lite.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from neuralchat_lite.transformers.modeling import NativeForCausalLM

__all__ = ["llm", "optimize"]

# Arguments of ipex.optimize and ipex.llm.optimize that control graphs, layouts and devices.
WITHOUT_EFFECT = frozenset(
    (
        "auto_kernel_selection",
        "concat_linear",
        "conv_bn_folding",
        "deployment_mode",
        "device",
        "fuse_update_step",
        "graph_mode",
        "inplace",
        "level",
        "linear_bn_folding",
        "low_precision_checkpoint",
        "optimize_lstm",
        "replace_dropout_with_identity",
        "sample_input",
        "sample_inputs",
        "split_master_weight_for_bf16",
        "weights_prepack",
    )
)
REFUSED = {
    "optimizer": "is for training, and this library never changes weights: leave it out",
    "quantization_config": "is a configuration of IPEX: give a WeightOnlyQuantConfig to "
    "AutoModelForCausalLM.from_pretrained, which quantizes once and keeps the result",
    "qconfig_summary_file": "belongs to the static quantization of IPEX, which is not supported: "
    "leave it out",
}


def optimize(
    model: NativeForCausalLM, dtype: torch.dtype | None = None, **switches: Any
) -> NativeForCausalLM:
    """Check that the model computes in `dtype`, and return the model itself.

    switches: other arguments of ipex.optimize and ipex.llm.optimize, accepted with one warning
    Raises ConfigError for a model of another library, for a dtype that is not the model's, and for
    an unknown argument.
    """
    from neuralchat_lite.transformers.arguments import check_names
    from neuralchat_lite.transformers.modeling import NativeForCausalLM

    for name, why in REFUSED.items():
        if switches.get(name) is not None:
            raise ConfigError(f"{name} {why}")
    check_names("optimize", switches, ("dtype", *REFUSED), WITHOUT_EFFECT)
    if not isinstance(model, NativeForCausalLM):
        raise ConfigError(
            f"optimize was given a {type(model).__module__}.{type(model).__name__}: load the model "
            "with neuralchat_lite.transformers.AutoModelForCausalLM"
        )
    if dtype is not None and dtype != model.dtype:
        raise ConfigError(
            f"the model computes in {model.dtype}, not in {dtype}: load it with "
            f"from_pretrained(..., dtype={dtype}), or with that compute_dtype if it is quantized"
        )
    return model


class llm:
    """The namespace `ipex.llm`."""

    optimize = staticmethod(optimize)
