"""torchao's weight-only quantization of a transformers model, quantized at each load."""

import torch
import torchao
import transformers
from engines.huggingface import HuggingFaceEngine
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import AutoModelForCausalLM

# int4 for a CPU is in torchao's prototypes: the official layouts are those of GPUs.
CONFIGS = {
    "int4": lambda options: PrototypeInt4WeightOnlyConfig(group_size=options["group_size"]),
    "int8": lambda options: Int8WeightOnlyConfig(),
}


def versions():
    return {
        "torch": torch.__version__,
        "torchao": torchao.__version__,
        "transformers": transformers.__version__,
    }


def load(folder, options, threads):
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
    quantize_(model, CONFIGS[options["weight_dtype"]](options))
    conditions = {"compiled": False, "activations": "bf16", "quantized": require_quantized(model)}
    return HuggingFaceEngine(model, 2, conditions)


def require_quantized(model):
    """How many layers are quantized: torchao silently skips those that its groups do not fit."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    done = sum(type(layer.weight.data) is not torch.Tensor for layer in layers)
    if not done:
        raise RuntimeError(
            f"torchao has quantized none of {len(layers)} layers: their columns must be multiples "
            "of its group"
        )
    return f"{done} of {len(layers)} layers"
