"""One engine in a process of its own: `python main.py SERVING_FOLDER ENGINE_FILE`.

It runs in the engine's environment, so it needs nothing but Python 3.10. `__init__.py` says what an
engine file defines; one may import another as `engines.NAME`, and `stepping`.
"""

import sys

sys.path.pop(0)  # this folder: its names are not for the engine's packages to import

import base64
import importlib
import itertools
import time
import types
from pathlib import Path

WARM_UP_TOKENS = 2


class Host:
    def __init__(self, module):
        self.module = module
        self.engine = None

    def versions(self):
        return self.module.versions()

    def prepare(self, checkpoint, folder, options):
        start = time.perf_counter()
        self.module.prepare(checkpoint, folder, options)
        return {"seconds": time.perf_counter() - start}

    def load(self, folder, options, threads):
        start = time.perf_counter()
        self.engine = self.module.load(folder, options, threads)
        return {
            "seconds": time.perf_counter() - start,
            "weight_bytes": self.engine.weight_bytes,
            "kv_item_bytes": self.engine.kv_item_bytes,
            "conditions": self.engine.conditions,
        }

    def warm_up(self, prompts):
        """One-time work of the engine: compile, allocate, touch its weights."""
        self.engine.generate(prompts, WARM_UP_TOKENS, lambda at=None: None)

    def generate(self, prompts, new_tokens):
        """Seconds to the first token, and of each later step; one step is a token for each."""
        ticks = []

        def tick(at=None):
            ticks.append(time.perf_counter() if at is None else at)

        start = time.perf_counter()
        tokens = self.engine.generate(prompts, new_tokens, tick)
        check_lengths(tokens, prompts, new_tokens)
        if len(ticks) != new_tokens:
            raise RuntimeError(f"{len(ticks)} ticks came, not {new_tokens}")
        return {
            "first_token_s": ticks[0] - start,
            "step_s": [later - earlier for earlier, later in itertools.pairwise(ticks)],
            "token_ids": tokens,
            "own": self.engine.own(),
        }

    def answer_all(self, prompts, new_tokens, at_once):
        """Seconds until all prompts are answered, `at_once` of them at the same time."""
        if not hasattr(self.engine, "answer_all"):
            raise RuntimeError("it answers one batch after the other: ask engines that others join")
        self.engine.answer_all(prompts[:at_once], WARM_UP_TOKENS, at_once)
        start = time.perf_counter()
        tokens = self.engine.answer_all(prompts, new_tokens, at_once)
        seconds = time.perf_counter() - start
        check_lengths(tokens, prompts, new_tokens)
        return {"seconds": seconds}

    def logits(self, ids, tail):
        """fp32, row after row, in base64"""
        import numpy

        found = numpy.ascontiguousarray(self.engine.logits(ids, tail), dtype=numpy.float32)
        if found.ndim != 2 or len(found) != tail:
            raise RuntimeError(f"logits of shape {found.shape} came, not {tail} rows")
        return {"logits": base64.b64encode(found).decode("ascii")}

    def memory(self):
        """Bytes: the peak of resident memory, and what is private to this process now."""
        found = {}
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name in ("VmHWM", "RssAnon"):
                found[name] = int(value.split()[0]) * 1024
        return {"peak_rss_bytes": found["VmHWM"], "private_bytes": found["RssAnon"]}


def check_lengths(tokens, prompts, new_tokens):
    if [len(ids) for ids in tokens] != [new_tokens] * len(prompts):
        raise RuntimeError(
            f"{[len(ids) for ids in tokens]} tokens came, not {new_tokens} for each of "
            f"{len(prompts)} prompts"
        )


OPERATIONS = (
    *("versions", "prepare", "load", "warm_up", "generate", "answer_all", "logits", "memory"),
)


def import_engine(path):
    package = types.ModuleType("engines")
    package.__path__ = [str(path.parent)]
    sys.modules["engines"] = package
    return importlib.import_module(f"engines.{path.stem}")


def main():
    serving_folder, engine_file = sys.argv[1:]
    sys.path.insert(0, serving_folder)
    from serving import serve

    # Behind all packages: what else lies there is not for them to import instead of their own.
    sys.path.append(sys.path.pop(0))
    host = None

    def call(name):
        # The engine's packages are imported by the first call, when the pipes are protected.
        def operation(**arguments):
            nonlocal host
            if host is None:
                host = Host(import_engine(Path(engine_file)))
            return getattr(host, name)(**arguments)

        return operation

    serve({name: call(name) for name in OPERATIONS})


if __name__ == "__main__":
    main()
