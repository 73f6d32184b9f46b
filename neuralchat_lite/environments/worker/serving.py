"""The worker's end of the pipes: it answers each line of JSON with another until stdin closes.

It runs in other environments, so it needs nothing but Python 3.9. Scripts there import it as
`serving` from their own folder. `environments/process.py` holds the other end.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

CPP_TRACE = "\nException raised from "  # torch appends its C++ frames to a message
GRACE_SECONDS = 2.0  # how long a worker whose caller is gone may take to end by itself


def serve(operations: Mapping[str, Callable[..., Any]]) -> None:
    """Answer calls of the operations one after the other. Never returns: it ends the process.

    A request is {"id", "op", "arguments"}; its reply is {"id", "result"} or {"id", "error"} with
    the type and message of what the operation raised.
    """
    requests_fd, replies_fd = private_pipes()
    watch_caller(requests_fd)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=read_requests, args=(requests_fd, requests), daemon=True).start()
    while True:
        request = json.loads(requests.get())
        reply = answer(operations, request)
        send(replies_fd, json.dumps({"id": request["id"], **reply}).encode() + b"\n")


def answer(
    operations: Mapping[str, Callable[..., Any]], request: Mapping[str, Any]
) -> dict[str, Any]:
    if request["op"] not in operations:
        known = ", ".join(operations)
        return {"error": {"type": "KeyError", "message": f"no operation {request['op']}: {known}"}}
    try:
        return {"result": operations[request["op"]](**request["arguments"])}
    # Any error of a library becomes the reply; some libraries call sys.exit.
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        message = str(error).split(CPP_TRACE)[0].strip()
        return {"error": {"type": type(error).__name__, "message": message}}


def private_pipes() -> tuple[int, int]:
    """Move stdin and stdout to new file descriptors, and return these. The output of libraries then
    goes to stderr, and their input is empty."""
    requests_fd, replies_fd = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests_fd, replies_fd


def read_requests(fd: int, requests: queue.SimpleQueue[bytes]) -> None:
    """Read in a thread, so that a closed stdin ends the process even during an operation."""
    with os.fdopen(fd, "rb") as lines:
        for line in lines:
            requests.put(line)
    sys.stderr.flush()
    os._exit(0)


def send(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def watch_caller(requests_fd: int) -> None:
    """Start a small process that ends the worker when the caller is gone.

    The reading thread does that too, but not while a library holds the interpreter lock. It forks,
    so it must be called before threads start and heavy packages are loaded.
    """
    worker = os.getpid()
    alive_fd, held_fd = os.pipe()  # the worker holds one end, which closes when it is gone
    sys.stderr.flush()
    if os.fork():
        os.close(alive_fd)
        return
    os.close(held_fd)
    for stream in (1, 2):  # otherwise the caller would not see the end of the worker's output
        os.close(stream)
    hung_up = select.poll()
    hung_up.register(requests_fd, 0)
    hung_up.register(alive_fd, 0)
    gone = {fd for fd, _ in hung_up.poll()}
    if requests_fd in gone:
        time.sleep(GRACE_SECONDS)
        leads_group = os.getpgrp() == worker
        if leads_group:  # also ends this process and all that the worker has started
            os.killpg(worker, signal.SIGKILL)
        elif not select.select([alive_fd], [], [], 0)[0]:
            os.kill(worker, signal.SIGKILL)
    os._exit(0)
