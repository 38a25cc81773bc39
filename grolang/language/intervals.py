"""Intervals with open or closed ends: what is known of a value's range before any data is seen.

A function here gives an interval that holds the results of the operation of its name on all values of its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

INF = math.inf


@dataclass(frozen=True)
class Interval:
    """All x with low <= x <= high; an open end excludes its bound. An infinite end is always open."""

    low: float = -INF
    high: float = INF
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, x: float) -> bool:
        above = x > self.low or (x == self.low and not self.low_open)
        below = x < self.high or (x == self.high and not self.high_open)
        return above and below

    def __str__(self) -> str:
        left = "(" if self.low_open or self.low == -INF else "["
        right = ")" if self.high_open or self.high == INF else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"

    @property
    def bottom(self) -> tuple[float, bool]:
        """The lower end; of two, the smaller one reaches further."""
        return self.low, self.low_open

    @property
    def top(self) -> tuple[float, bool]:
        """The upper end; of two, the larger one reaches further."""
        return self.high, not self.high_open

    @property
    def point(self) -> float | None:
        """The one value, where there is only one."""
        return self.low if self.low == self.high else None

    @property
    def positive(self) -> bool:
        return self.low > 0 or (self.low == 0 and self.low_open)

    @property
    def nonnegative(self) -> bool:
        return self.low >= 0

    @property
    def negative(self) -> bool:
        return self.high < 0 or (self.high == 0 and self.high_open)

    @property
    def nonpositive(self) -> bool:
        return self.high <= 0

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


ANY = Interval()
NONNEGATIVE = Interval(0, INF)
POSITIVE = Interval(0, INF, low_open=True)
NEGATIVE = Interval(-INF, 0, high_open=True)
NONPOSITIVE = Interval(-INF, 0)
TRUTH = Interval(0, 1)
SIGN = Interval(-1, 1)


def exactly(x: float) -> Interval:
    return Interval(x, x)


def _between(bottom: tuple[float, bool], top: tuple[float, bool]) -> Interval:
    return Interval(bottom[0], top[0], bottom[1], not top[1])


def hull(*parts: Interval) -> Interval:
    """The smallest interval around all of them."""
    return _between(min(part.bottom for part in parts), max(part.top for part in parts))


def meet(a: Interval, b: Interval) -> Interval:
    """What both allow. Where they exclude each other the first is kept: such a branch is never taken."""
    both = _between(max(a.bottom, b.bottom), min(a.top, b.top))
    empty = both.low > both.high or (both.point is not None and both.point not in both)
    return a if empty else both


def negated(a: Interval) -> Interval:
    return Interval(-a.high, -a.low, a.high_open, a.low_open)


def added(a: Interval, b: Interval) -> Interval:
    low, high = a.low + b.low, a.high + b.high
    return Interval(
        -INF if math.isnan(low) else low,
        INF if math.isnan(high) else high,
        a.low_open or b.low_open,
        a.high_open or b.high_open,
    )


def _product(a: tuple[float, bool], b: tuple[float, bool]) -> tuple[float, bool]:
    """Of two ends, each a bound and whether it is open.

    0 · ∞ is 0 here: the ends stand for finite values as near as one likes.
    """
    if (a[0] == 0 and not a[1]) or (b[0] == 0 and not b[1]):
        return 0.0, False
    if a[0] == 0 or b[0] == 0:
        return 0.0, True
    return a[0] * b[0], a[1] or b[1]


def multiplied(a: Interval, b: Interval) -> Interval:
    ends = [
        _product(x, y)
        for x in ((a.low, a.low_open), (a.high, a.high_open))
        for y in ((b.low, b.low_open), (b.high, b.high_open))
    ]
    return _between(min(ends), max((bound, not is_open) for bound, is_open in ends))


def inverted(a: Interval) -> Interval:
    """Of 1/x; everything where x can be 0 within its range, half of it where 0 is an end."""
    if a.positive and a.high == 0:
        return POSITIVE  # so near to 0 that a float is 0 there
    if a.positive:
        return Interval(
            0.0 if a.high == INF else 1 / a.high,
            INF if a.low == 0 else 1 / a.low,
            a.high == INF or a.high_open,
            a.low_open,
        )
    if a.negative:
        return negated(inverted(negated(a)))
    if a.nonnegative:
        return POSITIVE
    if a.nonpositive:
        return NEGATIVE
    return ANY


def monotone_image(function: Callable[[float], float], a: Interval) -> Interval:
    """Of an increasing function: its ends are the images of the ends."""
    low, high = _at(function, a.low), _at(function, a.high)
    strict_low = a.low_open or (math.isinf(a.low) and math.isfinite(low))
    strict_high = a.high_open or (math.isinf(a.high) and math.isfinite(high))
    return Interval(low, high, strict_low, strict_high)


def _at(function: Callable[[float], float], x: float) -> float:
    try:
        y = function(x)
    except OverflowError:
        return INF if x > 0 else -INF
    except (ValueError, ZeroDivisionError):
        return -INF if x <= 0 else INF
    return (-INF if x < 0 else INF) if math.isnan(y) else y


def absolute(a: Interval) -> Interval:
    if a.nonnegative:
        return a
    if a.nonpositive:
        return negated(a)
    return _between((0, False), max(negated(a).top, a.top))


def least(a: Interval, b: Interval) -> Interval:
    return _between(min(a.bottom, b.bottom), min(a.top, b.top))


def greatest(a: Interval, b: Interval) -> Interval:
    return _between(max(a.bottom, b.bottom), max(a.top, b.top))


def clipped(x: Interval, low: Interval, high: Interval) -> Interval:
    return least(greatest(x, low), high)


def power(a: Interval, b: Interval) -> Interval:
    n = b.point
    if n is not None and math.isfinite(n) and n % 2 == 0:
        size = absolute(a)
        return _power_of_positive(size, b) if n >= 0 or size.positive else POSITIVE
    if a.nonnegative:
        return _power_of_positive(a, b)
    return ANY


def _power_of_positive(a: Interval, b: Interval) -> Interval:
    low_open = (a.low_open and b.low >= 0) or (a.positive and b.point is None)
    ends = []
    for x in (a.low, a.high):
        for n in (b.low, b.high):
            try:
                ends.append(float(x) ** n)  # a whole power of whole numbers would be exact, however long
            except (OverflowError, ZeroDivisionError):
                ends.append(INF)
    if any(math.isnan(end) for end in ends):
        return POSITIVE if a.positive else NONNEGATIVE
    if a.low < 1 < a.high:
        ends.append(1.0)
    low, high = min(ends), max(ends)
    return Interval(low, high, low == 0 and (low_open or a.positive), False)
