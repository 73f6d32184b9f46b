"""An engine without a model: its steps take the time that its options say, on a clock of its own.

Contexts of a certain length make it die, hang or raise, so that the harness' answers can be seen.
"""

import os
import signal
import time
from pathlib import Path

FIRST, STEP = 0.5, 0.125  # seconds on its clock; none of them is waited for


def die():
    print("about to die", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise ValueError("no such context")


TROUBLE = {13: die, 14: lambda: time.sleep(600), 15: fail}


def versions():
    return {"fake": "1.0"}


def prepare(checkpoint, folder, options):
    if options.get("prepare") == "fail":
        raise RuntimeError("cannot convert")
    Path(folder).mkdir()
    Path(folder, "weights").write_bytes(b"x" * 1000)
    with Path(folder).parent.joinpath("prepared").open("a") as file:
        file.write(f"{checkpoint}\n")


def load(folder, options, threads):
    if options.get("load") == "fail":
        raise RuntimeError("cannot load")
    return Engine(threads)


class Engine:
    weight_bytes = 1000
    kv_item_bytes = 2

    def __init__(self, threads):
        self.conditions = {"threads_seen": threads}

    def generate(self, prompts, new_tokens, tick):
        TROUBLE.get(len(prompts[0]), lambda: None)()
        at = time.perf_counter() + FIRST
        for _ in range(new_tokens):
            tick(at)
            at += STEP
        return [[7] * new_tokens for _ in prompts]

    def answer_all(self, prompts, new_tokens, at_once):
        return self.generate(prompts, new_tokens, lambda at: None)

    def logits(self, ids, tail):
        """Behind each id comes the next one. 97 ids: one more than the model has, as padding."""
        TROUBLE.get(len(ids), lambda: None)()
        return [[10.0 * (token == (last + 1) % 97) for token in range(97)] for last in ids[-tail:]]

    def own(self):
        return {"clock": "the fake's", "time_per_token_s": STEP}
