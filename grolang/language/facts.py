"""Facts by composition: the range of an expression and how it moves, from the rows of the table of functions.

Composition follows CVXPY's rule (Grant, Boyd and Ye, 2006) and knows no function by name. A condition is taken
into its branches: in `a / s if s > 0 else 0`, `s` is positive where it divides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

from grolang.language import intervals
from grolang.language.functions import DENIED, FORMS, FUNCTIONS, MIRRORED, OBSERVABLES, REDUCTIONS, Slope
from grolang.language.intervals import ANY, Interval
from grolang.language.ir import Argument, Call, Expr, MethodIR, Named, Number, Observed, Parameter, Reduce, nodes

#: what is known beyond the table: an expression's key -> the range that a condition leaves it
Known = Mapping[object, Interval]

#: log-probs that a float32 tells from 0; beyond it `exp` is asked too much anyway
_LOGP = Interval(-85, 0)


def key(expr: Expr) -> object:
    """Equal for expressions that say the same, wherever they stand."""
    match expr:
        case Number():
            return expr.value
        case Call() | Reduce():
            axis = expr.axis if isinstance(expr, Reduce) else ""
            return (expr.function, axis, *(key(argument) for argument in expr.arguments))
        case Parameter() | Observed() | Named() | Argument():
            return expr.kind, expr.name
        case _:
            return expr.kind, expr.span.start


class Facts:
    """Ranges and slopes of a method's expressions.

    With `fixed`, parameters stand at their values, else anywhere in their bounds if they have any; with `typical`,
    log-probs lie where a float32 can tell them apart.
    """

    def __init__(self, method: MethodIR, *, fixed: bool = False, typical: bool = False) -> None:
        self.method = method
        self.fixed = fixed
        self.typical = typical
        self._ranges: dict[object, Interval] = {}
        self._slopes: dict[tuple[str, str], Slope] = {}

    @cached_property
    def arguments(self) -> dict[str, Interval]:
        """The ranges of omega's argument, alpha * (measure - anchor), and of upsilon's, the advantage."""
        alpha, measure, anchor, advantage = (
            self.range(self.method.definitions[name].body) for name in ("alpha", "measure", "anchor", "advantage")
        )
        distance = FUNCTIONS["subtract"].range(measure, anchor)
        return {"omega": FUNCTIONS["multiply"].range(alpha, distance), "upsilon": advantage}

    def range(self, expr: Expr, known: Known | None = None) -> Interval:
        """Every value that the expression can take lies here."""
        known = known or {}
        memo = id(expr), frozenset(known.items())
        if memo not in self._ranges:
            found = self._range(expr, known)
            self._ranges[memo] = intervals.meet(found, known[key(expr)]) if key(expr) in known else found
        return self._ranges[memo]

    def _range(self, expr: Expr, known: Known) -> Interval:
        match expr:
            case Number():
                return intervals.exactly(expr.value)
            case Parameter():
                return self.parameter(expr.name)
            case Observed():
                row_range = OBSERVABLES[expr.name].range if expr.name in OBSERVABLES else ANY
                return _LOGP if self.typical and expr.name.startswith("logp") else row_range
            case Named():
                # What a condition tells of it is met by `range`; what it tells of its parts is let go, so that
                # definitions that use each other cost one look each.
                return self.range(self.method.definitions[expr.name].body)
            case Argument():
                return self.arguments[expr.name]
            case Reduce():
                return REDUCTIONS[expr.function].range(self.range(expr.arguments[0], known))
            case Call(function="choose"):
                condition, then, otherwise = expr.arguments
                branches = (
                    self.range(branch, {**known, **self.assumed(condition, holds, known)})
                    for branch, holds in ((then, True), (otherwise, False))
                )
                return FUNCTIONS["choose"].range(self.range(condition, known), *branches)
            case Call() if expr.function in FORMS:
                return FORMS[expr.function].range(self.range(expr.arguments[0], known))
            case Call():
                return FUNCTIONS[expr.function].range(*(self.range(argument, known) for argument in expr.arguments))
            case _:
                return ANY

    def parameter(self, name: str) -> Interval:
        """The values of a parameter; one without bounds stands at its value."""
        row = self.method.parameters[name]
        unbounded = math.isinf(row.interval.low) and math.isinf(row.interval.high)
        return intervals.exactly(row.value) if self.fixed or unbounded else row.interval

    def assumed(self, condition: Expr, holds: bool, known: Known) -> dict[object, Interval]:
        """What a condition's outcome tells about the expressions that it compares."""
        if isinstance(condition, Named):
            return self.assumed(self.method.definitions[condition.name].body, holds, known)
        if not isinstance(condition, Call):
            return {}
        args = condition.arguments
        match condition.function, holds:
            case "not", _:
                return self.assumed(args[0], not holds, known)
            case ("and", True) | ("or", False):
                told = self.assumed(args[0], holds, known)
                return told | self.assumed(args[1], holds, {**known, **told})  # both ends of `0 < x < 1`
            case sign, _ if sign in DENIED:
                return self._compared(sign, holds, args[0], args[1], known)
            case _:
                return {}

    def _compared(self, sign: str, holds: bool, a: Expr, b: Expr, known: Known) -> dict[object, Interval]:
        """What is left of the ranges of a and b."""
        sign = sign if holds else DENIED[sign]
        if sign in ("greater", "greater_equal"):
            sign, a, b = MIRRORED[sign], b, a
        x, y = self.range(a, known), self.range(b, known)
        match sign:
            case "less" | "less_equal":
                strict = sign == "less"
                for_a = Interval(-math.inf, y.high, high_open=strict or y.high_open)
                for_b = Interval(x.low, math.inf, low_open=strict or x.low_open)
            case "equal":
                for_a, for_b = y, x
            case _:
                for_a, for_b = _without(x, y), _without(y, x)
        return {key(a): intervals.meet(x, for_a), key(b): intervals.meet(y, for_b)}

    def slope(self, expr: Expr, variable: str) -> Slope:
        """How the expression moves with the argument of omega or upsilon; "?" where composition cannot tell."""
        match expr:
            case Argument():
                return "+" if expr.name == variable else "="
            case Named():
                if (expr.name, variable) not in self._slopes:
                    self._slopes[expr.name, variable] = self.slope(self.method.definitions[expr.name].body, variable)
                return self._slopes[expr.name, variable]
            case Reduce():
                inner = self.slope(expr.arguments[0], variable)
                return "=" if inner == "=" else "?"
            case Call() if expr.function in FORMS:
                inner = self.slope(expr.arguments[0], variable)
                return "=" if inner == "=" else inner if expr.function == "sg" else "?"
            case Call():
                ranges = [self.range(argument) for argument in expr.arguments]
                outer = FUNCTIONS[expr.function].slopes(*ranges)
                inner_slopes = [self.slope(argument, variable) for argument in expr.arguments]
                return _joined([_composed(f, g) for f, g in zip(outer, inner_slopes)])
            case _:
                return "="


