"""The estimator's parts as expressions, as a page shows them: names that only stand for another name are followed."""

from __future__ import annotations

from dataclasses import dataclass

from grolang.language import ir
from grolang.language.ir import constant
from grolang.language.scopes import joined


@dataclass(frozen=True)
class Components:
    """The estimator's parts as expressions, names that only stand for another name followed to the end."""

    z: ir.Expr
    omega: ir.Expr
    upsilon: ir.Expr
    advantage: ir.Expr
    credit: ir.Expr
    penalty: ir.Expr


def components(method: ir.MethodIR) -> Components:
    """The parts of a method's estimator (LANGUAGE.md, 2)."""
    definitions = method.definitions
    parts = {name: followed(named_as(name, method), method) for name in ("measure", "anchor", "alpha", "credit")}
    distance = parts["measure"]
    if constant(parts["anchor"]) != 0:
        distance = _call("subtract", distance, parts["anchor"])
    z = distance if constant(parts["alpha"]) == 1 else _call("multiply", parts["alpha"], distance)
    return Components(
        z=z,
        omega=method.functions["omega"].body,
        upsilon=method.functions["upsilon"].body,
        advantage=followed(named_as("advantage", method), method),
        credit=parts["credit"],
        penalty=definitions["penalty"].body,
    )


def named_as(name: str, method: ir.MethodIR) -> ir.Expr:
    """A definition as an expression mentions it."""
    body = method.definitions[name].body
    return ir.Named(scope=body.scope, live=body.live, span=body.span, name=name)


def followed(expr: ir.Expr, method: ir.MethodIR) -> ir.Expr:
    """What a name stands for, as long as that is another name or a single value: `reward = label` is the label.

    What a pair's other response has, and `alpha` where it is a product, count as short too.
    """
    while isinstance(expr, ir.Named):
        body = plain_body(expr.name, method)
        short = isinstance(body, (ir.Number, ir.Parameter, ir.Observed, ir.Named))
        moved = isinstance(body, ir.Call) and body.function == "opposite" and isinstance(body.arguments[0], ir.Named)
        scaled = expr.name == "alpha" and isinstance(body, ir.Call) and body.function == "multiply"
        if not (short or moved or scaled):
            return expr
        expr = body
    return expr


def plain_body(name: str, method: ir.MethodIR) -> ir.Expr:
    """A definition's body; of the default advantage, reward − baseline, the reward alone where the baseline is 0."""
    definition = method.definitions[name]
    body = definition.body
    if not definition.given and isinstance(body, ir.Call) and body.function == "subtract":
        first, second = body.arguments
        return first if constant(followed(second, method)) == 0 else body
    return body


def _call(function: str, *arguments: ir.Expr) -> ir.Call:
    scope = joined(*(argument.scope for argument in arguments))
    return ir.Call(scope=scope, span=arguments[0].span, function=function, arguments=arguments)


def argues(body: ir.Expr) -> bool:
    """Whether the body of ω or υ uses its argument."""
    return any(isinstance(node, ir.Argument) for node in ir.nodes(body))
