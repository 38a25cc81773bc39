"""The intermediate representation: a method after every check, frozen, each node with scope, flow and span."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, Union

from pydantic import Field

from grolang.language.intervals import Interval
from grolang.language.scopes import AGGREGATED, ALL_OF, Scope
from grolang.language.source import Frozen, Span


class Node(Frozen):
    """An expression. `live`: a gradient in `logp` flows through it wherever the language lets one flow."""

    scope: Scope
    live: bool = False
    span: Span


class Number(Node):
    kind: Literal["number"] = "number"
    value: float


class Parameter(Node):
    kind: Literal["parameter"] = "parameter"
    name: str


class Observed(Node):
    """A tensor of the batch: an observable or a score."""

    kind: Literal["observed"] = "observed"
    name: str


class Named(Node):
    """The value of a definition or component."""

    kind: Literal["named"] = "named"
    name: str


class Argument(Node):
    """The argument of omega or upsilon, inside its body."""

    kind: Literal["argument"] = "argument"
    name: str


class Call(Node):
    """A function or form applied to expressions; `function` is a row of the table of functions."""

    kind: Literal["call"] = "call"
    function: str
    arguments: tuple[Expr, ...]


class Reduce(Node):
    """A reduction along an axis; a quantile's second argument is q."""

    kind: Literal["reduce"] = "reduce"
    function: str
    axis: str
    arguments: tuple[Expr, ...]


class Arbitrary(Node):
    """`any(scope)` in a law: an arbitrary value of that scope."""

    kind: Literal["arbitrary"] = "arbitrary"


Expr = Annotated[
    Union[Number, Parameter, Observed, Named, Argument, Call, Reduce, Arbitrary], Field(discriminator="kind")
]


class ParameterRow(Frozen):
    """`param NAME = value [in interval] ["help"]`"""

    name: str
    value: float
    interval: Interval
    help: str
    span: Span


class ScoreRow(Frozen):
    """`score NAME [= builtin] ["help"]`"""

    name: str
    builtin: str | None
    help: str
    span: Span


class Definition(Frozen):
    """`NAME = EXPR`; `spelled` is the author's spelling, `given` is False for a component left at its default."""

    name: str
    spelled: str
    body: Expr
    span: Span
    given: bool = True


class FunctionDefinition(Frozen):
    """`omega(z) = EXPR` or `upsilon(a) = EXPR`."""

    name: str
    spelled: str
    argument: str
    body: Expr
    span: Span
    given: bool = True


class Step(Frozen):
    """One step of an aggregation: `mean over tokens`, `sum over tokens / max_length`."""

    function: Annotated[str, Field(pattern="^(sum|mean)$")]
    axis: str
    divisor: float | str | None = None
    span: Span

    @property
    def text(self) -> str:
        """As its author wrote it."""
        divisor = f" / {self.divisor:g}" if isinstance(self.divisor, float) else f" / {self.divisor}"
        return f"{self.function} over {self.axis}" + ("" if self.divisor is None else divisor)


class Report(Frozen):
    """`report NAME = EXPR`"""

    name: str
    body: Expr
    span: Span


class Law(Frozen):
    """A claim. `exchanges` replaces observables, `settings` sets parameters."""

    name: str
    claim: Literal["loss", "equals", "proportional", "invariant", "unbiased"]
    body: Expr | None = None
    aggregate: tuple[Step, ...] | None = None
    method: str | None = None
    settings: dict[str, float] = {}
    exchanges: dict[str, Expr] = {}
    span: Span

    @property
    def steps(self) -> tuple[Step, ...]:
        """How its loss is averaged: as it says, else over its sequences or groups. Empty where it claims no loss."""
        if self.aggregate is not None or self.body is None:
            return self.aggregate or ()
        axis = ALL_OF.get(self.body.scope)
        return () if axis is None else (Step(function="mean", axis=axis, span=self.body.span),)


class MethodIR(Frozen):
    """A checked method: every component is there, the author's or its default."""

    name: str
    title: str
    file: str
    parents: tuple[str, ...]
    data: tuple[str, ...]
    group: int | None
    parameters: dict[str, ParameterRow]
    scores: dict[str, ScoreRow]
    definitions: dict[str, Definition]
    functions: dict[str, FunctionDefinition]
    aggregate: tuple[Step, ...]
    reports: dict[str, Report]
    laws: dict[str, Law]

    @property
    def grouped(self) -> bool:
        """Whether its sequences stand in groups: pairs, or completions of one prompt."""
        return "preference" in self.data or "prompts" in self.data


def taken(steps: Iterable[Step], scope: Scope) -> Iterator[tuple[Step, Scope, Scope]]:
    """The steps that a value of this scope takes, each with the scope before it and the one after it.

    A step over an axis that the scope does not have is skipped (LANGUAGE.md, 6).
    """
    for step in steps:
        after = AGGREGATED[step.axis]
        if scope > after:
            yield step, scope, after
            scope = after


def nodes(expr: Expr, definitions: Mapping[str, Definition | None] | None = None) -> Iterator[Expr]:
    """An expression and all that it is made of; with `definitions` also what the names in it stand for, each once."""
    stack, seen = [expr], set[str]()
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, (Call, Reduce)):
            stack += node.arguments
        elif isinstance(node, Named) and definitions is not None and node.name not in seen:
            seen.add(node.name)
            if (definition := definitions.get(node.name)) is not None:
                stack.append(definition.body)


def constant(expr: Expr) -> float | None:
    """The value of a number, with or without a sign."""
    if isinstance(expr, Number):
        return expr.value
    if isinstance(expr, Call) and expr.function == "negate":
        inner = constant(expr.arguments[0])
        return None if inner is None else -inner
    return None


for _node in (Call, Reduce):
    _node.model_rebuild()
