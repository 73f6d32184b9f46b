"""What locust runs: users that ask /v1/completions one after the other until all requests are
through, and the sums of what they saw. `load.py` calls it.

The client computes on the same cores as the server, so it does little: of a stream it looks at the
first byte and at the end.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any, ClassVar

import gevent
from gevent.event import Event
from geventhttpclient.connectionpool import ConnectionPool
from locust import FastHttpUser, constant, events, task

NEVER_LATER = 600.0  # seconds


def add_options(parser: Any) -> None:
    parser.add_argument("--asked", required=True, help="a JSON file: prompts, body, stream, out")


class Sums:
    """What all users of this process saw."""

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.tokens = 0
        self.statuses: dict[int, int] = {}
        self.first: list[float] = []
        self.began = self.ended = 0.0


sums = Sums()
done = Event()  # all requests are through


def send_at_once(_: Any, socket: Any) -> None:
    """A body that waits for the other side to acknowledge the head of its request waits 40 ms."""
    socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)


pools: Any = ConnectionPool
pools.after_connect = send_at_once


class Asker(FastHttpUser):
    wait_time = constant(0)
    network_timeout = connection_timeout = NEVER_LATER
    asked: ClassVar[dict[str, Any]] = {}

    @task
    def ask(self) -> None:
        number = next(sums.numbers)
        if number >= len(self.asked["prompts"]):
            done.wait()  # for the others; a user that stops would race with the end of all
            return
        body = {**self.asked["body"], "prompt": self.asked["prompts"][number]}
        start = time.perf_counter()
        sums.began = sums.began or start
        with self.client.post(
            "/v1/completions", json=body, stream=self.asked["stream"], catch_response=True
        ) as answer:
            if not self.asked["stream"]:
                text = answer.text or ""
            else:
                text = next(answer.iter_content(1), "")
                sums.first.append(time.perf_counter() - start)
                text += "".join(answer.iter_content(1 << 20))
            status = answer.status_code
            found = usage_in(text, self.asked["stream"]) if status == 200 else None
            if found is None:
                status = status if status != 200 else 0  # broken off
                answer.failure(text[:200])
            else:
                sums.tokens += found
                answer.success()
        sums.statuses[status] = sums.statuses.get(status, 0) + 1
        sums.ended = time.perf_counter()
        if sum(sums.statuses.values()) == len(self.asked["prompts"]):
            done.set()


def usage_in(text: str, stream: bool) -> int | None:
    """The tokens of an answer; None for one that has not come to its end."""
    if not stream:
        return int(json.loads(text)["usage"]["completion_tokens"])
    parts = text.rstrip().split("\n\n")
    if parts[-1] != "data: [DONE]":
        return None
    return int(json.loads(parts[-2].removeprefix("data: "))["usage"]["completion_tokens"])


def begin(environment: Any, **_: Any) -> None:
    path = Path(environment.parsed_options.asked)
    Asker.asked = json.loads(path.read_text(encoding="utf-8"))

    def end() -> None:
        done.wait()
        environment.runner.quit()

    gevent.spawn(end)


def write_sums(environment: Any, **_: Any) -> None:
    found = {
        "seconds": sums.ended - sums.began,
        "tokens": sums.tokens,
        "statuses": sums.statuses,
        "first_s": sums.first,
    }
    Path(Asker.asked["out"]).write_text(json.dumps(found), encoding="utf-8")


hooks: Any = events  # which has no types
hooks.init_command_line_parser.add_listener(add_options)
hooks.init.add_listener(begin)
hooks.quitting.add_listener(write_sums)
