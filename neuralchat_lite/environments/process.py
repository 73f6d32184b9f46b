"""A worker process: it reads a request as a line of JSON and answers with another.

The worker leads its own session. So Ctrl-C at the terminal reaches the caller alone, and one signal
ends the worker with all processes that it has started. `worker/serving.py` is its end of the pipes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from neuralchat_lite.errors import EngineError

KEPT_LINES = 20  # of stderr, for error messages
PATIENCE_SECONDS = 5.0  # how long a process may take to end by itself
# The usual cause of a death by this signal.
SIGNAL_HINTS = {
    signal.SIGKILL: "often because there is too little memory",
    signal.SIGILL: "an instruction that this CPU does not have",
    signal.SIGSEGV: "a fault inside a library",
}


class Worker:
    """A process that answers calls. Calls from several threads take turns.

    command: the command to run; its stdin and stdout carry the requests and replies
    name: its name in error messages
    variables: environment variables of the worker: a value to set, or None to remove one
    folder: its working directory
    Raises EngineError if it cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        variables: Mapping[str, str | None] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self.turn = threading.Lock()
        self.calls = 0
        self.unsent = b""
        self.ended: str | None = None  # why it no longer answers
        changed = {**os.environ, **(variables or {})}
        environment = {key: value for key, value in changed.items() if value is not None}
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(
                f"{name} cannot be started ({error.strerror}: {command[0]}): "
                "see `neuralchat-lite engines list`"
            ) from error
        assert self.process.stdin and self.process.stdout and self.process.stderr
        os.set_blocking(self.process.stdin.fileno(), False)
        self.replies: SimpleQueue[bytes | None] = SimpleQueue()
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.stderr_reader = start_thread(keep_lines, self.process.stderr, self.last_lines)
        start_thread(pass_lines, self.process.stdout, self.replies)
        # It also runs at the end of the interpreter.
        self.finalizer = weakref.finalize(self, end_group, self.process, os.getpid())

    def call(self, op: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Call an operation of the worker and return its result.

        timeout: seconds to wait for an answer; then the worker is ended
        Raises EngineError. If the operation raised, the error has its type and message, and the
        worker goes on. If the worker died, hung or wrote an invalid reply, the error has its last
        lines of output, and the worker is gone.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self.turn:
            if self.ended is not None:
                raise EngineError(self.ended)
            self.calls += 1
            request = {"id": self.calls, "op": op, "arguments": arguments}
            # The rest of an interrupted request goes first, so that lines stay whole.
            self.unsent += json.dumps(request).encode() + b"\n"
            reply = None
            try:
                self.send(deadline)
                while (
                    reply is None or reply["id"] != self.calls
                ):  # skip replies to interrupted calls
                    reply = self.receive(deadline)
            except TimeoutError:
                raise self.end(
                    f"did not answer {op!r} within {timeout:g} s and was ended"
                ) from None
        if "error" in reply:
            error = reply["error"]
            raise EngineError(f"{self.name}: {error['type']}: {error['message']}")
        return reply["result"]

    def send(self, deadline: float | None) -> None:
        assert self.process.stdin
        pipe = self.process.stdin.fileno()
        writable = select.poll()  # `select` has no descriptors from 1024 on
        writable.register(pipe, select.POLLOUT)
        while self.unsent:
            left = remaining(deadline)
            if not writable.poll(None if left is None else left * 1000):
                raise TimeoutError
            try:
                self.unsent = self.unsent[os.write(pipe, self.unsent) :]
            except BrokenPipeError:
                raise self.end(None) from None

    def receive(self, deadline: float | None) -> dict[str, Any]:
        try:
            line = self.replies.get(timeout=remaining(deadline))
        except Empty:
            raise TimeoutError from None
        if line is None:
            raise self.end(None)
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict) or "id" not in reply:
            raise self.end(f"wrote {line[:100]!r} where a reply was expected, and was ended")
        return reply

    def end(self, what: str | None) -> EngineError:
        """End the process. Returns the error with the reason: `what`, or how it died if None."""
        if what is None:
            await_death(self.process, PATIENCE_SECONDS)
        self.finalizer()
        if what is None and self.ended is not None:  # closed from another thread
            return EngineError(self.ended)
        if what is None:
            what = f"died ({death(self.process.returncode)})"
        self.stderr_reader.join(PATIENCE_SECONDS)
        lines = "\n".join(f"  {line}" for line in self.last_lines) or "  (none)"
        self.ended = f"{self.name} {what}; load the model again. Its last lines:\n{lines}"
        return EngineError(self.ended)

    def close(self) -> None:
        """End the worker by closing its stdin, and by force if that does not help."""
        if self.ended is None:
            self.ended = f"{self.name} was closed: load the model again"
        assert self.process.stdin
        self.process.stdin.close()
        await_death(self.process, PATIENCE_SECONDS)
        self.finalizer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def start_thread(work: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def keep_lines(stream: IO[bytes], kept: deque[str]) -> None:
    with stream:
        for line in stream:
            kept.append(line.decode(errors="replace").rstrip())


def pass_lines(stream: IO[bytes], lines: SimpleQueue[bytes | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def await_death(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until it is dead, without collecting its exit status: until that is collected, no other
    process group can get its number."""
    deadline = time.monotonic() + seconds
    options = os.WEXITED | os.WNOWAIT | os.WNOHANG
    while process.returncode is None and time.monotonic() < deadline:
        if os.waitid(os.P_PID, process.pid, options) is not None:
            return
        time.sleep(0.01)


def end_group(process: subprocess.Popen[bytes], owner: int) -> None:
    """Kill the process and all that it has started. Does nothing in a fork of the owner."""
    if os.getpid() != owner:
        return
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin
    with contextlib.suppress(OSError):
        process.stdin.close()


def death(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    number = signal.Signals(-status)
    hint = SIGNAL_HINTS.get(number)
    return f"killed by {number.name}" + (f", {hint}" if hint else "")
