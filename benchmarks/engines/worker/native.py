"""neuralchat_lite itself, through its public calls: quantize, load, stream."""

from concurrent.futures import ThreadPoolExecutor

import neuralchat_lite as ncl
import neuralchat_lite.api  # now, so that its packages do not count as loading
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig


def versions():
    return {"neuralchat_lite": ncl.__version__}


def prepare(checkpoint, folder, options):
    given = options.get("quantization")  # a file's codes have their own
    config = None if given is None else WeightOnlyQuantConfig(**given)
    ncl.quantize(checkpoint, config, folder)


def load(folder, options, threads):
    return Engine(
        ncl.load(folder, compute_dtype=options["compute_dtype"], threads=threads), options
    )


class Engine:
    def __init__(self, model, options):
        self.model = model
        self.weight_bytes = model.decoder.weight_bytes
        self.kv_item_bytes = 4 if options["compute_dtype"] == "fp32" else 2
        report = model.report()
        self.conditions = {
            "isa": report["isa"],
            "group_size": model.config.group_size,
            "batch": "one sequence by model.stream, several by decoder.forward_batch",
        }

    def generate(self, prompts, new_tokens, tick):
        if len(prompts) == 1:
            options = {"max_new_tokens": new_tokens, "ignore_eos": True}
            tokens = []
            for piece in self.model.stream(prompts[0], **options):
                tokens.append(piece.token_id)
                tick()
            return [tokens]
        return self.generate_batch(prompts, new_tokens, tick)

    def generate_batch(self, prompts, new_tokens, tick):
        decoder = self.model.decoder
        caches = [decoder.new_cache(len(prompt) + new_tokens) for prompt in prompts]
        tokens = [[] for _ in prompts]
        feed = prompts
        for _ in range(new_tokens):
            # In numpy, as in the library's own loop: torch would wake its threads.
            logits = decoder.forward_batch(feed, caches)
            feed = [[int(row[0].numpy().argmax())] for row in logits]
            for ids, new in zip(tokens, feed, strict=True):
                ids += new
            tick()
        return tokens

    def answer_all(self, prompts, new_tokens, at_once):
        def answer(ids):
            reply = self.model.generate(ids, max_new_tokens=new_tokens, ignore_eos=True)
            return list(reply.token_ids)

        with ThreadPoolExecutor(at_once) as threads:
            return list(threads.map(answer, prompts))

    def own(self):
        return {}
