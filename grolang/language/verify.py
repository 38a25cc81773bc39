"""The IR held against its own rules after the checker has built it: a bug in grolang is said to be one.

Each node's scope and flow are computed again from its parts and the table of functions, and every name must lead
somewhere. It is cheap, and it runs on every method that checks.
"""

from __future__ import annotations

from collections.abc import Iterator

from grolang.language.functions import FORMS, FUNCTIONS, OBSERVABLES
from grolang.language.ir import Arbitrary, Argument, Call, Expr, MethodIR, Named, Number, Observed, Parameter, Reduce
from grolang.language.scopes import REDUCED, Scope, has_axis, joined


def verify(method: MethodIR) -> None:
    """Raise AssertionError, with the node, where a method breaks the rules of its IR."""
    for body in _bodies(method):
        stack = [body]
        while stack:
            node = stack.pop()
            expected = _expected(node, method)
            found = node.scope, node.live
            assert expected is None or found == expected, f"bug in grolang: the checker made {found} of {node!r}"
            if isinstance(node, (Call, Reduce)):
                stack += node.arguments


def _bodies(method: MethodIR) -> Iterator[Expr]:
    yield from (row.body for row in method.definitions.values())
    yield from (row.body for row in method.functions.values())
    yield from (row.body for row in method.reports.values())
    for law in method.laws.values():
        yield from law.exchanges.values()
        if law.body is not None:
            yield law.body


def _expected(node: Expr, method: MethodIR) -> tuple[Scope, bool] | None:
    """Scope and flow as the node's parts give them; None where the node is free to have any."""
    match node:
        case Number():
            return Scope.CONST, False
        case Parameter():
            assert node.name in method.parameters, f"bug in grolang: no parameter {node.name}"
            return Scope.CONST, False
        case Observed() if node.name in OBSERVABLES:
            return OBSERVABLES[node.name].scope, OBSERVABLES[node.name].live
        case Observed():
            assert node.name in method.scores, f"bug in grolang: no score {node.name}"
            return Scope.SEQUENCE, False
        case Named():
            body = method.definitions[node.name].body
            return body.scope, body.live
        case Reduce():
            assert has_axis(node.arguments[0].scope, node.axis), f"bug in grolang: no axis in {node!r}"
            return REDUCED[node.axis], node.arguments[0].live
        case Call() if node.function in FORMS:
            row, value = FORMS[node.function], node.arguments[0]
            assert row.coarsest <= value.scope <= row.takes, f"bug in grolang: wrong argument of {node!r}"
            return (value.scope if row.name == "sg" else row.gives), row.flows and value.live
        case Call():
            flows = FUNCTIONS[node.function].derivative
            live = any(part.live for part, flow in zip(node.arguments, flows) if flow is not None)
            return joined(*(part.scope for part in node.arguments)), live
        case Argument() | Arbitrary():
            return None
