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
    return done.returncode, done.stderr


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
    ],
    ids=["decoding", "decoding-7", "prompt", "drop-in", "torch", "quantizing", "several"],
)
def test_a_process_that_ends_while_a_daemon_thread_computes_has_its_own_exit_code(
    script: str, code: int, tmp_path: Path
) -> None:
    assert exit_code(script, tmp_path / "cache", code) == (code, "")


def test_a_process_that_ends_by_an_exception_has_the_exit_code_of_python(tmp_path: Path) -> None:
    assert exit_code(FAILING, tmp_path / "cache", 0) == (1, "")
