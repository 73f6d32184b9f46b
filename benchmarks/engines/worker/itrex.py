"""Intel Extension for Transformers 1.4.2: round-to-nearest with QBits, quantized at each load."""

from importlib.metadata import version

import torch
import transformers
from engines.huggingface import HuggingFaceEngine
from intel_extension_for_transformers import qbits
from intel_extension_for_transformers.transformers import AutoModelForCausalLM, RtnConfig


def versions():
    return {
        "torch": torch.__version__,
        "intel-extension-for-transformers": version("intel-extension-for-transformers"),
        "transformers": transformers.__version__,
    }


def load(folder, options, threads):
    torch.set_num_threads(threads)
    qbits.set_qbits_threads(threads)  # else all cores: what falls to more than torch has is undone
    config = RtnConfig(
        bits=options["bits"],
        weight_dtype=options["weight_dtype"],
        compute_dtype=options["compute_dtype"],
        scale_dtype="fp32",
        group_size=options["group_size"],
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, use_neural_speed=False, device_map="cpu"
    ).eval()
    conditions = {
        "kernels": "QBits",
        "lm_head": "fp32",
        "bytes_per_token": "the sizes of its tensors, as QBits has packed them",
    }
    return HuggingFaceEngine(model, 4, conditions)
