"""The IR held against its own rules after the checker has built it: a bug in grolang is said to be one.

Each node's scope and flow are computed again from its parts and the table of functions, and every name must lead
somewhere. It is cheap, and it runs on every method that checks.
"""

from __future__ import annotations

from collections.abc import Iterator

from grolang.language import ir
from grolang.language.functions import FORMS, FUNCTIONS, OBSERVABLES
from grolang.language.scopes import REDUCED, Scope, has_axis, joined


def verify(method: ir.MethodIR) -> None:
    """Raise AssertionError, with the node, where a method breaks the rules of its IR."""
    for body in _bodies(method):
        for node in ir.nodes(body):
            expected = _expected(node, method)
            found = node.scope, node.live
            assert expected is None or found == expected, f"bug in grolang: the checker made {found} of {node!r}"


def _bodies(method: ir.MethodIR) -> Iterator[ir.Expr]:
    yield from (row.body for row in method.definitions.values())
    yield from (row.body for row in method.functions.values())
    yield from (row.body for row in method.reports.values())
    for law in method.laws.values():
        yield from law.exchanges.values()
        if law.body is not None:
            yield law.body


def _expected(node: ir.Expr, method: ir.MethodIR) -> tuple[Scope, bool] | None:
    """Scope and flow as the node's parts give them; None where the node is free to have any."""
    match node:
        case ir.Number():
            return Scope.CONST, False
        case ir.Parameter():
            assert node.name in method.parameters, f"bug in grolang: no parameter {node.name}"
            return Scope.CONST, False
        case ir.Observed() if node.name in OBSERVABLES:
            return OBSERVABLES[node.name].scope, OBSERVABLES[node.name].live
        case ir.Observed():
            assert node.name in method.scores, f"bug in grolang: no score {node.name}"
            return Scope.SEQUENCE, False
        case ir.Named():
            body = method.definitions[node.name].body
            return body.scope, body.live
        case ir.Reduce():
            assert has_axis(node.arguments[0].scope, node.axis), f"bug in grolang: no axis in {node!r}"
            return REDUCED[node.axis], node.arguments[0].live
        case ir.Call() if node.function in FORMS:
            row, value = FORMS[node.function], node.arguments[0]
            assert row.coarsest <= value.scope <= row.takes, f"bug in grolang: wrong argument of {node!r}"
            return (value.scope if row.name == "sg" else row.gives), row.flows and value.live
        case ir.Call():
            flows = FUNCTIONS[node.function].derivative
            live = any(part.live for part, flow in zip(node.arguments, flows) if flow is not None)
            return joined(*(part.scope for part in node.arguments)), live
        case ir.Argument() | ir.Arbitrary():
            return None
