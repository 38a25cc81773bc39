"""The table of functions: one row per word of the language, and everything that is known of it.

A row says what a function takes, the range of its result, where it rises and falls, where it is not defined, and
its derivative, written in the language itself. The checker, the analyses, the compiler and the manual read these
rows and know no function by name; a test ties every declared fact to numbers.
"""

from __future__ import annotations

import math
import operator
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


def _sign(x: float) -> float:
    return float((x > 0) - (x < 0)) if x == x else math.nan


def _undefined(*_: float) -> float:
    return math.nan


@dataclass(frozen=True)
class Function:
    """A function of numbers, applied to each value by itself.

    `number` computes it for floats, where torch is not at hand. `derivative` holds, per argument, the partial
    derivative in the language, of the arguments by their names and of `out`, the function's own value; `chain(a, b)`
    is a · b, and 0 where a is 0. None where it is 0 almost everywhere: no gradient flows there.
    """

    name: str
    arguments: tuple[str, ...]
    range: Callable[..., Interval]
    slopes: Callable[..., tuple[Slope, ...]]
    derivative: tuple[str | None, ...]
    domain: tuple[Domain, ...] = ()
    number: Callable[..., float] = _undefined
    symbol: str = ""
    nests: bool = False
    help: str = ""


def _fixed(*slopes: Slope) -> Callable[..., tuple[Slope, ...]]:
    return lambda *_: slopes


def _sign_of(a: Interval) -> Slope:
    return "+" if a.nonnegative else "-" if a.nonpositive else "?"


def _flipped(slope: Slope) -> Slope:
    return {"+": "-", "-": "+"}.get(slope, slope)


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


def _comparison(name: str, symbol: str, slopes: str, holds: Callable[[float, float], bool]) -> Function:
    def number(a: float, b: float) -> float:
        return float(holds(a, b))

    return Function(name, ("a", "b"), _truth, _fixed(*slopes), (None, None), symbol=symbol, number=number)


def _rising(
    name: str, number: Callable[[float], float], derivative: str, help: str, domain: Interval = ANY, why: str = ""
) -> Function:
    """A function of one number that never falls."""

    def image(a: Interval) -> Interval:
        return intervals.monotone_image(number, intervals.meet(a, domain))

    return Function(
        name, ("x",), image, _fixed("+"), (derivative,), ((0, domain, why),) if why else (), number, help=help
    )