def _without(x: Interval, y: Interval) -> Interval:
    """x where it is known not to equal the single value y: an end that it excludes."""
    if y.point is None:
        return x
    return Interval(x.low, x.high, x.low_open or x.low == y.point, x.high_open or x.high == y.point)


def _composed(outer: Slope, inner: Slope) -> Slope:
    if inner == "=" or outer == "=":
        return "="
    if "?" in (outer, inner):
        return "?"
    return "+" if outer == inner else "-"


def _joined(parts: list[Slope]) -> Slope:
    moving = {part for part in parts if part != "="}
    return "=" if not moving else moving.pop() if len(moving) == 1 else "?"


def reads(expr: Expr, method: MethodIR, *, into: bool = True) -> set[tuple[str, str]]:
    """Kind and name of everything that an expression mentions; `into` follows definitions."""
    every = nodes(expr, method.definitions if into else None)
    return {(node.kind, node.name) for node in every if isinstance(node, (Parameter, Observed, Named, Argument))}


def value(expr: Expr, method: MethodIR, given: dict[tuple[str, str], float]) -> float:
    """The value of an expression of single numbers; NaN where it is not defined. `given` learns definitions."""
    match expr:
        case Number():
            return expr.value
        case Parameter():
            return method.parameters[expr.name].value
        case Observed() | Argument():
            return given[expr.kind, expr.name]
        case Named():
            mention = expr.kind, expr.name
            if mention not in given:
                given[mention] = value(method.definitions[expr.name].body, method, given)
            return given[mention]
        case Call() if expr.function in FUNCTIONS:
            parts = [value(argument, method, given) for argument in expr.arguments]
            try:
                return float(FUNCTIONS[expr.function].number(*parts))
            except OverflowError:
                return math.inf
            except (ValueError, ZeroDivisionError):
                return math.nan
        case _:
            return math.nan


def pointwise(expr: Expr, method: MethodIR) -> bool:
    """Whether an expression is made of numbers at one place only: no reduction, no form."""
    return all(elementwise(node) for node in nodes(expr, method.definitions))


def elementwise(node: Expr) -> bool:
    """Whether a node is made at one place: no reduction, no form."""
    return not isinstance(node, Reduce) and (not isinstance(node, Call) or node.function in FUNCTIONS)
