"""transformers itself with unquantized weights: the common baseline."""

import torch
import transformers
from engines.huggingface import HuggingFaceEngine
from transformers import AutoModelForCausalLM


def versions():
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def load(folder, options, threads):
    torch.set_num_threads(threads)
    dtype = getattr(torch, options["dtype"])
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype).eval()
    conditions = {"attention": model.config._attn_implementation}
    return HuggingFaceEngine(model, dtype.itemsize, conditions)
