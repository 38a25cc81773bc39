"""Word and digit arithmetic with a verifiable answer, solved with care or without.

A problem is a short question about whole numbers; its solution is one to four written steps and a last
line in the style of GSM8K (Cobbe et al. 2021, arXiv:2110.14168)::

    Tom has 34 apples and buys 27 more. How many?
    34+20=54 54+7=61
    #### 61

The careful way adds or takes away a two-digit number in two steps, tens first. Three careless ways are
wrong most of the time:

- *hasty*: each operation in one go, the digits of each column apart, carries and borrows forgotten
  (34+27=51, 52-27=35); right only where nothing is carried;
- *slip*: careful steps, one of whose results is off by 1, 2 or 10, after which the sum goes on from there;
- *short*: careful steps, but the last one is left out (a single step is off by 10 instead).

A model that has learned a mixture of the four has the good and the bad behaviour side by side, so that
feedback has a weight to move from one to the other.

Pure Python; everything random comes from the `random.Random` that the caller passes.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

Step = tuple[int, str, int]  # (left, operator, right)

NAMES = ("Tom", "Ann", "Sam", "Eva", "Ben", "Mia", "Leo", "Zoe", "Max", "Ida")
THINGS = ("apples", "books", "coins", "eggs", "pens", "cards", "figs", "nuts", "keys", "cups")
BOXES = ("boxes", "bags", "rows", "jars", "packs")
GAINS = ("buys", "finds", "gets", "wins", "picks")
LOSSES = ("sells", "loses", "gives away", "drops", "breaks")
# fmt: off
ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
TENS = ("", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on

CARELESS = {"hasty": 0.38, "slip": 0.42, "short": 0.20}
"""How often each careless way is taken when a solution is careless."""


@dataclass(frozen=True)
class Problem:
    """A question and its sum: `start`, then each operation in turn. Every value on the way is >= 0."""

    prompt: str
    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def answer(self) -> str:
        value = self.start
        for operator, number in self.operations:
            value = _apply(value, operator, number)
        return str(value)


def problem(rng: random.Random) -> Problem:
    """One random problem; its prompt has at most 60 characters."""
    kind = rng.randrange(5)
    if kind == 0:  # a story that adds
        a, b = rng.randint(2, 99), rng.randint(2, 59)
        name, thing, verb = rng.choice(NAMES), rng.choice(THINGS), rng.choice(GAINS)
        return Problem(f"{name} has {a} {thing} and {verb} {b} more. How many?", a, (("+", b),))
    if kind == 1:  # a story that takes away
        a = rng.randint(5, 99)
        b = rng.randint(2, min(a, 59))
        name, thing, verb = rng.choice(NAMES), rng.choice(THINGS), rng.choice(LOSSES)
        return Problem(f"{name} has {a} {thing} and {verb} {b}. How many?", a, (("-", b),))
    if kind == 2:  # numbers as words, at least one of the two
        a, b, adds = rng.randint(2, 99), rng.randint(2, 59), rng.random() < 0.5
        if not adds and b > a:
            a, b = b, a
        left, right = rng.choice(((words(a), str(b)), (str(a), words(b)), (words(a), words(b))))
        sign = "plus" if adds else "minus"
        return Problem(f"What is {left} {sign} {right}?", a, (("+" if adds else "-", b),))
    if kind == 3:  # a chain of two operations, at most one of them with a two-digit number
        a = rng.randint(12, 79)
        numbers = [rng.randint(2, 9), rng.randint(2, 39)]
        rng.shuffle(numbers)
        chain: list[tuple[str, int]] = []
        value = a
        for number in numbers:
            operator = rng.choice("+-") if value >= number else "+"
            chain.append((operator, number))
            value = _apply(value, operator, number)
        text = "".join(f" {operator} {number}" for operator, number in chain)
        return Problem(f"What is {a}{text}?", a, tuple(chain))
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 29)  # boxes of things
    box, thing = rng.choice(BOXES), rng.choice(THINGS)
    if rng.random() < 0.5 and c <= a * b:
        return Problem(f"{a} {box} of {b} {thing}, {c} are lost. How many?", a, (("*", b), ("-", c)))
    return Problem(f"{a} {box} of {b} {thing} and {c} more. How many?", a, (("*", b), ("+", c)))


def held_out(prompt: str) -> bool:
    """Whether the prompt is kept for testing: one in ten, decided by its text alone, for every seed."""
    return zlib.crc32(prompt.encode()) % 10 == 0


def problems(rng: random.Random, *, test: bool = False) -> Iterator[Problem]:
    """Problems without end, all held out (`test`) or none of them."""
    while True:
        drawn = problem(rng)
        if held_out(drawn.prompt) == test:
            yield drawn


def careful(task: Problem) -> str:
    """The right solution, step by step."""
    return _written([(a, o, b, _apply(a, o, b)) for a, o, b in _steps(task)])


def careless(task: Problem, rng: random.Random) -> str:
    """A solution in one of the careless ways; wrong most of the time."""
    style = rng.choices(list(CARELESS), list(CARELESS.values()))[0]
    if style == "hasty":
        value, lines = task.start, []
        for operator, number in task.operations:
            result = _columns(value, operator, number)
            lines.append((value, operator, number, result))
            value = result
        return _written(lines)
    steps = _steps(task)
    if style == "short" and len(steps) > 1:
        return _written([(a, o, b, _apply(a, o, b)) for a, o, b in steps[:-1]])
    wrong, off = rng.randrange(len(steps)), rng.choice((1, -1, 2, -2, 10, -10))
    if style == "short":
        off = rng.choice((10, -10))
    value, lines = task.start, []
    for index, (_, operator, number) in enumerate(steps):
        result = _apply(value, operator, number)
        if index == wrong:
            result += off if result + off >= 0 else -off
        result = max(result, 0)
        lines.append((value, operator, number, result))
        value = result
    return _written(lines)


def solution(task: Problem, rng: random.Random, careful_share: float) -> str:
    """Careful with probability `careful_share`, careless otherwise."""
    return careful(task) if rng.random() < careful_share else careless(task, rng)


def answer(completion: str) -> str | None:
    """The number after the last `####`, as it is written, or None where there is none."""
    found = re.findall(r"####\s*(-?\d+)", completion)
    return found[-1] if found else None


def correct(completion: str, expected: str) -> bool:
    """The verifier: is the completion's answer the expected one?"""
    return answer(completion) == expected


