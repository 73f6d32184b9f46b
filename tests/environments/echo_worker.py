"""A worker with an operation for each way to behave or misbehave; run by test_process.py."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import neuralchat_lite.environments.worker

sys.path.insert(0, str(Path(neuralchat_lite.environments.worker.__file__).parent))
from serving import serve  # as the scripts of other environments import it


def echo(value):
    return value


def chat(value):
    """Writes to stdout by every way that a library has."""
    print("a banner")
    os.write(1, b"a line of C++\n")
    subprocess.run(["echo", "a child's line"], check=True)
    return value


def read():
    return sys.stdin.read()


def fail(message):
    raise ValueError(message)


def leave(status):
    sys.exit(status)


def quit_at_once(status):
    print("last words", file=sys.stderr, flush=True)
    os._exit(status)


def kill(number):
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), number)
    time.sleep(60)


def hang():
    print("going to sleep", file=sys.stderr, flush=True)
    time.sleep(600)


def hold_interpreter():
    """Computes for ages in C code that lets no other thread run."""
    re.match("(a+)+$", "a" * 60 + "b")


def start_helper():
    return subprocess.Popen(["sleep", "600"]).pid


def wait_then_echo(value, seconds):
    time.sleep(seconds)
    return value


def group():
    return {"session": os.getsid(0), "pid": os.getpid()}


serve(
    {
        function.__name__: function
        for function in (
            echo,
            chat,
            read,
            fail,
            leave,
            quit_at_once,
            kill,
            hang,
            hold_interpreter,
            start_helper,
            wait_then_echo,
            group,
        )
    }
)
