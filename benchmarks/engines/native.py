"""neuralchat_lite itself, through its public calls: quantize, load, stream."""

import neuralchat_lite as ncl
import neuralchat_lite.api  # now, so that its packages do not count as loading
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig


def versions():
    return {"neuralchat_lite": ncl.__version__}


def prepare(checkpoint, folder, options):
    config = WeightOnlyQuantConfig(weight_dtype=options["weight_dtype"])
    ncl.quantize(checkpoint, config, folder)


def load(folder, options, threads):
    return Engine(
        ncl.load(folder, compute_dtype=options["compute_dtype"], threads=threads), options
    )


class Engine:
    takes_turns = True

    def __init__(self, model, options):
        self.model = model
        self.weight_bytes = model.decoder.weight_bytes
        self.kv_item_bytes = 4 if options["compute_dtype"] == "fp32" else 2
        report = model.report()
        self.conditions = {
            "isa": report["isa"],
            "group_size": model.config.group_size,
            "batch": "sequences take turns on the same weights, a token each",
        }

    def generate(self, prompts, new_tokens, tick):
        streams = [
            self.model.stream(prompt, max_new_tokens=new_tokens, ignore_eos=True)
            for prompt in prompts
        ]
        tokens = [[] for _ in prompts]
        for _ in range(new_tokens):
            for stream, ids in zip(streams, tokens):
                ids.append(next(stream).token_id)
            tick()
        return tokens

    def own(self):
        return {}
