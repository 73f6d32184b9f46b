"""Workers: what passes through the pipes, and what is left when something goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from neuralchat_lite.environments.process import Worker
from neuralchat_lite.errors import EngineError

from ..open_files import many_open_files
from ..patience import patience

ECHO = [sys.executable, str(Path(__file__).parent / "echo_worker.py")]


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker(ECHO, name="the echo") as started:
        yield started


def family(worker: Worker) -> list[int]:
    """The processes of its session: itself, the one that watches, what it has started."""
    return [pid for pid in psutil.pids() if session_of(pid) == worker.process.pid and lives(pid)]


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def nothing_left(worker: Worker) -> bool:
    """A killed process takes a moment to go; less than the one that watches would take."""
    return becomes(lambda: family(worker) == [], seconds=patience(1))


def becomes(claim: Callable[[], bool], seconds: float | None = None) -> bool:
    deadline = time.monotonic() + (patience(10) if seconds is None else seconds)
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_values_come_back_as_they_went(worker: Worker) -> None:
    for value in (None, 1.5, "grüße\n\u2028", [1, {"a": [True]}], "x" * 300_000):
        assert worker.call("echo", value=value) == value


def test_a_caller_with_many_open_files_has_workers() -> None:
    with many_open_files(), Worker(ECHO, name="the echo") as worker:
        assert worker.call("echo", value=[1]) == [1]


def test_what_a_library_prints_is_no_reply_but_a_last_line(worker: Worker) -> None:
    assert worker.call("chat", value=7) == 7
    assert becomes(lambda: len(worker.last_lines) == 3)
    assert set(worker.last_lines) == {"a banner", "a line of C++", "a child's line"}


def test_a_library_that_reads_stdin_finds_it_empty(worker: Worker) -> None:
    assert worker.call("read") == ""


@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("fail", {"message": "no such dtype"}, "the echo: ValueError: no such dtype"),
        ("leave", {"status": 3}, "the echo: SystemExit: 3"),
        ("dance", {}, "no operation dance"),
    ],
)
def test_an_error_is_passed_on_and_the_worker_lives(
    worker: Worker, op: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        worker.call(op, **arguments)
    assert worker.call("echo", value=1) == 1


@pytest.mark.parametrize(
    ("op", "arguments", "how"),
    [
        ("quit_at_once", {"status": 0}, "exit status 0"),
        ("quit_at_once", {"status": 9}, "exit status 9"),
        ("kill", {"number": signal.SIGKILL}, "killed by SIGKILL, often .* too little memory"),
        ("kill", {"number": signal.SIGILL}, "killed by SIGILL, an instruction"),
    ],
)
def test_a_worker_that_dies_says_how_with_its_last_lines(
    worker: Worker, op: str, arguments: dict[str, int], how: str
) -> None:
    with pytest.raises(EngineError, match=rf"the echo died \({how}.*\n  last words$"):
        worker.call(op, **arguments)
    assert nothing_left(worker)
    with pytest.raises(EngineError, match="the echo died"):
        worker.call("echo", value=1)


def test_a_worker_killed_between_calls_is_an_error_of_the_next(worker: Worker) -> None:
    worker.call("echo", value=1)
    worker.process.kill()
    with pytest.raises(EngineError, match="killed by SIGKILL"):
        worker.call("echo", value=2)
    assert nothing_left(worker)


@pytest.mark.parametrize("op", ["hang", "hold_interpreter"])
def test_a_worker_that_hangs_is_ended_at_the_limit(worker: Worker, op: str) -> None:
    helper = worker.call("start_helper")
    with pytest.raises(EngineError, match=rf"did not answer '{op}' within 0.3 s and was ended"):
        worker.call(op, timeout=0.3)
    assert nothing_left(worker) and not lives(helper)


def test_a_request_that_a_hanging_worker_does_not_read_ends_at_the_limit(worker: Worker) -> None:
    with pytest.raises(EngineError, match="did not answer 'hold_interpreter'"):
        worker.call("hold_interpreter", timeout=0.3)
    silent = [sys.executable, "-c", "import time; time.sleep(600)"]
    with (
        Worker(silent, name="the silent") as other,
        pytest.raises(EngineError, match="did not answer 'echo'"),
    ):
        other.call("echo", timeout=0.3, value="x" * 10_000_000)


def test_what_is_no_reply_ends_the_worker() -> None:
    nonsense = [sys.executable, "-c", "print('Hello'); import time; time.sleep(600)"]
    with Worker(nonsense, name="it") as other:
        with pytest.raises(EngineError, match=r"it wrote b'Hello\\n' where a reply was expected"):
            other.call("echo")
        assert nothing_left(other)


def test_closing_leaves_no_process(worker: Worker) -> None:
    helper = worker.call("start_helper")
    assert len(family(worker)) >= 3
    worker.close()
    assert nothing_left(worker) and not lives(helper)
    with pytest.raises(EngineError, match="the echo was closed"):
        worker.call("echo", value=1)


def test_closing_ends_a_computation(worker: Worker) -> None:
    def sleep() -> None:
        with pytest.raises(EngineError):
            worker.call("hang")

    caller = threading.Thread(target=sleep)
    caller.start()
    assert becomes(lambda: "going to sleep" in worker.last_lines)
    before = time.monotonic()
    worker.close()
    caller.join(patience(10))
    assert not caller.is_alive() and time.monotonic() - before < patience(4)
    assert nothing_left(worker)


def test_a_worker_that_nobody_holds_is_ended() -> None:
    forgotten = Worker(ECHO, name="the echo")
    pid = forgotten.process.pid
    assert forgotten.call("echo", value=1) == 1
    del forgotten
    assert becomes(lambda: not lives(pid))


def test_an_interrupted_call_leaves_the_next_one_its_own_answer(worker: Worker) -> None:
    worker.call("echo", value=0)
    main = threading.get_ident()
    threading.Timer(patience(0.2), lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        worker.call("wait_then_echo", value="old", seconds=patience(0.6))
    assert worker.call("echo", value="new") == "new"


def test_ctrl_c_at_the_terminal_does_not_reach_the_worker(worker: Worker) -> None:
    # The terminal signals the foreground group of the caller's session; this one has its own.
    assert session_of(worker.process.pid) == worker.process.pid != os.getsid(0)


@pytest.mark.parametrize("op", ["", "hang", "hold_interpreter"], ids=["idle", "asleep", "busy"])
def test_a_caller_that_is_killed_takes_its_worker_along(op: str) -> None:
    caller = textwrap.dedent(f"""
        import threading, time
        from neuralchat_lite.environments.process import Worker
        worker = Worker({ECHO!r}, name="it")
        worker.call("echo", value=1)
        print(worker.process.pid, worker.call("start_helper"), flush=True)
        worker.call({op!r}) if {op!r} else time.sleep(600)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", caller], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        pid, helper = map(int, parent.stdout.readline().split())
        time.sleep(0.2)  # so that the operation has begun
        assert lives(pid) and lives(helper)
        parent.kill()
    assert becomes(lambda: not lives(pid) and not lives(helper))


def test_calls_from_several_threads_take_turns(worker: Worker) -> None:
    wrong: list[object] = []

    def caller(name: int) -> None:
        for count in range(50):
            if worker.call("echo", value=[name, count]) != [name, count]:
                wrong.append((name, count))

    threads = [threading.Thread(target=caller, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience(30))
    assert wrong == []


def test_variables_are_set_for_the_worker_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_TEST_GONE", "1")
    code = (
        "import json, os, sys; request = json.loads(sys.stdin.readline())\n"
        "found = [os.environ.get(name) for name in request['arguments']['names']]\n"
        "print(json.dumps({'id': request['id'], 'result': found}))"
    )
    variables = {"ENGINE_TEST_SET": "2", "ENGINE_TEST_GONE": None}
    with Worker([sys.executable, "-c", code], name="it", variables=variables) as other:
        assert other.call("get", names=["ENGINE_TEST_SET", "ENGINE_TEST_GONE"]) == ["2", None]
    assert "ENGINE_TEST_SET" not in os.environ


def test_a_command_that_is_not_there_is_said() -> None:
    with pytest.raises(EngineError, match=r"it cannot be started .*no-such-python"):
        Worker(["/nowhere/no-such-python"], name="it")
