"""Regular expressions that strangers wrote, matched as PEFT matches them, in bounded time.

Python's `re` backtracks: `(a+)+$` takes time that doubles with each letter of a name, and neither
Ctrl-C nor a thread ends it. So a pattern that can repeat is compiled and matched in a process of
its own, with a limit on its processor time and memory. Another library would be quicker to end, but
would mean something else by some patterns, and a merge would have other modules than in PEFT.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Literal

# How a text is held against a pattern: all of it, the end of it after a dot, or the numbered layer
# that it lies in.
Method = Literal["whole", "ending", "layer"]
Query = tuple[str, Method]
# For each text what the group NUMBER has, an empty text without that group, None for no match.
Answers = dict[Query, dict[str, str | None]]

NUMBER = "number_"
WRITTEN: dict[Method, tuple[str, str]] = {  # the method of `re`, and what is around the pattern
    "whole": ("fullmatch", "%s"),
    "ending": ("fullmatch", r"(?:.*\.)?(?:%s)"),
    "layer": ("match", rf"(?:.*?\.)?(?:%s)\.(?P<{NUMBER}>\d+)\."),
}
MOST_SECONDS = 1  # of processor time, for all patterns of an adapter
MOST_WAITING = 60  # seconds, on a machine that is busy with other things
MOST_BYTES = 1 << 30
LONGEST = 10_000  # characters of a pattern
# Names, with one `.*` at most: that takes no longer than their length allows.
NAME = r"(?:\\[.\w]|[\w.|-])*"
HARMLESS = re.compile(rf"{NAME}(?:\.\*{NAME})?|\[\^\.\]\*")

# Run by `python -I -S -c`. Reads [queries, texts] and writes the answers, or an error as text.
HELPER = f"""
import json, re, sys, warnings
warnings.simplefilter("ignore")
try:
    import resource
    for kind, most in ((resource.RLIMIT_CPU, {MOST_SECONDS}), (resource.RLIMIT_AS, {MOST_BYTES})):
        hard = resource.getrlimit(kind)[1]
        if hard == resource.RLIM_INFINITY or hard > most:
            resource.setrlimit(kind, (most, hard))
except ImportError:
    pass
queries, texts = json.load(sys.stdin)
answers = []
for number, (method, pattern) in enumerate(queries):
    print(number, file=sys.stderr, flush=True)
    try:
        find = getattr(re.compile(pattern), method)
        found = [find(text) for text in texts]
        answers.append([each and (each.groupdict().get("{NUMBER}") or "") for each in found])
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        answers.append(str(error) or type(error).__name__)
json.dump(answers, sys.stdout)
"""


class PatternError(Exception):
    """A pattern is no regular expression, or takes too long. Its text says which and why."""

    def __init__(self, pattern: str, why: str) -> None:
        super().__init__(why)
        self.pattern = pattern


def answer(queries: Iterable[Query], texts: Iterable[str]) -> Answers:
    """Hold each text against each pattern. Raises PatternError."""
    asked, texts = list(dict.fromkeys(queries)), list(texts)
    for pattern, _ in asked:
        if len(pattern) > LONGEST:
            raise PatternError(pattern, f"it has {len(pattern)} characters, at most {LONGEST}")
    aside = [query for query in asked if not HARMLESS.fullmatch(query[0])]
    here = {query: match_here(query, texts) for query in asked if HARMLESS.fullmatch(query[0])}
    return here | match_aside(aside, texts) if aside else here


def written(query: Query) -> tuple[str, str]:
    pattern, (method, around) = query[0], WRITTEN[query[1]]
    return method, around.replace("%s", pattern)


def match_here(query: Query, texts: Sequence[str]) -> dict[str, str | None]:
    method, pattern = written(query)
    try:
        find = getattr(re.compile(pattern), method)
    except re.error as error:
        raise PatternError(query[0], str(error)) from None
    found = {text: find(text) for text in texts}
    return {text: each and (each.groupdict().get(NUMBER) or "") for text, each in found.items()}


def match_aside(queries: Sequence[Query], texts: Sequence[str]) -> Answers:
    """The same in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", HELPER],
            input=json.dumps([[written(query) for query in queries], texts]).encode(),
            capture_output=True,
            timeout=MOST_WAITING,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PatternError(queries[0][0], f"matching takes over {MOST_WAITING} seconds") from None
    except OSError as error:
        why = f"no process can be started to match it: {error.strerror}"
        raise PatternError(queries[0][0], why) from None
    if done.returncode:
        last = done.stderr.split()[-1:]  # the helper counts; anything else is an error of its own
        number = int(last[0]) if last and last[0].isdigit() else 0
        raise PatternError(
            queries[number][0], f"matching takes over {MOST_SECONDS} s, or too much memory"
        )
    found: Answers = {}
    for query, answers in zip(queries, json.loads(done.stdout), strict=True):
        if isinstance(answers, str):
            raise PatternError(query[0], answers)
        found[query] = dict(zip(texts, answers, strict=True))
    return found
