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
    return HuggingFaceEngine(model, 2, {"compiled": False, "activations": "bf16"})
