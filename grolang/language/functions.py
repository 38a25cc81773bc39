"""The table of functions: one row per word of the language, and everything that is known of it.

A row says what a function takes, the range of its result, where it rises and falls, where it is not defined, and
its derivative, written in the language itself. The checker, the analyses, the compiler and the manual read these
rows and know no function by name; a test ties every declared fact to numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from grolang.language import intervals
from grolang.language.intervals import ANY, NONNEGATIVE, NONPOSITIVE, POSITIVE, SIGN, TRUTH, Interval
from grolang.language.scopes import Scope

#: How a result moves with one argument: "+" never falls, "-" never rises, "=" does not move, "?" not known.
Slope = str
Domain = tuple[int, Interval, str]  # argument, where it must lie, as a message says it


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _logsigmoid(x: float) -> float:
    return min(x, 0) - math.log1p(math.exp(-abs(x)))


def _undefined(*_: float) -> float:
    return math.nan


@dataclass(frozen=True)
class Function:
    """A function of numbers, applied to each value by itself.

    `number` computes it for floats, where torch is not at hand. `derivative` holds, per argument, the partial
    derivative in the language, of the arguments by their names and of `out`, the function's own value; None where
    it is 0 almost everywhere: no gradient flows there.
    """

    name: str
    arguments: tuple[str, ...]
    range: Callable[..., Interval]
    slopes: Callable[..., tuple[Slope, ...]]
    derivative: tuple[str | None, ...]
    domain: tuple[Domain, ...] = ()
    number: Callable[..., float] = _undefined
    symbol: str = ""
    help: str = ""


def _fixed(*slopes: Slope) -> Callable[..., tuple[Slope, ...]]:
    return lambda *_: slopes


def _sign_of(a: Interval) -> Slope:
    return "+" if a.nonnegative else "-" if a.nonpositive else "?"


def _flipped(slope: Slope) -> Slope:
    return {"+": "-", "-": "+"}.get(slope, slope)


def _rising(function: Callable[[float], float]) -> Callable[[Interval], Interval]:
    return lambda a: intervals.monotone_image(function, a)


def _absolute(a: Interval) -> Interval:
    if a.nonnegative:
        return a
    if a.nonpositive:
        return intervals.negated(a)
    high = max((-a.low, not a.low_open), (a.high, not a.high_open))
    return Interval(0, high[0], False, not high[1])


def _least(a: Interval, b: Interval) -> Interval:
    low, high = (
        min((a.low, a.low_open), (b.low, b.low_open)),
        min((a.high, not a.high_open), (b.high, not b.high_open)),
    )
    return Interval(low[0], high[0], low[1], not high[1])


def _greatest(a: Interval, b: Interval) -> Interval:
    return intervals.negated(_least(intervals.negated(a), intervals.negated(b)))


def _clipped(x: Interval, low: Interval, high: Interval) -> Interval:
    return _least(_greatest(x, low), high)


def _power(a: Interval, b: Interval) -> Interval:
    n = b.point
    if n is not None and math.isfinite(n) and n % 2 == 0:
        size = _absolute(a)
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
                ends.append(x**n)
            except (OverflowError, ZeroDivisionError):
                ends.append(math.inf)
    if any(math.isnan(end) for end in ends):
        return POSITIVE if a.positive else NONNEGATIVE
    if a.low < 1 < a.high:
        ends.append(1.0)
    low, high = min(ends), max(ends)
    return Interval(low, high, low == 0 and (low_open or a.positive), False)


def _power_slopes(a: Interval, b: Interval) -> tuple[Slope, Slope]:
    n = b.point
    if n is not None and math.isfinite(n) and n == int(n) and n > 0:
        in_base = "+" if n % 2 == 1 else _sign_of(a)
    else:
        in_base = _sign_of(b) if a.positive or (a.nonnegative and b.nonnegative) else "?"
    in_exponent = "?" if not a.positive else "+" if a.low >= 1 else "-" if a.high <= 1 else "?"
    return in_base, in_exponent


def _truth(*_: Interval) -> Interval:
    return TRUTH


def _chosen_range(condition: Interval, then: Interval, otherwise: Interval) -> Interval:
    if condition.positive or condition.negative:
        return then
    return otherwise if condition.point == 0 else intervals.hull(then, otherwise)


_TO_ZERO = "not defined at 0 or below"

ROWS = (
    Function("add", ("a", "b"), intervals.added, _fixed("+", "+"), ("1", "1"), symbol="+", number=lambda a, b: a + b),
    Function(
        "subtract",
        ("a", "b"),
        lambda a, b: intervals.added(a, intervals.negated(b)),
        _fixed("+", "-"),
        ("1", "-1"),
        symbol="-",
        number=lambda a, b: a - b,
    ),
    Function(
        "multiply",
        ("a", "b"),
        intervals.multiplied,
        lambda a, b: (_sign_of(b), _sign_of(a)),
        ("b", "a"),
        symbol="*",
        number=lambda a, b: a * b,
    ),
    Function(
        "divide",
        ("a", "b"),
        lambda a, b: intervals.multiplied(a, intervals.inverted(b)),
        lambda a, b: (_sign_of(b), _flipped(_sign_of(a)) if b.positive or b.negative else "?"),
        ("1 / b", "-out / b"),
        symbol="/",
        number=lambda a, b: a / b,
    ),
    Function(
        "power",
        ("a", "b"),
        _power,
        _power_slopes,
        ("b * a ^ (b - 1)", "out * log(a)"),
        symbol="^",
        number=lambda a, b: math.pow(a, b),
    ),
    Function("negate", ("a",), intervals.negated, _fixed("-"), ("-1",), symbol="-", number=lambda a: -a),
    Function("less", ("a", "b"), _truth, _fixed("-", "+"), (None, None), symbol="<", number=lambda a, b: float(a < b)),
    Function(
        "less_equal", ("a", "b"), _truth, _fixed("-", "+"), (None, None), symbol="<=", number=lambda a, b: float(a <= b)
    ),
    Function(
        "greater", ("a", "b"), _truth, _fixed("+", "-"), (None, None), symbol=">", number=lambda a, b: float(a > b)
    ),
    Function(
        "greater_equal",
        ("a", "b"),
        _truth,
        _fixed("+", "-"),
        (None, None),
        symbol=">=",
        number=lambda a, b: float(a >= b),
    ),
    Function(
        "equal", ("a", "b"), _truth, _fixed("?", "?"), (None, None), symbol="==", number=lambda a, b: float(a == b)
    ),
    Function(
        "not_equal", ("a", "b"), _truth, _fixed("?", "?"), (None, None), symbol="!=", number=lambda a, b: float(a != b)
    ),
    Function("not", ("a",), _truth, _fixed("?"), (None,), symbol="not", number=lambda a: float(a == 0)),
    Function(
        "choose",
        ("c", "a", "b"),
        _chosen_range,
        _fixed("?", "+", "+"),
        (None, "1 if c else 0", "0 if c else 1"),
        symbol="if",
        number=lambda c, a, b: a if c else b,
    ),
    Function(
        "and",
        ("a", "b"),
        lambda a, b: b if a.positive or a.negative else intervals.hull(b, intervals.exactly(0)),
        _fixed("?", "?"),
        ("0 if a else 1", "1 if a else 0"),
        symbol="and",
        number=lambda a, b: b if a else a,
    ),
    Function(
        "or",
        ("a", "b"),
        lambda a, b: a if a.positive or a.negative else intervals.hull(a, b),
        _fixed("?", "?"),
        ("1 if a else 0", "0 if a else 1"),
        symbol="or",
        number=lambda a, b: a if a else b,
    ),
    Function("exp", ("x",), _rising(math.exp), _fixed("+"), ("out",), help="e to the power of x", number=math.exp),
    Function(
        "log",
        ("x",),
        lambda a: _rising(math.log)(intervals.meet(a, NONNEGATIVE)),
        _fixed("+"),
        ("1 / x",),
        ((0, POSITIVE, _TO_ZERO),),
        help="natural logarithm",
        number=math.log,
    ),
    Function(
        "log1p",
        ("x",),
        lambda a: _rising(math.log1p)(intervals.meet(a, Interval(-1))),
        _fixed("+"),
        ("1 / (1 + x)",),
        ((0, Interval(-1, low_open=True), "not defined at -1 or below"),),
        help="log(1 + x), exact near 0",
        number=math.log1p,
    ),
    Function(
        "expm1",
        ("x",),
        _rising(math.expm1),
        _fixed("+"),
        ("out + 1",),
        help="exp(x) - 1, exact near 0",
        number=math.expm1,
    ),
    Function(
        "sqrt",
        ("x",),
        lambda a: _rising(math.sqrt)(intervals.meet(a, NONNEGATIVE)),
        _fixed("+"),
        ("0.5 / out",),
        ((0, NONNEGATIVE, "not defined below 0"),),
        help="square root",
        number=math.sqrt,
    ),
    Function("abs", ("x",), _absolute, lambda a: (_sign_of(a),), ("sign(x)",), help="distance from 0", number=abs),
    Function(
        "sign",
        ("x",),
        lambda a: intervals.exactly(1) if a.positive else intervals.exactly(-1) if a.negative else SIGN,
        _fixed("+"),
        (None,),
        help="1, 0 or -1",
        number=lambda x: float((x > 0) - (x < 0)),
    ),
    Function(
        "sigmoid",
        ("x",),
        _rising(_sigmoid),
        _fixed("+"),
        ("out * (1 - out)",),
        help="1 / (1 + exp(-x))",
        number=_sigmoid,
    ),
    Function(
        "logsigmoid",
        ("x",),
        _rising(_logsigmoid),
        _fixed("+"),
        ("sigmoid(-x)",),
        help="log(sigmoid(x))",
        number=_logsigmoid,
    ),
    Function(
        "softplus",
        ("x",),
        lambda a: intervals.negated(_rising(_logsigmoid)(intervals.negated(a))),
        _fixed("+"),
        ("sigmoid(x)",),
        help="log(1 + exp(x))",
        number=lambda x: -_logsigmoid(-x),
    ),
    Function(
        "tanh", ("x",), _rising(math.tanh), _fixed("+"), ("1 - out * out",), help="hyperbolic tangent", number=math.tanh
    ),
    Function(
        "relu",
        ("x",),
        lambda a: _greatest(a, intervals.exactly(0)),
        _fixed("+"),
        ("1 if x > 0 else 0",),
        help="max(x, 0)",
        number=lambda x: max(x, 0.0),
    ),
    Function(
        "min",
        ("a", "b"),
        _least,
        _fixed("+", "+"),
        ("1 if a < b else 0.5 if a == b else 0", "1 if b < a else 0.5 if a == b else 0"),
        help="the smaller of two",
        number=min,
    ),
    Function(
        "max",
        ("a", "b"),
        _greatest,
        _fixed("+", "+"),
        ("1 if a > b else 0.5 if a == b else 0", "1 if b > a else 0.5 if a == b else 0"),
        help="the larger of two",
        number=max,
    ),
    Function(
        "clip",
        ("x", "lo", "hi"),
        _clipped,
        _fixed("+", "+", "+"),
        ("1 if lo <= x <= hi else 0", "1 if x < lo and lo <= hi else 0", "1 if max(x, lo) > hi else 0"),
        help="x, held between lo and hi",
        number=lambda x, lo, hi: min(max(x, lo), hi),
    ),
)

FUNCTIONS: dict[str, Function] = {row.name: row for row in ROWS}
BINARY = {row.symbol: row for row in ROWS if row.symbol and len(row.arguments) == 2}
#: what an author may call; the rest is written with symbols
NAMED: dict[str, Function] = {row.name: row for row in ROWS if not row.symbol}


@dataclass(frozen=True)
class Reduction:
    """A function of all values along an axis; `range` is that of its result given the range of one value."""

    name: str
    range: Callable[[Interval], Interval]
    slope: Slope
    arguments: int = 1
    help: str = ""


def _summed(a: Interval) -> Interval:
    low = a.low if a.low >= 0 else -math.inf
    high = a.high if a.high <= 0 else math.inf
    return Interval(low, high, a.low_open, a.high_open)


def _same(a: Interval) -> Interval:
    return a


def _spread(a: Interval) -> Interval:
    return Interval(0, a.high - a.low) if a.bounded else NONNEGATIVE


REDUCTIONS: dict[str, Reduction] = {
    row.name: row
    for row in (
        Reduction("sum", _summed, "+", help="the sum"),
        Reduction("mean", _same, "+", help="the mean"),
        Reduction("std", _spread, "?", help="standard deviation of the population (divides by N)"),
        Reduction("sample_std", _spread, "?", help="standard deviation of the sample (divides by N - 1)"),
        Reduction("max", _same, "+", help="the largest"),
        Reduction("min", _same, "+", help="the smallest"),
        Reduction("quantile", _same, "+", 2, help="the q-quantile, linear between neighbours"),
    )
}


@dataclass(frozen=True)
class Form:
    """A function that moves values between the members of a batch.

    `takes` is the finest scope of its argument, `coarsest` the coarsest that makes sense, `gives` its result's
    scope; `flows` says whether a gradient passes; `data` what the batch must hold.
    """

    name: str
    arguments: tuple[str, ...]
    coarsest: Scope
    takes: Scope
    gives: Scope
    flows: bool
    data: str = ""
    range: Callable[[Interval], Interval] = _same
    help: str = ""


def _with_zero(a: Interval) -> Interval:
    return intervals.hull(a, intervals.exactly(0))


def _to_go_range(a: Interval) -> Interval:
    return NONNEGATIVE if a.nonnegative else NONPOSITIVE if a.nonpositive else ANY


_S, _G, _T, _C = Scope.SEQUENCE, Scope.GROUP, Scope.TOKEN, Scope.CONST
_VERSUS = Scope.COMPARISON
FORMS: dict[str, Form] = {
    row.name: row
    for row in (
        Form("opposite", ("x",), _S, _S, _S, True, "pairs", help="of the other response of the pair"),
        Form("chosen", ("x",), _S, _S, _G, True, "pairs", help="of the pair's chosen response"),
        Form("rejected", ("x",), _S, _S, _G, True, "pairs", help="of the pair's rejected response"),
        Form("own", ("x",), _S, _S, _VERSUS, True, "groups", help="in `… over others`: of the sequence itself"),
        Form("greedy", ("x",), _S, _S, _G, False, "prompts", help="of the greedy completion of the same prompt"),
        Form("mismatched", ("x",), _S, _S, _S, False, help="of the completion of another prompt"),
        Form("terminal", ("x",), _C, _S, _T, True, range=_with_zero, help="x on the last token, 0 elsewhere"),
        Form(
            "to_go",
            ("x", "g"),
            _T,
            _T,
            _T,
            True,
            range=_to_go_range,
            help="what is still to come, discounted by g",
        ),
        Form("sg", ("x",), _C, _VERSUS, _T, False, help="x as a number: stops the gradient"),
    )
}

#: other spellings, of functions and of components
SPELLINGS = {"σ": "sigmoid"}
COMPONENT_SPELLINGS = {"ω": "omega", "υ": "upsilon", "α": "alpha"}

#: every word that can be called
CALLABLE = frozenset(NAMED) | frozenset(REDUCTIONS) | frozenset(FORMS)


@dataclass(frozen=True)
class Observable:
    """A value that the batch brings. `data` is what the batch must hold to have it, `range` what is known of it."""

    name: str
    scope: Scope
    range: Interval
    data: str = ""
    live: bool = False
    help: str = ""


_LOGP = Interval(-math.inf, 0)
OBSERVABLES: dict[str, Observable] = {
    row.name: row
    for row in (
        Observable("logp", _T, _LOGP, live=True, help="log πθ of the token, now"),
        Observable("logp_old", _T, _LOGP, help="under the policy that the step started from"),
        Observable("logp_sampler", _T, _LOGP, help="as the sampling engine reported it"),
        Observable("logp_ref", _T, _LOGP, help="under the reference model"),
        Observable("entropy", _T, NONNEGATIVE, help="of πθ over the vocabulary"),
        Observable("position", _T, NONNEGATIVE, help="0 for the first completion token"),
        Observable("length", _S, Interval(1), help="completion tokens"),
        Observable("group_size", _G, Interval(1), "groups", help="sequences of the group"),
        Observable("label", _S, SIGN, "labels", help="+1 or -1"),
        Observable("demonstration", _S, TRUTH, "demonstrations", help="1 for a demonstration, else 0"),
    )
}

LOG_PROBS = ("logp", "logp_old", "logp_sampler", "logp_ref", "entropy")

#: words that no definition may take
KEYWORDS = frozenset(
    [
        "method",
        "extends",
        "data",
        "group",
        "param",
        "score",
        "report",
        "law",
        "aggregate",
        "over",
        "in",
        "and",
        "or",
        "not",
        "if",
        "else",
        "with",
        "when",
        "any",
        "inf",
        "tokens",
        "sequences",
        "groups",
        "others",
        "batch",
    ]
)
