"""What `multipleOf` of a schema costs before an answer begins.

llguidance makes a state for each remainder, 9 us each, and has no limit of that: three values of
five digits took minutes, which nothing can stop. Where several may count for one number, their
states multiply.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

MOST_STATES = 100_000  # a second
ESCAPED = re.compile(r"\\+u([0-9a-fA-F]{4})")
NUMBER = r"\d{1,400}(?:\.\d{1,400})?(?:[eE][+-]?\d{1,3})?"
MULTIPLE = re.compile(rf'"multipleOf"\s*:\s*({NUMBER})')
COMBINED = re.compile(r'"(allOf|anyOf|oneOf|\$ref)"')


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
