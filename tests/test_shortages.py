"""What the system refuses is one error of ours, and exit code 2."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuralchat_lite.errors import NeuralchatError, ResourceError
from neuralchat_lite.shortages import shortage, shortages

NANO = Path(__file__).parents[1] / "examples/nano/model"


class PanicException(BaseException):
    """As tokenizers raises it."""


REFUSALS = (
    (MemoryError(), "refused memory .MemoryError.*ulimit -v"),
    (RuntimeError("unable to mmap 5 bytes: Cannot allocate memory (12)"), "refused memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "refused memory"),
    (ImportError("x.so: failed to map segment from shared object"), "refused memory"),
    (RuntimeError("can't start new thread"), "refused a thread .*ulimit -u"),
    (RuntimeError("Resource temporarily unavailable"), "refused a thread or process.*threads=1"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "refused memory"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "a thread or process"),
    (PanicException("ThreadPoolBuildError { kind: WouldBlock }"), "TOKENIZERS_PARALLELISM"),
)


@pytest.mark.parametrize(("error", "message"), REFUSALS, ids=lambda value: repr(value)[:40])
def test_each_way_to_say_it_becomes_one_error(error, message):
    with pytest.raises(ResourceError, match=message) as refused, shortages():
        raise error
    assert isinstance(refused.value, (NeuralchatError, MemoryError))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("x"),
        ImportError("no module"),
        OSError(errno.ENOENT, "x"),
        KeyboardInterrupt(),
        PanicException("index out of bounds"),
        NeuralchatError("cannot allocate memory"),
    ],
    ids=repr,
)
def test_other_errors_stay_as_they_are(error):
    assert shortage(error) is None


def test_a_terminal_that_is_busy_is_no_shortage():
    with pytest.raises(BlockingIOError), shortages([errno.ENOMEM]):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


CLI = """
import resource, sys
import torch, transformers
from neuralchat_lite.cli.app import main
size = int(open("/proc/self/statm").read().split()[0]) * 4096 + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (size, size))
main(["generate", sys.argv[2], "-p", "1+1=", "--max-new-tokens", "4"])
"""
API = """
import resource, sys
import neuralchat_lite
model = neuralchat_lite.load(sys.argv[2], dtype="fp32")
size = int(open("/proc/self/statm").read().split()[0]) * 4096 + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (size, size))
try:
    model.generate("1+1=", max_new_tokens=900, ignore_eos=True)
except neuralchat_lite.ResourceError as error:
    sys.exit(f"refused: {error}"[:400])
"""


def run_limited(code: str, megabytes: int, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NEURALCHAT_LITE_CACHE": str(cache), "NEURALCHAT_LITE_THREADS": "2"}
    command = [sys.executable, "-c", code, str(megabytes), str(NANO)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )


@pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")
@pytest.mark.parametrize("megabytes", [0, 8, 16])
def test_a_command_without_memory_ends_with_code_2_and_one_line(megabytes, tmp_path):
    done = run_limited(CLI, megabytes, tmp_path)
    if done.returncode:  # how much is enough depends on versions
        assert done.returncode == 2, done.stderr
        assert "ulimit -v" in done.stderr.splitlines()[-1]
        assert "internal error" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")
@pytest.mark.parametrize("megabytes", [0, 10])
def test_a_generation_without_memory_or_threads_raises_one_error(megabytes, tmp_path):
    done = run_limited(API, megabytes, tmp_path)
    if done.returncode:
        assert "refused: the system refused" in done.stderr, done.stderr
        assert done.returncode == 1