ROWS = (
    Function("add", ("a", "b"), intervals.added, _fixed("+", "+"), ("1", "1"), symbol="+", number=operator.add),
    Function(
        "subtract",
        ("a", "b"),
        lambda a, b: intervals.added(a, intervals.negated(b)),
        _fixed("+", "-"),
        ("1", "-1"),
        symbol="-",
        number=operator.sub,
    ),
    Function(
        "multiply",
        ("a", "b"),
        intervals.multiplied,
        lambda a, b: (_sign_of(b), _sign_of(a)),
        ("b", "a"),
        symbol="*",
        number=operator.mul,
    ),
    Function(
        "divide",
        ("a", "b"),
        lambda a, b: intervals.multiplied(a, intervals.inverted(b)),
        lambda a, b: (_sign_of(b), _flipped(_sign_of(a)) if b.positive or b.negative else "?"),
        ("1 / b", "-out / b"),
        symbol="/",
        number=operator.truediv,
    ),
    Function(
        "power",
        ("a", "b"),
        intervals.power,
        _power_slopes,
        ("chain(b, a ^ (b - 1))", "chain(out, log(a))"),
        symbol="^",
        number=math.pow,
    ),
    Function("negate", ("a",), intervals.negated, _fixed("-"), ("-1",), symbol="-", number=operator.neg),
    _comparison("less", "<", "-+", operator.lt),
    _comparison("less_equal", "<=", "-+", operator.le),
    _comparison("greater", ">", "+-", operator.gt),
    _comparison("greater_equal", ">=", "+-", operator.ge),
    _comparison("equal", "==", "??", operator.eq),
    _comparison("not_equal", "!=", "??", operator.ne),
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
    _rising("exp", math.exp, "out", "e to the power of x"),
    _rising("log", math.log, "1 / x", "natural logarithm", POSITIVE, "not defined at 0 or below"),
    _rising(
        "log1p",
        math.log1p,
        "1 / (1 + x)",
        "log(1 + x), exact near 0",
        Interval(-1, low_open=True),
        "not defined at -1 or below",
    ),
    _rising("expm1", math.expm1, "exp(x)", "exp(x) - 1, exact near 0"),
    _rising("sqrt", math.sqrt, "0.5 / out", "square root", NONNEGATIVE, "not defined below 0"),
    Function(
        "abs", ("x",), intervals.absolute, lambda a: (_sign_of(a),), ("sign(x)",), help="distance from 0", number=abs
    ),
    Function(
        "sign",
        ("x",),
        lambda a: intervals.exactly(1) if a.positive else intervals.exactly(-1) if a.negative else SIGN,
        _fixed("+"),
        (None,),
        help="1, 0 or -1",
        number=_sign,
    ),
    _rising("sigmoid", _sigmoid, "out * sigmoid(-x)", "1 / (1 + exp(-x))"),
    _rising("logsigmoid", _logsigmoid, "sigmoid(-x)", "log(sigmoid(x))"),
    _rising("softplus", lambda x: -_logsigmoid(-x), "sigmoid(x)", "log(1 + exp(x))"),
    _rising("tanh", math.tanh, "4 * sigmoid(2 * x) * sigmoid(-2 * x)", "hyperbolic tangent"),
    Function(
        "relu",
        ("x",),
        lambda a: intervals.greatest(a, intervals.exactly(0)),
        _fixed("+"),
        ("1 if x > 0 else 0",),
        help="max(x, 0)",
        number=lambda x: max(x, 0.0),
    ),
    Function(
        "min",
        ("a", "b"),
        intervals.least,
        _fixed("+", "+"),
        ("1 if a < b else 0.5 if a == b else 0", "1 if b < a else 0.5 if a == b else 0"),
        nests=True,
        help="the smaller of two",
        number=min,
    ),
    Function(
        "max",
        ("a", "b"),
        intervals.greatest,
        _fixed("+", "+"),
        ("1 if a > b else 0.5 if a == b else 0", "1 if b > a else 0.5 if a == b else 0"),
        nests=True,
        help="the larger of two",
        number=max,
    ),
    Function(
        "clip",
        ("x", "lo", "hi"),
        intervals.clipped,
        _fixed("+", "+", "+"),
        ("1 if lo <= x <= hi else 0", "1 if x < lo and lo <= hi else 0", "1 if max(x, lo) > hi else 0"),
        help="x, held between lo and hi",
        number=lambda x, lo, hi: min(max(x, lo), hi),
    ),
)

FUNCTIONS: dict[str, Function] = {row.name: row for row in ROWS}
#: each comparison, and the one that holds where it does not
DENIED = {
    "less": "greater_equal",
    "less_equal": "greater",
    "greater": "less_equal",
    "greater_equal": "less",
    "equal": "not_equal",
    "not_equal": "equal",
}
#: each inequality, and the one that holds with its sides swapped
MIRRORED = {"less": "greater", "less_equal": "greater_equal", "greater": "less", "greater_equal": "less_equal"}
#: conditions, and what compares: they bind looser than a product
LOGICAL = frozenset(("choose", "and", "or", "not", *DENIED))
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

#: other spellings
SPELLINGS = {"σ": "sigmoid"}

#: every word that can be called
CALLABLE = frozenset(NAMED) | frozenset(REDUCTIONS) | frozenset(FORMS)

#: those of them that no definition may take; `own` came later than version 1, whose files may have a name `own`
TAKEN = CALLABLE - {"own"}


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
KEYWORDS = frozenset(  # a text, since a list would take a line a word
    """method extends data group param score report law aggregate over in and or not if else with when any inf
    tokens sequences groups others batch""".split()  # noqa: SIM905
)
