"""The worker's end of the pipes: a JSON line comes in, one goes out, until stdin closes.

It runs in other environments, so it needs nothing but Python 3.9, and scripts there import it as
`serving`, from the folder that it lies in. `process.Worker` holds the other end.
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

CPP_TRACE = "\nException raised from "  # torch puts its C++ frames behind a message
GRACE_SECONDS = 2.0  # for a worker whose caller is gone to leave by itself


def serve(operations: Mapping[str, Callable[..., Any]]) -> None:
    """Answer calls of the operations, one after the other. Ends the process, never returns.

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
    # Whatever a library raises is its answer; some leave by sys.exit.
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        message = str(error).split(CPP_TRACE)[0].strip()
        return {"error": {"type": type(error).__name__, "message": message}}


def private_pipes() -> tuple[int, int]:
    """stdin and stdout under numbers of their own; what libraries print goes to stderr instead,
    and what they read is empty."""
    requests_fd, replies_fd = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests_fd, replies_fd


def read_requests(fd: int, requests: queue.SimpleQueue[bytes]) -> None:
    """Reads beside the operation that runs, so that a closed stdin ends it in the middle."""
    with os.fdopen(fd, "rb") as lines:
        for line in lines:
            requests.put(line)
    sys.stderr.flush()
    os._exit(0)


def send(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def watch_caller(requests_fd: int) -> None:
    """Start a little process that ends us when the caller is gone.

    The reading thread does that too, but not while a library computes and holds the interpreter.
    Call it before threads are started and heavy packages loaded: it is a fork.
    """
    worker = os.getpid()
    alive_fd, held_fd = os.pipe()  # held open by us: it hangs up when we are gone
    sys.stderr.flush()
    if os.fork():
        os.close(alive_fd)
        return
    os.close(held_fd)
    for stream in (1, 2):  # or the caller would wait for us to see their end
        os.close(stream)
    hung_up = select.poll()
    hung_up.register(requests_fd, 0)
    hung_up.register(alive_fd, 0)
    gone = {fd for fd, _ in hung_up.poll()}
    if requests_fd in gone:
        time.sleep(GRACE_SECONDS)
        leads_group = os.getpgrp() == worker
        if leads_group:  # with all that it has started, and this process
            os.killpg(worker, signal.SIGKILL)
        elif not select.select([alive_fd], [], [], 0)[0]:
            os.kill(worker, signal.SIGKILL)
    os._exit(0)
