"""CTranslate2: int8 weights and activations, by its own converter."""

import json
import shutil
from pathlib import Path

import ctranslate2
import numpy as np

FILE, VOCABULARY = "model.bin", "vocabulary.json"
ORIGINAL = "checkpoint_config.json"


def versions():
    return {"ctranslate2": ctranslate2.__version__}


def prepare(checkpoint, folder, options):
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(checkpoint, low_cpu_mem_usage=True)
    converter.convert(folder, quantization=options["compute_type"])
    shutil.copy(Path(checkpoint, "config.json"), Path(folder, ORIGINAL))


def load(folder, options, threads):
    generator = ctranslate2.Generator(
        folder, "cpu", compute_type=options["compute_type"], inter_threads=1, intra_threads=threads
    )
    return Engine(generator, folder)


class Engine:
    kv_item_bytes = 4

    def __init__(self, generator, folder):
        self.generator = generator
        self.folder = Path(folder)
        self.words = json.loads((self.folder / VOCABULARY).read_text(encoding="utf-8"))
        self.conditions = {
            "compute_type": generator.compute_type,
            "kv_cache": "fp32",
            "bytes_per_token": "estimated: the whole file without an int8 embedding",
        }

    @property
    def weight_bytes(self):
        config = json.loads((self.folder / ORIGINAL).read_text(encoding="utf-8"))
        size = (self.folder / FILE).stat().st_size
        return size - len(self.words) * config["hidden_size"]

    def generate(self, prompts, new_tokens, tick):
        last = len(prompts) - 1

        def step(result):
            if result.batch_id == last:
                tick()
            return False

        results = self.generator.generate_batch(
            [[self.words[token] for token in ids] for ids in prompts],
            min_length=new_tokens,
            max_length=new_tokens,
            sampling_topk=1,
            end_token=[],
            include_prompt_in_result=False,
            callback=step,
        )
        return [result.sequences_ids[0] for result in results]

    def logits(self, ids, tail):
        return np.array(self.generator.forward_batch([ids]))[0, -tail:]

    def own(self):
        return {}
