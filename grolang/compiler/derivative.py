"""Reverse-mode differentiation of a program in `logp`, from the derivatives in the table of functions.

The result is more steps of the same program, so a penalty's share of a coefficient is a number like any other:
it can be printed, scheduled and written into a kernel. A path whose adjoint is 0 contributes 0 even where its
derivative is infinite, so the branch that `A if C else B` does not take never spoils a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial, reduce
from typing import Protocol, TypeVar

from lark import Token, Tree

from grolang.compiler.program import Builder
from grolang.language.functions import BINARY, FUNCTIONS
from grolang.language.scopes import Scope
from grolang.language.syntax import branches, operator, tree_of


def gradient(build: Builder, output: int, seed: int, variable: int) -> int:
    """Σ over the output's values of seed · ∂output/∂variable, at each place of the variable.

    `seed` has the output's scope or a coarser one.
    """
    live = _live(build, output, variable)
    adjoints: dict[int, int] = {output: seed} if output in live else {}
    for index in range(output, -1, -1):
        if index not in adjoints or index == variable:
            continue
        build.span = build[index].span
        for argument, share in _shares(build, index, adjoints[index], live):
            known = adjoints.get(argument)
            adjoints[argument] = (
                share if known is None else build.apply("add", known, share, world=build[argument].world)
            )
    return adjoints.get(variable, build.number(0))


def _live(build: Builder, output: int, variable: int) -> set[int]:
    """The steps that a gradient in the variable passes through."""
    live = {variable}
    for index in range(output + 1):
        step = build[index]
        flows = FUNCTIONS[step.op].derivative if step.op in FUNCTIONS else None
        if step.op in ("stop", "load", "const", "param", "count"):
            continue
        for place, argument in enumerate(step.args):
            if argument in live and (flows is None or flows[place] is not None):
                live.add(index)
    return live


def _shares(build: Builder, index: int, adjoint: int, live: set[int]) -> list[tuple[int, int]]:
    """What a step's adjoint adds to the adjoints of its live arguments."""
    step = build[index]
    args = [argument for argument in step.args if argument in live]
    match step.op:
        case "spread":
            return [(args[0], _gathered(build, adjoint, step.scope, build[args[0]].scope))]
        case "reduce":
            return [(args[0], _unreduced(build, index, adjoint))]
        case "opposite" | "swapped":  # each is its own inverse
            return [(args[0], build.emit(step.op, [build.spread(adjoint, step.scope)], scope=step.scope))]
        case "chosen" | "rejected":
            sign = "greater" if step.op == "chosen" else "less"
            mine = build.apply(sign, build.load("label", Scope.SEQUENCE), build.number(0))
            return [(args[0], build.apply("choose", mine, adjoint, build.number(0)))]
        case "to_go":
            place = build.spread(adjoint, Scope.TOKEN)
            return [(args[0], build.emit("so_far", [place, step.args[1]], scope=Scope.TOKEN))]
    row = FUNCTIONS[step.op]
    names = dict(zip(row.arguments, step.args)) | {"out": index}
    shares = []
    for argument, text in zip(step.args, row.derivative):
        if argument in live and text is not None:
            share = build.apply("chain", adjoint, written(build, text, names))
            shares.append((argument, _gathered(build, share, step.scope, build[argument].scope)))
    return shares


def _gathered(build: Builder, share: int, scope: Scope, target: Scope) -> int:
    """A share of this scope, summed onto a coarser target that stood for each of its places."""
    if target >= scope:
        return share
    return build.reduce("sum", share, scope, max(target, Scope.BATCH))


def _unreduced(build: Builder, index: int, adjoint: int) -> int:
    """The adjoint of a reduction: sums and means in closed form, the rest by the step that knows the values."""
    step = build[index]
    if not step.others and step.detail[0] in ("sum", "mean"):
        if step.detail[0] == "mean":
            adjoint = build.apply("divide", adjoint, build.count(step.child, step.scope))
        return build.spread(adjoint, step.child)
    place = build.spread(adjoint, step.scope)
    return build.emit("unreduce", [step.args[0], index, place, *step.args[1:]], step.detail, scope=step.child)


Value = TypeVar("Value")


class Algebra(Protocol[Value]):
    """What a derivative can be written in: steps of a program, terms of sympy, …"""

    def number(self, value: float) -> Value: ...

    def apply(self, function: str, *args: Value) -> Value: ...


def written(algebra: Algebra[Value], text: str, names: Mapping[str, Value]) -> Value:
    """A derivative of the table of functions, written in an algebra; `names` holds the arguments and `out`."""
    return _written(algebra, tree_of(text), names)


def _written(algebra: Algebra[Value], tree: Tree[Token], names: Mapping[str, Value]) -> Value:
    children, below = tree.children, [_written(algebra, branch, names) for branch in branches(tree)]
    if (function := operator(tree)) is not None:
        return algebra.apply(function, *below)
    match str(tree.data):
        case "literal":
            return algebra.number(float(str(children[0])))
        case "parenthesis":
            return below[0]
        case "name":
            return names[str(children[0])]
        case "if_else":
            then, condition, otherwise = below
            return algebra.apply("choose", condition, then, otherwise)
        case "comparison":
            signs = [BINARY[str(sign)].name for sign in children[1::2]]
            return reduce(partial(algebra.apply, "and"), map(algebra.apply, signs, below, below[1:]))
        case "call":
            return algebra.apply(str(children[0]), *below)
        case rule:
            raise AssertionError(f"bug in grolang: a derivative uses `{rule}`")
