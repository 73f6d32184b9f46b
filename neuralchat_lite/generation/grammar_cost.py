"""Grammars that would keep llguidance busy for minutes before an answer begins, where it has no
limit of its own. Nothing can stop it from outside.

It makes a state for each remainder of a `multipleOf`, 9 us each; where several may count for one
number, their states multiply. And it looks at each pair of regular expressions that are joined
with `&`: twelve took six seconds, and thirty more than a minute.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

MOST_STATES = 100_000  # a second
MOST_JOINED = 8
# Of Lark: strings and regular expressions, in which & is a letter. One that does not end is taken
# to the end of its line, or each quote in it would be looked at as a beginning.
LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*"?|/(?:\\.|[^/\\\n])*/?')
ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
NUMBER = r"\d{1,400}(?:\.\d{1,400})?(?:[eE][+-]?\d{1,3})?"
MULTIPLE = re.compile(rf'"multipleOf"\s*:\s*({NUMBER})')
COMBINED = re.compile(r'"(allOf|anyOf|oneOf|\$ref)"')


def too_costly(grammar: str, lark: str) -> str | None:
    """What is to be changed in a grammar, and how; None for one that may be followed.

    grammar: of llguidance; lark: what it was made of, if that was Lark
    """
    if states_of_multiples(grammar) > MOST_STATES:
        return (
            f"multipleOf with more than {MOST_STATES} remainders in all, which would take minutes: "
            "give smaller or rounder numbers, or leave multipleOf out"
        )
    if (joined := LITERAL.sub("", lark).count("&")) > MOST_JOINED:
        return (
            f"{joined} times &, which would take minutes, and {MOST_JOINED} are allowed: join "
            "fewer expressions"
        )
    return None


def states_of_multiples(grammar: str) -> int:
    """About how many states all `multipleOf` of a grammar take, at most; 0 where there are none.
    Beyond MOST_STATES it is not counted further.

    grammar: of llguidance, with schemas in it, which may be quoted
    """
    text = ESCAPED.sub(lambda found: chr(int(found[1], 16)), grammar).replace("\\", "")
    values = [found for each in MULTIPLE.findall(text) if (found := remainders(each))]
    if not values:
        return 0
    combined = COMBINED.search(text) is not None
    total = 1 if combined else 0
    for value in values:
        total = math.lcm(total, value) if combined else total + value
        if total > MOST_STATES:
            break
    return total


def remainders(digits: str) -> int:
    """Those of its significant digits: 7, 0.07 and 7e5 have seven. A number of tens shows in its
    last digits, which takes hardly a state."""
    return int("".join(map(str, Decimal(digits).normalize().as_tuple().digits)))
