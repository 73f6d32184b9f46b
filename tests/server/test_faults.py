"""Everything that clients and machines do to a server, at once and in numbers, to a real process:
what others are answered stays what it is alone, and in the end nothing runs and nothing is held."""

from __future__ import annotations

import random
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..patience import patience
from .calls import ASK
from .test_process import KEY, Process

pytestmark = [pytest.mark.long]
HEADERS = {"Authorization": f"Bearer {KEY}"}
ASKED: dict[str, Any] = {"messages": ASK, "temperature": 0, "max_tokens": 24}
LEAVING, CONNECTIONS = 1000, 5000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"the system allows {hard} open files, and {wanted} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    process = Process(tmp_path_factory.mktemp("faults"), "--max-queue", "10000")
    yield process
    assert process.end() == 0
    assert "Traceback" not in "".join(process.lines)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ask(server: Process, **more: Any) -> httpx.Response:
    address = f"{server.address}/chat/completions"
    return httpx.post(address, json={**ASKED, **more}, headers=HEADERS, timeout=120)


def said(server: Process) -> str:
    answer = ask(server)
    assert answer.status_code == 200
    return str(answer.json()["choices"][0]["message"]["content"])


class Others:
    """A thread that asks the same all the time, and keeps what it is answered."""

    def __init__(self, server: Process) -> None:
        self.server, self.answers, self.over = server, list[str](), threading.Event()
        self.thread = threading.Thread(target=self.work)

    def work(self) -> None:
        while not self.over.is_set():
            self.answers.append(said(self.server))
            time.sleep(0.02)

    def __enter__(self) -> Others:
        self.alone = said(self.server)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        assert self.answers and set(self.answers) == {self.alone}


def metric(server: Process, name: str) -> float:
    text = httpx.get(f"{server.address.removesuffix('/v1')}/metrics", headers=HEADERS).text
    [line] = [line for line in text.splitlines() if line.startswith(f"vllm:{name}{{")]
    return float(line.rsplit(" ", 1)[1])


def comes_to_rest(server: Process) -> bool:
    deadline = time.monotonic() + patience(30)
    while metric(server, "num_requests_running") or metric(server, "num_requests_waiting"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def connected(server: Process) -> socket.socket:
    port = int(server.address.removesuffix("/v1").rsplit(":", 1)[1])
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def raw(body: bytes, *, length: int | None = None) -> bytes:
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


def test_clients_that_leave_at_random_moments(server: Process) -> None:
    used = metric(server, "kv_cache_usage_perc")

    def leave(number: int) -> None:
        chance = random.Random(number)
        body = {**ASKED, "max_tokens": 300, "ignore_eos": True, "seed": number, "stream": True}
        moment = chance.uniform(0, 0.2)
        with httpx.Client(timeout=60) as client:
            address = f"{server.address}/chat/completions"
            start = time.monotonic()
            with client.stream("POST", address, json=body, headers=HEADERS) as answer:
                for _ in answer.iter_raw():
                    if time.monotonic() - start > moment:
                        break

    with Others(server), ThreadPoolExecutor(16) as pool:
        list(pool.map(leave, range(LEAVING)))
    assert comes_to_rest(server)
    # Only what is remembered is held: the prompt is shorter than a page, and was never asked alone.
    assert metric(server, "kv_cache_usage_perc") - used < 0.01


def test_clients_that_break_off_before_they_have_said_all(server: Process) -> None:
    with Others(server):
        for number in range(200):
            with connected(server) as client:
                text = raw(b'{"messages": [{"role": "user", "content": "a"}]}')
                client.sendall(text[: random.Random(number).randrange(len(text))])
    assert comes_to_rest(server)


def test_a_client_that_sends_a_byte_a_second(server: Process) -> None:
    with Others(server), connected(server) as client:
        client.sendall(raw(b"", length=1000))
        client.settimeout(1.0)
        answer = b""
        for _ in range(60):
            try:
                client.sendall(b" ")
                answer = client.recv(1000)
                break
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408")


def test_a_body_of_a_hundred_megabytes(server: Process) -> None:
    with Others(server):
        address = f"{server.address}/chat/completions"

        def parts() -> Iterator[bytes]:
            for _ in range(100):
                yield b" " * 1_000_000

        try:
            refused = httpx.post(address, content=parts(), headers=HEADERS, timeout=60)
            assert refused.status_code == 413
        except httpx.WriteError:
            pass  # closed while it was still sending
        with connected(server) as client:
            client.sendall(raw(b"", length=10**8))
            assert client.recv(1000).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("body", [b"\xff\xfe{}", b'{"messages": "\xc3\x28"}', b"\x00" * 100])
def test_bytes_that_are_no_text(server: Process, body: bytes) -> None:
    with Others(server):
        refused = httpx.post(
            f"{server.address}/chat/completions",
            content=body,
            headers={**HEADERS, "Content-Type": "application/json"},
            timeout=60,
        )
        assert refused.status_code == 400


def test_five_thousand_connections(server: Process) -> None:
    with Others(server):
        held = [connected(server) for _ in range(CONNECTIONS)]
        assert len(held) == CONNECTIONS
        # One that says something is answered among them.
        assert said(server)
        time.sleep(16)  # longer than a connection may be silent
        closed = 0
        for each in held:
            each.settimeout(5)
            closed += each.recv(10) == b""
            each.close()
        assert closed == CONNECTIONS
    assert comes_to_rest(server)


def test_a_kill_and_a_new_start(tmp_path: Path, server: Process) -> None:
    killed = Process(tmp_path)
    alone = said(killed)
    with ThreadPoolExecutor(4) as pool:
        running = [
            pool.submit(ask, killed, max_tokens=400, ignore_eos=True, stream=True) for _ in range(4)
        ]
        time.sleep(0.3)
        killed.process.send_signal(signal.SIGKILL)
        killed.process.wait(patience(30))
        for each in running:
            assert each.exception() is not None or "[DONE]" not in each.result().text
    killed.reader.join()
    again = Process(tmp_path)
    try:
        assert said(again) == alone == said(server)
    finally:
        assert again.end() == 0
