"""The table's functions on sympy terms.

Arithmetic is sympy's own. The rest stays a function of its name: sympy's Piecewise, Min and relations put what an
author wrote in an order of their own, and it has no sigmoid, which is known here by what it is made of:

    1 / (1 + e^-x)  and  e^a / (e^a + e^b)   are   sigmoid(x)  and  sigmoid(a - b)
    log(sigmoid(x))  and  log(1 + e^x)       are   logsigmoid(x)  and  softplus(x)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import sympy
from sympy import Expr

from grolang.language.functions import DENIED, FUNCTIONS, MIRRORED
from grolang.laws.book import ONE, ZERO

_ARITHMETIC: dict[str, Callable[..., Expr]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "chain": operator.mul,
    "divide": operator.truediv,
    "power": operator.pow,
    "negate": operator.neg,
}
#: functions whose value at plain numbers is a plain number
_DECIDED = {*DENIED, "not", "min", "max", "clip", "relu", "abs", "sign"}


def apply(function: str, *args: Expr) -> Expr:
    """A function of the table at terms."""
    if (known := _logistic(function, *args)) is not None:
        return known
    if function in _ARITHMETIC:
        return _ARITHMETIC[function](*args)
    if function in _DECIDED and all(arg.is_number for arg in args):
        return number(FUNCTIONS[function].number(*(float(arg) for arg in args)))
    if function == "choose":
        return _chosen(*args)
    if function in ("and", "or") and args[0].is_number:
        return args[1] if bool(args[0] != 0) == (function == "and") else args[0]
    if function in MIRRORED and args[1] == 0 and args[0].as_coeff_Mul()[0] < 0:
        return apply(MIRRORED[function], -args[0], args[1])
    return sympy.Function(function, real=True)(*args)


def number(value: float) -> Expr:
    """A number of the language, exactly as it is written."""
    return sympy.Rational(repr(value))


def _logistic(function: str, first: Expr, *others: Expr) -> Expr | None:
    if function == "divide" and others[0].is_Add and len(others[0].args) == 2 and first in others[0].args:
        above, below = _exponent(first), _exponent(others[0] - first)
        return None if above is None or below is None else sympy.Function("sigmoid", real=True)(above - below)
    if function == "log" and str(first.func) == "sigmoid":
        return sympy.Function("logsigmoid", real=True)(first.args[0])
    if function == "log" and first.is_Add and len(first.args) == 2 and ONE in first.args:
        exponent = _exponent(first - 1)
        return None if exponent is None else sympy.Function("softplus", real=True)(exponent)
    return None


def _exponent(expr: Expr) -> Expr | None:
    """The x of e^x."""
    return ZERO if expr == 1 else expr.args[0] if str(expr.func) == "exp" else None


def _chosen(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    if condition.is_number:
        return then if condition != 0 else otherwise
    if (then, otherwise) == (1, 0) and str(condition.func) in {*DENIED, "not"}:
        return condition
    return sympy.Function("choose", real=True)(condition, then, otherwise)


def shared(terms: Sequence[Expr]) -> Expr:
    """The factors that all terms have; sympy's `gcd_terms` would take 0.03 out of 0.3 + 0.09 z, too."""
    common = set.intersection(*(set(sympy.Mul.make_args(term)) for term in terms))
    return sympy.Mul(*(factor for factor in common if not factor.is_number))
