"""A process that ends while daemon threads compute ends as if they did not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..patience import patience

NANO = Path(__file__).parents[2] / "examples/nano/model"
BEGIN = """
import sys, threading
import neuralchat_lite as ncl
nano, cache, code = sys.argv[1], sys.argv[2], int(sys.argv[3])
begun = threading.Event()
PROMPT = "calculate 100 + 520 + 60"
"""
END = """
def begin():
    try:
        work()
    finally:  # an error too, which the test sees
        begun.set()
threading.Thread(target=begin, daemon=True).start()
begun.wait()
sys.exit(code)
"""
DECODING = """
def work():
    model = ncl.load(nano, "int4", cache_dir=cache)
    while True:
        for piece in model.stream(PROMPT, max_new_tokens=500, temperature=1.0, ignore_eos=True):
            begun.set()
"""
PROMPT = """
def work():
    decoder = ncl.load(nano, "int4", cache_dir=cache).decoder
    while True:
        decoder.forward([5] * 500, decoder.new_cache())
        begun.set()
"""
DROP_IN = """
import os
os.environ["NEURALCHAT_LITE_CACHE"] = cache
from neuralchat_lite.transformers import AutoModelForCausalLM
def work():
    model = AutoModelForCausalLM.from_pretrained(nano, load_in_4bit=True)
    ids = model.native.tokenizer(PROMPT, return_tensors="pt").input_ids
    while True:
        model.generate(ids, max_new_tokens=10, do_sample=True, top_k=50, num_return_sequences=4)
        begun.set()
"""
TORCH_ENGINE = """
def work():
    model = ncl.load(nano, engine="torch", dtype="fp32")
    while True:
        for piece in model.stream(PROMPT, max_new_tokens=500, temperature=1.0, ignore_eos=True):
            begun.set()
"""
QUANTIZING = """
import pathlib
def work():
    for turn in range(1000):
        ncl.quantize(nano, "int4", output=pathlib.Path(cache, str(turn)))
        begun.set()
"""
SEVERAL = (
    DECODING
    + """
threading.Thread(target=work, daemon=True).start()
threading.Thread(target=work, daemon=True).start()
"""
)
LOADING = """
kept = []  # torch gives up Python's lock to free a tensor, which is not ours to hold
def work():
    while True:  # after the first round all packages are imported, which is not ours either
        model = ncl.load(nano, dtype="fp32")
        kept.append((model, model.decoder.new_cache(), model.stream(PROMPT)))
        begun.set()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
"""
FAILING = (
    DECODING
    + """
def hook(*_):
    pass
sys.excepthook = hook
threading.Thread(target=work, daemon=True).start()
begun.wait()
raise ValueError
"""
)


def exit_code(script: str, cache: Path, code: int) -> tuple[int, str]:
    command = [sys.executable, "-c", BEGIN + script + END, str(NANO), str(cache), str(code)]
    limit = patience(120)
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    return done.returncode, "\n".join(filter(not_of_torchao, done.stderr.splitlines()))


def not_of_torchao(line: str) -> bool:
    """transformers imports torchao where it is installed, as for Neural Compressor, and it tells
    what libraries for GPUs it has not loaded."""
    return "torchao" not in line and "torch/utils/_pytree.py" not in line


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (DECODING, 0),
        (DECODING, 7),
        (PROMPT, 3),
        (DROP_IN, 4),
        (TORCH_ENGINE, 5),
        (QUANTIZING, 6),
        (SEVERAL, 8),
        (LOADING, 9),
    ],
    ids=[
        "decoding",
        "decoding-7",
        "prompt",
        "drop-in",
        "torch",
        "quantizing",
        "several",
        "loading",
    ],
)
def test_a_process_that_ends_while_a_daemon_thread_computes_has_its_own_exit_code(
    script: str, code: int, tmp_path: Path
) -> None:
    assert exit_code(script, tmp_path / "cache", code) == (code, "")


def test_a_process_that_ends_by_an_exception_has_the_exit_code_of_python(tmp_path: Path) -> None:
    assert exit_code(FAILING, tmp_path / "cache", 0) == (1, "")


FORKED = """
import faulthandler, os, sys
import neuralchat_lite as ncl
nano, cache, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
model = ncl.load(nano, "int4", cache_dir=cache, progress=False)
ids = list(range(5, 65))
def answer():
    return model.generate(ids, max_new_tokens=3).token_ids
wanted = answer() if sys.argv[4] == "answered" else None
child = os.fork()
if child == 0:
    faulthandler.dump_traceback_later(seconds, exit=True)
    os._exit(0 if wanted in (answer(), None) else 2)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("parent", ["answered", "loaded"])
def test_a_fork_of_a_process_that_has_a_model_answers_too(tmp_path: Path, parent: str) -> None:
    command = [sys.executable, "-c", FORKED, NANO, tmp_path, str(patience(10)), parent]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
