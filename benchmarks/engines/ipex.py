"""Intel Extension for PyTorch 2.8: bf16 as neural-chat's card has it, and its weight-only modes."""

import intel_extension_for_pytorch as ipex
import torch
import transformers
from engines.huggingface import HuggingFaceEngine
from transformers import AutoModelForCausalLM


def versions():
    return {
        "torch": torch.__version__,
        "intel-extension-for-pytorch": ipex.__version__,
        "transformers": transformers.__version__,
    }


def optimize(model, options):
    """The line of neural-chat's card, with what it needs where oneDNN has no bf16."""
    flags = {"level": "O1", "auto_kernel_selection": True}
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        flags["weights_prepack"] = False
    model = ipex.optimize(model, dtype=torch.bfloat16, inplace=True, **flags)
    return model, {"ipex.optimize": flags}


def llm_optimize(model, options):
    model = ipex.llm.optimize(model, dtype=torch.bfloat16, inplace=True, deployment_mode=False)
    return model, {"ipex.llm.optimize": {"deployment_mode": False}}


def weight_only(model, options):
    from intel_extension_for_pytorch.quantization import (
        WoqLowpMode,
        WoqWeightDtype,
        get_weight_only_quant_qconfig_mapping,
    )

    flags = {"weight_dtype": options["weight_dtype"], "lowp_mode": options["lowp_mode"]}
    mapping = get_weight_only_quant_qconfig_mapping(
        weight_dtype=getattr(WoqWeightDtype, flags["weight_dtype"]),
        lowp_mode=getattr(WoqLowpMode, flags["lowp_mode"]),
        group_size=options["group_size"],
    )
    model = ipex.llm.optimize(
        model,
        dtype=torch.bfloat16,
        quantization_config=mapping,
        inplace=True,
        deployment_mode=False,
    )
    return model, {"ipex.llm.optimize": flags}


APIS = {"optimize": optimize, "llm_optimize": llm_optimize, "weight_only": weight_only}


def load(folder, options, threads):
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
    model, flags = APIS[options["api"]](model, options)
    flags["onednn_has_bf16_support"] = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return HuggingFaceEngine(model, 2, flags)
