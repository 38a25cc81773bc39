"""Expressions as people write them, `a - b` for `a + -b`, and questions of their form."""

from __future__ import annotations

from grolang.language.functions import DENIED
from grolang.language.ir import Call, Expr, MethodIR, Named, Number

#: functions that are 1 where something holds and 0 elsewhere
TRUTHS = (*DENIED, "not")


def unsigned(expr: Expr) -> Expr:
    """A product or quotient without the minus sign in front of its first factor; itself where there is none."""
    if not isinstance(expr, Call):
        return expr
    if expr.function == "negate":
        return expr.arguments[0]
    if expr.function not in ("multiply", "divide"):
        return expr
    first, second = expr.arguments
    whole = unsigned(first)
    return expr if whole is first else expr.model_copy(update={"arguments": (whole, second)})


def tidied(expr: Call) -> Call:
    """The same with `a + -b` as `a - b`, `-a + b` as `b - a`, and `a * (1 / b)` as `a / b`."""
    match expr:
        case Call(function="add" | "subtract" as function, arguments=(a, Call(function="negate", arguments=(b,)))):
            return _made("subtract" if function == "add" else "add", a, b, expr)
        case Call(function="add", arguments=(Call(function="negate", arguments=(a,)), b)):
            return _made("subtract", b, a, expr)
        case Call(function="multiply", arguments=(a, Call(function="divide", arguments=(Number(value=1.0), b)))):
            return _made("divide", a, b, expr)
        case _:
            return expr


def _made(function: str, first: Expr, second: Expr, like: Call) -> Call:
    return like.model_copy(update={"function": function, "arguments": (first, second)})


def truth(expr: Expr, method: MethodIR) -> bool:
    """Whether an expression is 1 where something holds and 0 elsewhere, by its form."""
    match expr:
        case Call(function="and" | "or"):
            return all(truth(argument, method) for argument in expr.arguments)
        case Call(function="choose"):
            return all(truth(argument, method) for argument in expr.arguments[1:])
        case Call():
            return expr.function in TRUTHS
        case Named():
            return truth(method.definitions[expr.name].body, method)
        case _:
            return False
