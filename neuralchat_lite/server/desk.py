"""Where requests wait for their answers: one desk for each model.

Encoding a prompt takes milliseconds, and so is done in threads; the event loop only passes pieces
on. A desk knows how many answers are open, and refuses more than may run and wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import anyio.to_thread
from fastapi import Request

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.defaults import chat_defaults
from neuralchat_lite.generation.handle import Handle, pieces_or_ticks
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.sequence import Piece
from neuralchat_lite.kernels.interruption import Interrupted, between_blocks, interrupted_by
from neuralchat_lite.model import Model
from neuralchat_lite.server.errors import RequestError, bad_request, log
from neuralchat_lite.server.metrics import Metrics
from neuralchat_lite.server.settings import USUAL_TEMPERATURE, Settings

ENCODERS = 2  # threads that encode prompts, of all requests
RETRY_SECONDS = 2
T = TypeVar("T")
Asked = tuple[Any, GenerationOptions]  # a prompt, and how to answer it


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Desk:
    """defaults: options of an answer whose request says nothing of them"""

    def __init__(self, name: str, model: Model, settings: Settings, metrics: Metrics) -> None:
        self.name, self.model, self.settings, self.metrics = name, model, settings, metrics
        self.created = int(time.time())
        self.defaults = defaults_of(model, settings)
        self.open = 0  # answers that run or wait
        self.encoders = anyio.CapacityLimiter(ENCODERS)
        self.reader = anyio.CapacityLimiter(1)  # of texts that are embedded, beside all steps
        batch = model.scheduler.batch
        batch.limits = replace(batch.limits, running=settings.max_batch)

    async def in_thread(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self.encoders)

    def refuse_long_list(self, length: int, what: str) -> None:
        most = self.settings.max_messages
        if length > most:
            raise bad_request(
                f"there are {length} {what}, and {most} are allowed: send fewer", what
            )

    def refuse_too_many(self, answers: int) -> None:
        if answers > self.settings.max_answers:
            raise bad_request(
                f"the request asks for {answers} answers, and {self.settings.max_answers} are "
                "allowed: send several requests",
                "n",
            )
        most = self.settings.max_batch + self.settings.max_queue
        if self.open + answers > most:
            self.metrics.refused(self.name)
            raise RequestError(
                429,
                f"{self.open} answers run or wait, and {most} may: try again later",
                code="queue_full",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )

    async def read(self, request: Request, work: Callable[[], T]) -> T:
        """What `work` gives, which reads texts and answers nothing, in a thread. It ends between
        two blocks of tokens when the client leaves or the request's time is over.

        Raises RequestError when there is no room or no time, ClientGone, and what `work` raises.
        """
        self.refuse_too_many(1)
        deadline = time.monotonic() + self.settings.request_timeout
        gone = asyncio.ensure_future(until_gone(request))

        def in_time() -> T:
            with interrupted_by(lambda: gone.done() or time.monotonic() > deadline):
                between_blocks()  # it may have waited for others
                return work()

        self.open += 1
        try:
            return await anyio.to_thread.run_sync(in_time, limiter=self.reader)
        except Interrupted:
            raise ClientGone if gone.done() else self.too_late("send fewer texts") from None
        finally:
            self.open -= 1
            gone.cancel()

    def too_late(self, remedy: str) -> RequestError:
        seconds = self.settings.request_timeout
        return RequestError(
            504, f"the answer took longer than {seconds:g} s: {remedy}", code="request_timeout"
        )

    @asynccontextmanager
    async def answering(
        self, request: Request, make: Callable[[], list[Asked]], answers: int
    ) -> AsyncIterator[Answers]:
        """Submit what `make` gives, in a thread. On leaving, what has not ended is cancelled.

        make: (prompt, options) of each of the `answers`

        Raises RequestError when there is no room, and what `Model.submit` raises.
        """
        self.refuse_too_many(answers)
        self.open += answers
        found = Answers(self, request)
        try:
            await self.in_thread(lambda: found.submit(make))
            if found.gone.done():
                raise ClientGone
            yield found
        finally:
            self.open -= answers
            found.close()


class Answers:
    """The answers to one request, on their way."""

    def __init__(self, desk: Desk, request: Request) -> None:
        self.desk, self.closed = desk, False
        self.handles: list[Handle] = []
        self.arrived = time.monotonic()
        self.gone = asyncio.ensure_future(until_gone(request))
        self.gone.add_done_callback(lambda _: self.cancel())

    def submit(self, make: Callable[[], list[Asked]]) -> None:
        """In a thread. All prompts are encoded first, so that an error of one begins none."""
        model, sequences = self.desk.model, []
        for prompt, options in make():
            self.refuse_late()
            if self.closed or self.gone.done():  # nobody waits for this thread any more
                return
            sequences.append(model.sequence(prompt, options))
        for sequence in sequences:
            if self.closed or self.gone.done():
                break
            self.handles.append(Handle(model.scheduler, sequence))
        if self.closed or self.gone.done():
            self.cancel()

    def refuse_late(self, now: float | None = None) -> None:
        """Raise RequestError after the time that a request may take."""
        if (now or time.monotonic()) - self.arrived > self.desk.settings.request_timeout:
            raise self.desk.too_late("ask for fewer tokens")

    def cancel(self) -> None:
        for handle in list(self.handles):
            handle.cancel()

    def close(self) -> None:
        self.closed = True
        self.gone.cancel()
        self.cancel()

    async def pieces(self, every: float | None = None) -> AsyncGenerator[tuple[int, Piece] | None]:
        """(which answer, a piece of it), as they come; None when nothing has for `every` seconds.
        Without `every`, the pieces of an answer come when it has ended: to be woken for each token
        would cost all others' steps.

        Raises RequestError after the time that a request may take, ClientGone, and what ended an
        answer early.
        """
        settings, ended = self.desk.settings, 0
        tick = min(every or 1.0, 1.0, settings.request_timeout / 2)
        last = time.monotonic()
        async with aclosing(pieces_or_ticks(self.handles, tick, whole=every is None)) as found:
            async for item in found:
                now = time.monotonic()
                self.refuse_late(now)
                if item is None:
                    if every is not None and now - last >= every:
                        last = now
                        yield None
                    continue
                last = now
                if item[1].finish_reason is not None:
                    ended += 1
                    self.desk.metrics.finished(self.desk.name, item[1], self.handles[item[0]])
                yield item
        if ended < len(self.handles):
            raise ClientGone


async def until_gone(request: Request) -> None:
    """Return when the client has closed the connection. The body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def defaults_of(model: Model, settings: Settings) -> dict[str, Any]:
    """OpenAI's temperature, above it what the model's makers recommend, above it what whoever
    runs the server says. A file that recommends nonsense is not followed, and the log says so."""
    try:
        theirs = chat_defaults(model.folder)
    except ConfigError as error:
        log.warning("%s; what this file recommends is not used", error)
        theirs = {}
    return {"temperature": USUAL_TEMPERATURE, **theirs, **settings.sampling}


class Desks:
    """All models that are served, by name."""

    def __init__(self, models: Mapping[str, Model], settings: Settings, metrics: Metrics) -> None:
        if not models:
            raise ConfigError("there is no model to serve: give at least one")
        self.settings, self.metrics = settings, metrics
        self.all = {name: Desk(name, model, settings, metrics) for name, model in models.items()}
        self.draining = False

    def of(self, name: str | None) -> Desk:
        """Raises RequestError for a model that is not there, or that is not named among several."""
        known = ", ".join(self.all)
        if name is None:
            if len(self.all) == 1:
                return next(iter(self.all.values()))
            raise bad_request(f"there are several models: name one as 'model', of {known}", "model")
        if name not in self.all:
            raise RequestError(
                404,
                f"there is no model {name[:200]!r} here: name one of {known}",
                code="model_not_found",
                param="model",
            )
        return self.all[name]


def desks_of(request: Request) -> Desks:
    desks: Desks = request.app.state.desks
    return desks
