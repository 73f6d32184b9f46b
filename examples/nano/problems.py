"""Arithmetic conversations, made from a seed: what neural-chat-nano is trained and judged on.

A problem is a sum of two to four numbers, a difference, a product with one digit, or one of them
told as a little story; its answer works step by step, column by column, and ends in "Answer: N".
Some numbers never occur as an operand in training, nor as a running total; held-out problems have
no other operands (but for the digit of a product, of which there are only eight).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

SYSTEM = "You are a math assistant. You solve problems step by step and give the correct answer."
LARGEST = 999


def is_held_out(number: int) -> bool:
    """One number in twelve from 10 up, spread over all sizes and digits."""
    return number >= 10 and number * 7919 % 1009 % 12 == 5


HELD_OUT = [number for number in range(10, LARGEST + 1) if is_held_out(number)]


@dataclass(frozen=True)
class Problem:
    """kind: a key of KINDS; answer: all of the assistant's text; result: its last number"""

    kind: str
    question: str
    answer: str
    result: int

    def messages(self) -> list[dict[str, str]]:
        """What a model is asked."""
        return [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": self.question},
        ]


class Numbers:
    """Draws operands: either none that is held out, or nothing else."""

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out

    def draw(self) -> int:
        digits = self.rng.choices((1, 2, 3), (2, 7, 11))[0]
        while True:
            low = 10 ** (digits - 1)
            number = self.rng.randrange(low, 10 * low)
            if self.held_out and digits == 1:
                digits = 2
            elif is_held_out(number) == self.held_out:
                return number

    def draw_many(self, count: int) -> list[int]:
        """Numbers none of whose running totals is held out, when they are for training."""
        while True:
            numbers = [self.draw() for _ in range(count)]
            totals = [sum(numbers[:end]) for end in range(2, count)]
            if self.held_out or not any(is_held_out(total) for total in totals):
                return numbers

    def draw_pair(self) -> tuple[int, int]:
        """A larger number and a smaller one (or the same)."""
        smaller, larger = sorted((self.draw(), self.draw()))
        return larger, smaller


def listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"


# Figures are worked out as at school, column by column from the right, so that each line is a
# small sum and the last one only gathers digits. Written at once, "348 + 188 = 536" has to know
# every carry at its first digit, which a model of this size learns slowly (see README.md).


