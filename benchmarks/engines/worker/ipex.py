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
    settings = {"level": "O1", "auto_kernel_selection": True}
    flags = {}
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        settings["weights_prepack"] = False
        flags["weights_prepack=False"] = "oneDNN packs no bf16 weights without AVX-512"
    model = ipex.optimize(model, dtype=torch.bfloat16, inplace=True, **settings)
    return model, {"ipex.optimize": told(settings), **flags}


def llm_optimize(model, options):
    settings = {"deployment_mode": False}
    model = ipex.llm.optimize(model, dtype=torch.bfloat16, inplace=True, **settings)
    return model, {"ipex.llm.optimize": told(settings)}


def weight_only(model, options):
    from intel_extension_for_pytorch.quantization import (
        WoqLowpMode,
        WoqWeightDtype,
        get_weight_only_quant_qconfig_mapping,
    )

    names = {"weight_dtype": options["weight_dtype"], "lowp_mode": options["lowp_mode"]}
    mapping = get_weight_only_quant_qconfig_mapping(
        weight_dtype=getattr(WoqWeightDtype, names["weight_dtype"]),
        lowp_mode=getattr(WoqLowpMode, names["lowp_mode"]),
        group_size=options["group_size"],
    )
    model = ipex.llm.optimize(
        model,
        dtype=torch.bfloat16,
        quantization_config=mapping,
        inplace=True,
        deployment_mode=False,
    )
    return model, {"ipex.llm.optimize": told(names)}


def told(settings):
    return ", ".join(f"{name}={value}" for name, value in settings.items())


APIS = {"optimize": optimize, "llm_optimize": llm_optimize, "weight_only": weight_only}


def load(folder, options, threads):
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
    model, flags = APIS[options["api"]](model, options)
    conditions = {
        "flags": flags,
        "onednn_has_bf16_support": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    }
    return HuggingFaceEngine(model, 2, conditions)
