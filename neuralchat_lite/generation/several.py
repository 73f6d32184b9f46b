"""Several prompts at once: all answers in order, or their pieces as they come."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, TypeVar

from neuralchat_lite.errors import PromptError
from neuralchat_lite.files.progress import Progress, ProgressCallback
from neuralchat_lite.generation.job import Job
from neuralchat_lite.generation.loop import fold
from neuralchat_lite.generation.messages import Message
from neuralchat_lite.generation.scheduler import AHEAD, Scheduler
from neuralchat_lite.generation.sequence import Piece, Reply
from neuralchat_lite.generation.sequence import Sequence as One

# A list of texts, of conversations, or of lists of token ids.
Prompts = Sequence[str] | Sequence[Sequence[Message]] | Sequence[Sequence[int]]
T = TypeVar("T")


def is_several(prompt: Any) -> bool:
    """Whether it is a list of prompts, and not one."""
    first = prompt[0] if isinstance(prompt, list | tuple) and prompt else None
    return isinstance(first, str | list | tuple)


def each(prompts: Sequence[Any], make: Callable[[Any], T]) -> list[T]:
    """Make something of every prompt. Raises PromptError that says which one it is about."""
    made = []
    for index, prompt in enumerate(prompts):
        try:
            made.append(make(prompt))
        except PromptError as error:
            if len(prompts) == 1:
                raise
            raise PromptError(f"prompt {index} of {len(prompts)}: {error}") from None
    return made


def generate(sequence: One, scheduler: Scheduler | None = None) -> Reply:
    """The whole answer of one sequence.

    scheduler: of its model, where it may have company; None: it is alone
    """
    (reply,) = generate_all(scheduler or Scheduler(sequence.decoder), [sequence], None)
    return reply


def generate_all(
    scheduler: Scheduler, sequences: Sequence[One], progress: ProgressCallback | None
) -> list[Reply]:
    """The whole answers, in order. The first error ends all, and is raised.

    progress: called with the number of finished answers
    """
    jobs = [Job(sequence) for sequence in sequences]
    for job in jobs:
        scheduler.add(job)
    try:
        while (done := sum(job.left for job in jobs)) < len(jobs):
            if progress is not None:
                progress(Progress("generate", "", done, len(jobs)))
            waiting = [job for job in jobs if not job.left]
            scheduler.drive(waiting, partial(any_left, waiting))
            for job in waiting:
                if job.error is not None:
                    raise job.error
        if progress is not None:
            progress(Progress("generate", "", done, len(jobs)))
        return [fold(job.pieces) for job in jobs]
    finally:
        for job in jobs:
            scheduler.release(job)


def any_left(jobs: Sequence[Job]) -> bool:
    return any(job.left for job in jobs)


def any_ready(jobs: Sequence[Job]) -> bool:
    return any(job.ready for job in jobs)


def stream_all(
    scheduler: Scheduler, sequences: Sequence[One], cancelled: Callable[[], bool]
) -> Generator[tuple[int, Piece], None, None]:
    """(which prompt, a piece of its answer), as they come. The first error ends all."""
    jobs = [Job(sequence, cancelled, AHEAD) for sequence in sequences]
    for job in jobs:
        scheduler.add(job)
    try:
        waiting = dict(enumerate(jobs))
        while waiting:
            now = list(waiting.values())
            scheduler.drive(now, partial(any_ready, now))
            for index, job in list(waiting.items()):
                while job.pieces:
                    yield index, job.pieces.popleft()
                if job.left:
                    del waiting[index]
                    if job.error is not None:
                        raise job.error
    finally:
        for job in jobs:
            scheduler.release(job)
