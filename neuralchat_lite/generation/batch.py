"""Sequences that are computed together: who joins, what a step feeds, who gives way.

A step feeds one token of each sequence that has begun its answer, and of the others as much of
their prompts as fits into the step, the oldest first. When keys and values outgrow their memory,
pages that are only remembered go first, then the youngest sequence gives up its own; it is computed
again later, to the same text.

One thread at a time calls a batch (see `scheduler`); only `arrivals` and `errands` are for all.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import psutil

from neuralchat_lite.engines import NATIVE
from neuralchat_lite.engines.engine import Decoder, block_of
from neuralchat_lite.errors import ConfigError, ResourceError
from neuralchat_lite.files.progress import size_text
from neuralchat_lite.generation.job import Errand, Job, tell
from neuralchat_lite.generation.prefix_store import PrefixStore
from neuralchat_lite.kernels.kv_format import PAGE
from neuralchat_lite.values import plain, shown

# Rows of a step up to which it costs hardly more than one; beyond, guesses cost what they save.
DRAFT_ROWS = 16
Planned = list[tuple[Job, list[int]]]  # what a step feeds, of which job


@dataclass(frozen=True)
class Limits:
    """step_tokens: tokens that a step feeds at most, each running sequence one in any case;
        None: a block of the decoder
    running: sequences that take part in one step at most
    kv_bytes: of all keys and values, also those that are only remembered; None: half of the memory
        that is free at first
    """

    step_tokens: int | None = None
    running: int = 64
    kv_bytes: int | None = None


def limits_of(kv_memory: object, engine: str) -> Limits:
    """Limits with an option of the user. Raises ConfigError."""
    value = plain(kv_memory)
    if value is None:
        return Limits()
    if engine != NATIVE:
        raise ConfigError(
            f"kv_memory={shown(value)} is for engine {NATIVE!r}, not {engine!r}: leave it out"
        )
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"kv_memory must be a positive number of bytes, got {shown(value)}: "
            "give for example 2**30, or leave it out"
        )
    return Limits(kv_bytes=value)


@dataclass
class Counts:
    """What a batch has done.

    prompt_tokens: fed, those of sequences that had to give way twice
    cached_tokens: of prompts, those that were remembered and not fed
    """

    steps: int = 0
    sequences: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0


class Batch:
    def __init__(self, decoder: Decoder, limits: Limits) -> None:
        self.decoder = decoder
        self.limits = limits
        self.kv_bytes = available_memory() // 2 if limits.kv_bytes is None else limits.kv_bytes
        # Engines of others keep their keys and values themselves, and share none.
        self.pool: Any = getattr(decoder, "pool", None)
        self.store = PrefixStore()
        self.counts = Counts()
        self.arrivals: deque[Job] = deque()  # other threads put jobs here
        self.errands: deque[Errand[Any]] = deque()  # and errands here
        self.waiting: list[Job] = []  # in the order of arrival, like `running`
        self.running: list[Job] = []
        self.changed: dict[Job, None] = {}  # since those were told who wait for them

    def step(self) -> bool:
        """Feed everybody once, and deliver what comes of it. Returns whether there was anybody."""
        try:
            self.sort_out()
            self.admit()
            before = len(self.running)
            wanted = self.plan()
            left = len(self.running) < before  # with an error, so that others may run
            if planned := self.with_room(wanted):
                self.feed(planned)
            return bool(wanted) or left
        finally:
            self.tell()

    def tell(self) -> None:
        """Whoever is told wants to run. At the end of a step that is in nobody's way: the next one
        leaves Python to them."""
        changed, self.changed = self.changed, {}
        tell(changed)

    def is_empty(self) -> bool:
        """Whether nobody is being answered, nor waits for it."""
        return not (self.running or self.waiting or self.arrivals)

    def sort_out(self) -> None:
        """Let arrivals in, and those out whom nobody wants any more; do errands."""
        while self.errands:
            self.errands.popleft().run()
        while self.arrivals:
            self.waiting.append(self.arrivals.popleft())
        for job in [*self.running, *self.waiting]:
            if job.is_cancelled():
                self.let_go(job)

    def let_go(self, job: Job, error: BaseException | None = None) -> None:
        (self.running if job in self.running else self.waiting).remove(job)
        if job.sequence.own_cache:
            job.sequence.cache.truncate(0)
        job.leave(error)
        self.changed[job] = None

    def admit(self) -> None:
        """Let those run who wait, the oldest first, as far as there is room for their prompts."""
        active = [job for job in self.running if job.wants]
        while self.waiting and len(active) < self.limits.running:
            job = min(self.waiting, key=number)
            if active and not self.has_room_for(job):
                return
            self.waiting.remove(job)
            job.admitted = job.admitted or time.perf_counter()
            self.running.append(job)
            self.running.sort(key=number)
            active.append(job)

    def has_room_for(self, job: Job) -> bool:
        if self.pool is None:
            return True
        cache = job.sequence.cache
        needed = cache.bytes_for(len(job.sequence.ids) - cache.length)
        free = self.kv_bytes - self.pool.nbytes
        return bool(needed <= free or needed <= free + self.store.freeable)

    def plan(self) -> Planned:
        """What to feed in the next step, the oldest job first."""
        active = [job for job in self.running if job.wants]
        most = self.limits.step_tokens or block_of(self.decoder)
        room = max(1, most - len(active))  # beside one token of each
        planned: Planned = []
        computed: set[bytes] = set()  # pages that the prompts of this step will fill
        drafts = min(DRAFT_ROWS // max(1, len(active)), most) - 1  # of each, at most
        for job in active:
            job.drafted = []
            answers = job.sequence.cache.length == len(job.sequence.ids) - 1
            if self.pool is not None and not answers and not self.begin(job, computed):
                continue
            ids = job.sequence.next_ids()
            if len(ids) > 1:
                if room == 0:
                    continue
                ids = ids[: 1 + room]
                room -= len(ids) - 1
            else:
                try:
                    job.drafted = job.sequence.draft(drafts)
                except Exception as error:  # of the model that guesses
                    self.let_go(job, error)
                    continue
                ids += job.drafted
            planned.append((job, ids))
        return planned

    def begin(self, job: Job, computed: set[bytes]) -> bool:
        """Let a job begin with pages that are remembered, if it holds nothing yet.

        Returns False when the next of its pages is just being computed for another one, since it
        will be remembered then.
        """
        sequence = job.sequence
        held = sequence.cache.length
        digests = job.full_pages()[: (len(sequence.ids) - 1) // PAGE]
        if held == 0 and digests:
            known = self.store.find(digests)
            if len(known) < len(digests) and digests[len(known)] in computed:
                return False
            held = sequence.start_with(known) if known else 0
            self.counts.cached_tokens += held
        computed.update(digests[held // PAGE :])
        return True

    def with_room(self, planned: Planned) -> Planned:
        """What of it can be fed, after others have made room for its keys and values."""
        if self.pool is None:
            return planned
        while planned:
            needed = sum(job.sequence.cache.bytes_for(len(ids)) for job, ids in planned)
            if self.pool.nbytes + needed <= self.kv_bytes:
                break
            if not self.give_way(planned[0][0]):
                [(job, _)] = planned
                self.let_go(job, self.too_small(needed))
                return []
            planned = [(job, ids) for job, ids in planned if job in self.running]
        return planned

    def give_way(self, first: Job) -> bool:
        """Free some memory, not that of the job that comes first. Returns False if there is none
        to free."""
        if len(self.store):
            self.store.drop_oldest()
            return True
        holders = [job for job in self.running if job is not first]
        if not holders:
            return False
        youngest = holders[-1]
        youngest.sequence.cache.truncate(0)
        youngest.stored = 0
        self.running.remove(youngest)
        self.waiting.append(youngest)
        self.counts.preemptions += 1
        return True

    def too_small(self, needed: int) -> ResourceError:
        return ResourceError(
            f"{size_text(self.pool.nbytes + needed)} for keys and values are more than the "
            f"{size_text(self.kv_bytes)} that they may take: give more kv_memory, use "
            "kv_cache_dtype='int8', a shorter prompt or fewer max_new_tokens"
        )

    def feed(self, planned: Planned) -> None:
        before = {job: job.sequence.cache.length for job, _ in planned}
        # Of how many rows the logits are wanted: none of a prompt that is fed in part.
        keep = [
            1 + len(job.drafted) if before[job] + len(ids) >= len(job.sequence.ids) else 0
            for job, ids in planned
        ]
        try:
            logits = self.decoder.forward_batch(
                [ids for _, ids in planned],
                [job.sequence.cache for job, _ in planned],
                keep=keep,
            )
            self.counts.steps += 1
            for (job, ids), rows in zip(planned, logits, strict=True):
                self.count(job, ids)
                if len(rows):
                    self.accept(job, rows)
                self.remember(job)
                del before[job]
        except ResourceError as error:
            go_back(before)
            if not self.give_way(planned[0][0]):
                self.let_go(planned[0][0], error)
        except Exception as error:
            for job in before:
                self.let_go(job, error)
        except BaseException:  # an interrupt of whoever runs steps: all others go on later
            go_back(before)
            raise

    def accept(self, job: Job, logits: Any) -> None:
        try:
            pieces = job.sequence.accept_drafts(logits, job.drafted)
        except BaseException as error:
            self.let_go(job, error)
            if not isinstance(error, Exception):
                raise
            return
        self.counts.new_tokens += len(pieces)
        job.pieces.extend(pieces)
        self.changed[job] = None

    def remember(self, job: Job) -> None:
        """Keep the pages that a job has filled; let it go if it has ended."""
        if job.left:
            return
        full = job.sequence.cache.length // PAGE
        if self.pool is not None and full > job.stored:
            self.store.keep(job.full_pages()[:full], job.sequence.cache)
            job.stored = full
        if job.sequence.finished:
            self.counts.sequences += 1
            self.let_go(job)
        elif job.ahead is None:
            job.sequence.clock.resume()

    def count(self, job: Job, ids: list[int]) -> None:
        fed_before = job.sequence.cache.length - len(ids)
        self.counts.prompt_tokens += max(0, min(len(ids), job.sequence.prompt_tokens - fed_before))


def number(job: Job) -> int:
    return job.number


def go_back(before: dict[Job, int]) -> None:
    """Take back what was fed since; it is fed again when it is asked for."""
    for job, length in before.items():
        if job.sequence.cache.length > length and not job.left:
            job.sequence.cache.truncate(length)


def available_memory() -> int:
    """Bytes of memory that this machine has free, or could free."""
    return int(psutil.virtual_memory().available)
