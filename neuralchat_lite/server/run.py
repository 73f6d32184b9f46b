"""An application on a socket, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from neuralchat_lite.errors import ConfigError

HEAD_SECONDS = 15.0  # in which the head of a request must arrive
BACKLOG = 2048
FILES = 65_536  # connections that we would like to hold at once


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes connections which never say what they want. uvicorn waits for ever."""

    head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.forget_head()
        super().connection_lost(exc)

    def watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self.forget_head()
        elif self.head_timer is None:
            self.head_timer = self.loop.call_later(HEAD_SECONDS, self.close_silent)

    def forget_head(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def close_silent(self) -> None:
        self.head_timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Says when it begins to end, so that /ready tells others."""

    ended_by: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.ended_by = sig
        loaded: Any = self.config.app
        loaded.state.desks.draining = True
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """Raises ConfigError for an address that is not ours or not free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen at {host}, port {port} ({getattr(error, 'strerror', None) or error}): "
            "give another --port or --host"
        ) from None


def run(app: FastAPI, listening: socket.socket, grace: float) -> None:
    """Answer requests until SIGTERM or SIGINT. Then no more are taken, those that run are answered
    to their end, and after `grace` seconds, at least 1, what is left is cut off.

    After SIGTERM this returns; SIGINT is a KeyboardInterrupt as elsewhere.
    """
    allow_many_files()
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(grace)),
    )
    server = Server(config)
    # uvicorn has handlers while it serves, and raises the signal again when it has drained. These
    # are for what comes before, and let the second one pass. With Python's own handler of SIGINT
    # asyncio would have one too, and be interrupted while it closes its loop.
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [(each, signal.signal(each, server.handle_exit)) for each in signals]
    try:
        server.run(sockets=[listening])
    finally:
        for each, handler in before:
            signal.signal(each, handler)
    if server.ended_by == signal.SIGINT:
        raise KeyboardInterrupt


def allow_many_files() -> None:
    """A connection is an open file, and shells allow 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