def words(number: int) -> str:
    """An integer from 0 to 99 in English words."""
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f"-{ONES[ones]}" if ones else "")


def _apply(a: int, operator: str, b: int) -> int:
    return a + b if operator == "+" else a - b if operator == "-" else a * b


def _steps(task: Problem) -> list[Step]:
    """The careful steps: a two-digit number is added or taken away tens first, then ones."""
    steps: list[Step] = []
    value = task.start
    for operator, number in task.operations:
        parts = [number] if operator == "*" else [p for p in (number // 10 * 10, number % 10) if p]
        for part in parts:
            steps.append((value, operator, part))
            value = _apply(value, operator, part)
    return steps


def _columns(a: int, operator: str, b: int) -> int:
    """The operation on each column of digits apart, without carry or borrow; products are right."""
    if operator == "*":
        return a * b
    total, place = 0, 1
    while a or b:
        x, y = a % 10, b % 10
        total += place * ((x + y) % 10 if operator == "+" else abs(x - y))
        a, b, place = a // 10, b // 10, place * 10
    return total


def _written(lines: list[tuple[int, str, int, int]]) -> str:
    steps = " ".join(f"{a}{operator}{b}={result}" for a, operator, b, result in lines)
    return f"{steps}\n#### {lines[-1][3]}"