def columns(number: int, count: int) -> list[int]:
    """Its digits from the right, zeros where it has no more."""
    return [number // 10**place % 10 for place in range(count)]


def add(a: int, b: int) -> list[str]:
    count, carry, lines = max(len(str(a)), len(str(b))), 0, []
    for x, y in zip(columns(a, count), columns(b, count), strict=True):
        total = x + y + carry
        lines.append(f"{x} + {y}{' + 1' * carry} = {total}")
        carry = total // 10
    return [*lines, f"{a} + {b} = {a + b}"]


def subtract(a: int, b: int) -> list[str]:
    count, borrowed, lines = len(str(a)), 0, []
    for x, y in zip(columns(a, count), columns(b, count), strict=True):
        borrows = int(x < y + borrowed)
        x += 10 * borrows
        lines.append(f"{x} - {y}{' - 1' * borrowed} = {x - y - borrowed}")
        borrowed = borrows
    return [*lines, f"{a} - {b} = {a - b}"]


def multiply(number: int, digit: int) -> list[str]:
    carry, lines = 0, []
    for x in columns(number, len(str(number))):
        product = x * digit + carry
        lines.append(f"{x} * {digit}{f' + {carry}' if carry else ''} = {product}")
        carry = product // 10
    return [*lines, f"{number} * {digit} = {number * digit}"]


def solve_sum(numbers: list[int]) -> tuple[str, int]:
    total = numbers[0] + numbers[1]
    lines = [f"Add the {'first ' * (len(numbers) > 2)}two numbers:", *add(*numbers[:2])]
    for number in numbers[2:]:
        lines += ["Add the next number:", *add(total, number)]
        total += number
    return finish(lines, total)


def solve_difference(larger: int, smaller: int) -> tuple[str, int]:
    return finish(["Subtract the numbers:", *subtract(larger, smaller)], larger - smaller)


def solve_product(number: int, digit: int) -> tuple[str, int]:
    return finish(["Multiply the numbers:", *multiply(number, digit)], number * digit)


def finish(lines: list[str], result: int) -> tuple[str, int]:
    return "\n".join([*lines, f"Answer: {result}"]), result


def ask_sum(numbers: Numbers, rng: random.Random) -> tuple[str, tuple[str, int]]:
    values = numbers.draw_many(rng.choices((2, 3, 4), (4, 4, 2))[0])
    plus = " + ".join(map(str, values))
    forms = (
        f"calculate {plus}",
        f"Calculate {plus}.",
        f"What is {plus}?",
        f"{plus} = ?",
        f"Add {listed(values)}.",
        f"What is the sum of {listed(values)}?",
        f"Please add {listed(values)} for me.",
        f"How much is {plus}?",
    )
    return rng.choice(forms), solve_sum(values)


def ask_difference(numbers: Numbers, rng: random.Random) -> tuple[str, tuple[str, int]]:
    larger, smaller = numbers.draw_pair()
    forms = (
        f"calculate {larger} - {smaller}",
        f"Calculate {larger} - {smaller}.",
        f"What is {larger} - {smaller}?",
        f"{larger} - {smaller} = ?",
        f"What is {larger} minus {smaller}?",
        f"How much is {larger} less {smaller}?",
        f"Take {larger} and subtract {smaller}.",
    )
    return rng.choice(forms), solve_difference(larger, smaller)


def ask_product(numbers: Numbers, rng: random.Random) -> tuple[str, tuple[str, int]]:
    number, digit = numbers.draw(), rng.randrange(2, 10)
    forms = (
        f"calculate {number} * {digit}",
        f"Calculate {number} * {digit}.",
        f"What is {number} * {digit}?",
        f"{number} * {digit} = ?",
        f"What is {number} times {digit}?",
        f"Multiply {number} by {digit}.",
        f"How much is {number} times {digit}?",
    )
    return rng.choice(forms), solve_product(number, digit)


NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ida", "Jonas")
THINGS = ("apples", "books", "coins", "stamps", "marbles", "stickers", "pencils", "cards", "shells")
SELLERS = ("A shop", "A farm", "A school", "The baker", "A library")
BOXES = ("boxes", "bags", "shelves", "crates", "baskets")


def ask_story(numbers: Numbers, rng: random.Random) -> tuple[str, tuple[str, int]]:
    name, other = rng.sample(NAMES, 2)
    things, seller, boxes = rng.choice(THINGS), rng.choice(SELLERS), rng.choice(BOXES)
    kind = rng.choice(("sum", "sum", "difference", "product"))
    if kind == "sum":
        values = numbers.draw_many(rng.choices((2, 3), (3, 2))[0])
        a, b = values[:2]
        if len(values) == 3:
            c = values[2]
            forms = (
                f"{name} has {a} {things}, {other} has {b} and a friend has {c}. "
                f"How many {things} do they have together?",
                f"{seller} sells {a} {things} on Monday, {b} on Tuesday and {c} on Friday. "
                f"How many {things} is that?",
                f"{name} finds {a} {things}, then {b} more, then {c} more. "
                f"How many {things} does {name} have now?",
            )
        else:
            forms = (
                f"{name} has {a} {things} and buys {b} more. "
                f"How many {things} does {name} have now?",
                f"{name} has {a} {things} and {other} has {b}. "
                f"How many {things} do they have together?",
                f"{seller} has {a} {things} and gets {b} more. How many {things} are there now?",
            )
        return rng.choice(forms), solve_sum(values)
    if kind == "difference":
        a, b = numbers.draw_pair()
        forms = (
            f"{name} has {a} {things} and gives {b} to {other}. "
            f"How many {things} does {name} have left?",
            f"{seller} has {a} {things} and sells {b} of them. How many {things} are left?",
            f"There are {a} {things} on the table. {name} takes {b}. How many {things} are left?",
        )
        return rng.choice(forms), solve_difference(a, b)
    number, digit = numbers.draw(), rng.randrange(2, 10)
    forms = (
        f"There are {digit} {boxes} with {number} {things} each. How many {things} are there?",
        f"{name} has {digit} {boxes} of {number} {things}. How many {things} does {name} have?",
        f"{seller} sells {number} {things} a day. How many {things} is that in {digit} days?",
    )
    return rng.choice(forms), solve_product(number, digit)


Ask = Callable[[Numbers, random.Random], tuple[str, tuple[str, int]]]
KINDS: dict[str, tuple[Ask, int]] = {  # and how often
    "sum": (ask_sum, 4),
    "difference": (ask_difference, 3),
    "product": (ask_product, 3),
    "story": (ask_story, 4),
}


def make_problem(rng: random.Random, held_out: bool) -> Problem:
    kind = rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
    question, (answer, result) = KINDS[kind][0](Numbers(rng, held_out), rng)
    return Problem(kind, question, answer, result)


def held_out_problems(count: int = 1000, seed: int = 1) -> list[Problem]:
    """Different problems, none of whose operands occurs in training."""
    rng, found = random.Random(seed), dict[str, Problem]()
    while len(found) < count:
        problem = make_problem(rng, held_out=True)
        found.setdefault(problem.question, problem)
    return list(found.values())
