"""Other packages' log lines, kept off the terminal while they compute."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

LOGGERS = ("neural_compressor", "autoround")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let only errors of these packages pass. They set their own level when they are imported, so
    lines are dropped by a filter."""

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    found = [logging.getLogger(name) for name in LOGGERS]
    for logger in found:
        logger.addFilter(is_error)
    try:
        yield
    finally:
        for logger in found:
            logger.removeFilter(is_error)
