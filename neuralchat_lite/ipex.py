"""What scripts call of intel_extension_for_pytorch, for models of neuralchat_lite.transformers.

    import neuralchat_lite.ipex as ipex
    model = ipex.optimize(model.eval(), dtype=torch.bfloat16, inplace=True)

There is nothing left to optimize: the native kernels run from the start. The calls check what they
are given, so that a script does not believe it computes in another precision than it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neuralchat_lite.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from neuralchat_lite.transformers.modeling import NativeForCausalLM

__all__ = ["llm", "optimize"]

# Arguments of ipex.optimize and ipex.llm.optimize that steer its graphs, layouts and devices.
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
    "optimizer": "is for training, and the weights here are never written",
    "quantization_config": "is IPEX's own: give a WeightOnlyQuantConfig to "
    "AutoModelForCausalLM.from_pretrained, which quantizes once and keeps the result",
    "qconfig_summary_file": "is of IPEX's static quantization, which has no kernel here",
}


def optimize(
    model: NativeForCausalLM, dtype: torch.dtype | None = None, **switches: Any
) -> NativeForCausalLM:
    """The model itself, found to compute in `dtype`.

    switches: those of ipex.optimize and ipex.llm.optimize, accepted with one warning
    Raises ConfigError for a model of another library, another dtype than the model's, and for
    unknown switches.
    """
    from neuralchat_lite.transformers.auto import check_names
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
            f"from_pretrained(..., dtype={dtype}), or with that compute_dtype when it is quantized"
        )
    return model


class llm:
    """The namespace `ipex.llm`, as scripts spell it."""

    optimize = staticmethod(optimize)
