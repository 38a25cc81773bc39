"""Aggregation steps, from the tokens up to one number (LANGUAGE.md, 6)."""

from __future__ import annotations

from lark import Token, Tree

from grolang.language.components import COMPONENTS, FUNCTION_COMPONENTS
from grolang.language.declarations import canonical
from grolang.language.expressions import Elaborator
from grolang.language.findings import listed, suggested
from grolang.language.functions import KEYWORDS, OBSERVABLES
from grolang.language.ir import Step
from grolang.language.parameters import infinite, number
from grolang.language.scopes import AGGREGATED, Scope
from grolang.language.syntax import Statement, branches

DEFAULT_AGGREGATE = (("sum", "tokens"), ("mean", "sequences"))


def aggregation(elaborator: Elaborator) -> tuple[Step, ...]:
    """The steps of `aggregate`, from the tokens up; without it `sum over tokens, mean over sequences`.

    Empty where one of them is wrong, which is then among the findings.
    """
    declared = elaborator.declared
    statement = declared.one("aggregate")
    if statement is None:
        return tuple(Step(function=word, axis=axis, span=declared.place) for word, axis in DEFAULT_AGGREGATE)
    tree = statement.tree.children[0]
    assert isinstance(tree, Tree)
    return steps(statement, tree, elaborator, Scope.TOKEN) or ()


def steps(statement: Statement, tree: Tree[Token], elaborator: Elaborator, scope: Scope) -> tuple[Step, ...] | None:
    """Check the steps of an aggregation of a value of this scope; None where one of them is wrong."""
    findings, made, left = elaborator.findings, list[Step](), scope
    for step in branches(tree):
        function, axis, divisor = step.children
        assert isinstance(function, Token) and isinstance(axis, Token)
        span = statement.span_of(step)
        if function not in ("sum", "mean"):
            help = suggested(function, ("sum", "mean"), "write `sum` or `mean`")
            message = f"an aggregation sums or averages; it has no `{function}`"
            findings.add("E207", message, statement.span_of(function), help=help)
            return None
        if axis not in AGGREGATED:
            help = suggested(axis, AGGREGATED, f"the axes are {listed(AGGREGATED)}")
            findings.add("E207", f"there is no axis `{axis}` to aggregate over", statement.span_of(axis), help=help)
            return None
        if why := _refusal(left, axis, elaborator):
            findings.add(
                "E303", f"`{statement.text_of(step)}`: {why}", span, help=_before(left, axis, scope, elaborator)
            )
            return None
        left = AGGREGATED[axis]
        amount = _divisor(divisor, statement, elaborator)
        made.append(Step(function=str(function), axis=str(axis), divisor=amount, span=span))
    if left > Scope.BATCH:
        findings.add(
            "E303",
            f"the aggregation does not end in one number: it leaves one value per {left.word}",
            statement.span_of(tree),
            label=f"one value per {left.word}",
            help=f"end with `mean over {'groups' if left is Scope.GROUP else 'sequences'}`",
        )
        return None
    return tuple(made)


_AGGREGATE_HELP = "go from the tokens up to one number, for example `sum over tokens, mean over sequences`"

#: the steps that a step over an axis waits for, from values of a scope on
_MISSING = {
    (Scope.TOKEN, "sequences"): "sum over tokens",
    (Scope.TOKEN, "groups"): "sum over tokens, sum over group",
    (Scope.SEQUENCE, "groups"): "sum over group",
}


def _before(left: Scope, axis: str, start: Scope, elaborator: Elaborator) -> str:
    """How to mend a step that cannot be taken: by what comes before it, where that is all that is missing."""
    missing = _MISSING.get((left, axis))
    if missing is None or (axis == "groups" and not elaborator.has("groups")):
        return _AGGREGATE_HELP
    skips = "; a penalty skips the steps over axes that it does not have" if start is left is Scope.TOKEN else ""
    return f"put `{missing}` before it{skips}"


def _refusal(scope: Scope, axis: str, elaborator: Elaborator) -> str:
    """Why a value of this scope cannot take a step over the axis; blank where it can."""
    if scope <= Scope.BATCH:
        return "nothing is left to aggregate"
    if axis in ("group", "groups") and not elaborator.has("groups"):
        return f"`data {' + '.join(elaborator.data)}` has no groups"
    match axis:
        case "tokens" if scope is not Scope.TOKEN:
            return "the tokens are aggregated already"
        case "group" if scope is Scope.GROUP:
            return "the groups' sequences are aggregated already"
        case "sequences" if scope is Scope.GROUP:
            return "the sequences are aggregated already: what is left are groups"
        case "sequences" if scope is Scope.TOKEN:
            return "the tokens of each sequence must be aggregated first"
        case "groups" if scope is not Scope.GROUP:
            return "the sequences of each group must be aggregated first"
    return ""


def _divisor(divisor: Tree[Token] | Token | None, statement: Statement, elaborator: Elaborator) -> float | str | None:
    if divisor is None:
        return None
    if isinstance(divisor, Tree):
        value = number(divisor)
        if not infinite(divisor, statement, elaborator.findings) and value == 0:
            help = "leave it out, or write another number"
            elaborator.findings.add("E505", "an aggregation cannot divide by 0", statement.span_of(divisor), help=help)
        return value
    name = canonical(str(divisor))
    known = {row for row, _ in elaborator.declared.of_kind("param")}
    if name not in known:
        message, help, label = f"`{divisor}` is no parameter", "divide by a number or a parameter", ""
        if name in OBSERVABLES or name in COMPONENTS or elaborator.declared.named(name) is not None:
            help += "" if name in FUNCTION_COMPONENTS else f" here, and by `{divisor}` in `credit`"
        elif name not in FUNCTION_COMPONENTS and name not in KEYWORDS:
            message, label = f"there is no parameter `{divisor}`", "not known"
            help = suggested(name, known, f"declare it: `param {divisor} = …`")
        elaborator.findings.add("E201", message, statement.span_of(divisor), label=label, help=help)
    return name
