"""Quantizes into a cache again and again and is killed at random moments; run by test_cache.py.

Arguments: config.json as text, cache folder, number of kills. Prints what each kill left as a JSON
list: "none" or "whole". torch is imported once: each attempt is a fork.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.packed.cache import cached, entries, remove
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

config, root, kills = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])


def attempt() -> int:
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        cached(RandomCheckpoint(config), WeightOnlyQuantConfig(), root=root)
        os._exit(0)
    return pid


def whole() -> bool:
    found = entries(root)
    for entry in found:
        open_packed(entry.path, verify="always")
    return bool(found)


def succeed() -> float:
    start = time.perf_counter()
    _, status = os.waitpid(attempt(), 0)
    taken = time.perf_counter() - start
    assert status == 0, status
    assert whole()
    empty()
    return taken


def empty() -> None:
    for entry in entries(root):
        remove(entry.path)


duration = min(succeed(), succeed())  # the first one also warms up
left = []
for _ in range(kills):
    pid = attempt()
    time.sleep(random.uniform(0, duration))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    left.append("whole" if whole() else "none")
    empty()
succeed()
assert not list(root.glob(".tmp-*")), list(root.iterdir())
print(json.dumps(left))
