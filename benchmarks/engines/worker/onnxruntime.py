"""ONNX Runtime GenAI: int4 in blocks of 32 by its own model builder, activations in int8."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime_genai as og
from engines.kept import kept, room

SETTINGS = "genai_config.json"
BUILDER_OPTIONS = {"block_size": 32, "accuracy_level": 4, "is_symmetric": True}


def versions():
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__, "onnxruntime-genai": og.__version__}


def prepare(checkpoint, folder, options):
    subprocess.run(
        [
            *(sys.executable, "-m", "onnxruntime_genai.models.builder"),
            *("-i", checkpoint, "-o", folder, "-c", f"{folder}.cache"),
            *("-p", options["precision"], "-e", "cpu", "--extra_options"),
            *(f"{name}={str(value).lower()}" for name, value in BUILDER_OPTIONS.items()),
        ],
        check=True,
    )
    shutil.rmtree(f"{folder}.cache", ignore_errors=True)


def load(folder, options, threads):
    config = og.Config(folder)
    settings = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
    config.overlay(json.dumps(settings))
    return Engine(og.Model(config), folder)


class Engine:
    kv_item_bytes = 4

    def __init__(self, model, folder):
        self.model = model
        self.folder = folder
        self.reader, self.fed, self.positions = None, [], 0  # of `logits`
        self.conditions = {**BUILDER_OPTIONS, "kv_cache": "fp32"}

    @property
    def weight_bytes(self):
        return bytes_read(Path(self.folder, "model.onnx"))

    def generate(self, prompts, new_tokens, tick):
        parameters = og.GeneratorParams(self.model)
        length = len(prompts[0]) + new_tokens
        parameters.set_search_options(
            do_sample=False, batch_size=len(prompts), min_length=length, max_length=length
        )
        generator = og.Generator(self.model, parameters)
        generator.append_tokens(prompts)
        tokens = [[] for _ in prompts]
        for _ in range(new_tokens):
            generator.generate_next_token()
            for ids, token in zip(tokens, generator.get_next_tokens(), strict=True):
                ids.append(int(token))
            tick()
        return tokens

    def logits(self, ids, tail):
        keep, reader = kept(self.fed, ids, tail), self.reader
        self.reader = None  # until all is well
        if reader is None or len(ids) > self.positions:
            settings = json.loads(Path(self.folder, SETTINGS).read_text(encoding="utf-8"))
            self.positions = min(room(len(ids)), settings["model"]["context_length"])
            parameters = og.GeneratorParams(self.model)
            parameters.set_search_options(max_length=self.positions)
            reader, keep = og.Generator(self.model, parameters), 0
        elif keep < len(self.fed):
            reader.rewind_to(keep)
        reader.append_tokens(ids[keep:])
        rows = reader.get_output("logits")[0, -tail:]
        self.reader, self.fed = reader, ids
        return rows

    def own(self):
        return {}


def bytes_read(path):
    """Bytes of all stored tensors except the embedding."""
    total = 0
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if "embed_tokens" in tensor.name:
            continue
        outside = {entry.key: entry.value for entry in tensor.external_data}
        total += int(outside["length"]) if outside else len(tensor.raw_data)
    return total
