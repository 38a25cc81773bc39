"""A file to a checked method: declarations, expressions, components, aggregation, laws; all findings at once."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from lark import Token, Tree

from grolang.language import library
from grolang.language.aggregation import aggregation
from grolang.language.analysis import analyse
from grolang.language.claims import law
from grolang.language.components import FUNCTION_COMPONENTS
from grolang.language.declarations import Declarations, canonical, declare, leaf, room_to_nest
from grolang.language.diagnostics import Diagnostic, GroError, Note
from grolang.language.expressions import Binding, Elaborator
from grolang.language.findings import Findings, listed, nearest, suggested
from grolang.language.functions import OBSERVABLES
from grolang.language.habits import DECLARED, KINDS_MEANT
from grolang.language.ir import FunctionDefinition, MethodIR, Report
from grolang.language.parameters import parameter, score
from grolang.language.scopes import Scope, joined
from grolang.language.source import Source
from grolang.language.syntax import Statement
from grolang.language.verify import verify

KINDS = ("preference", "unpaired", "prompts", "demonstrations")


@dataclass(frozen=True)
class Checked:
    """The outcome of a check: the method where there is no error, every finding, and the texts that they point to."""

    method: MethodIR | None
    findings: tuple[Diagnostic, ...]
    sources: Mapping[str, Source]

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def unwrap(self) -> MethodIR:
        """The method, or a GroError with every error."""
        if self.method is None:
            raise GroError(self.errors, self.sources)
        return self.method


def check(source: Source) -> Checked:
    """Check a source. It never raises for what stands in it: whatever is wrong is a finding."""
    findings = Findings()
    try:
        with room_to_nest():
            method, declared = _check(source, findings)
    except GroError as error:  # a file that this one extends cannot be read
        findings.extend(error.diagnostics)
        return Checked(None, tuple(findings), {source.name: source, **error.sources})
    return Checked(method, tuple(_from_child(finding, source, declared) for finding in findings), declared.sources)


def _from_child(finding: Diagnostic, source: Source, declared: Declarations) -> Diagnostic:
    """A finding in a file that is extended also shows where it is extended."""
    if declared.extends is None or finding.span is None or finding.span.file == source.name:
        return finding
    return finding.model_copy(update={"notes": (*finding.notes, Note(span=declared.extends, label="extended here"))})


def check_file(name_or_path: str | os.PathLike[str]) -> Checked:
    """Check a file, or a built-in method by its name."""
    try:
        source = library.find(name_or_path)
    except GroError as error:
        return Checked(None, error.diagnostics, error.sources)
    return check(source)


def _check(source: Source, findings: Findings) -> tuple[MethodIR | None, Declarations]:
    declared = declare(source, findings)
    if any(finding.code == "E104" for finding in findings):
        return None, declared
    data = _data(declared, findings)
    group = _group(declared, data, findings)
    elaborator = Elaborator(declared, data, findings, alone=group == 1 and data == ("prompts",))
    parameters = _whole({name: parameter(name, st, findings) for name, st in declared.of_kind("param")})
    scores = {name: score(name, statement, findings) for name, statement in declared.of_kind("score")}
    _require_reward(declared, findings)
    for name in ("advantage", "reward", "baseline", "measure", "anchor", "alpha", "credit", "penalty"):
        if name != "reward" or declared.named("reward"):
            elaborator.define(name)
    functions = _functions(elaborator)
    for name, _ in declared.of_kind("definition"):
        elaborator.define(name)
    aggregate = aggregation(elaborator)
    reports = _whole({name: _report(name, st, elaborator) for name, st in declared.of_kind("report")})
    laws = _whole({name: law(name, st, elaborator) for name, st in declared.laws.items()})
    definitions = _whole(elaborator.definitions)
    if findings.errors:
        return None, declared
    method = MethodIR(
        name=declared.name,
        title=declared.title,
        file=source.name,
        parents=declared.parents,
        data=data,
        group=group,
        parameters=parameters,
        scores=scores,
        definitions=definitions,
        functions=functions,
        aggregate=aggregate,
        reports=reports,
        laws=laws,
    )
    verify(method)
    analyse(method, declared, findings)
    return (None if findings.errors else method), declared


_Row = TypeVar("_Row")


def _whole(rows: Mapping[str, _Row | None]) -> dict[str, _Row]:
    """Without the rows that have a finding."""
    return {name: row for name, row in rows.items() if row is not None}


# --- data ------------------------------------------------------------------------------------------------------


def _data(declared: Declarations, findings: Findings) -> tuple[str, ...]:
    statement = declared.one("data")
    if statement is None:
        if "data" not in declared.broken and not declared.incomplete:
            help = f"add `data KIND`, KIND one of {listed(KINDS)}"
            findings.add("E209", "the method does not say what it learns from", declared.place, help=help)
        return ()
    words = [word for word in statement.tree.children if isinstance(word, Token)]
    for word in words:
        if str(word) not in KINDS:
            help = KINDS_MEANT.get(str(word)) or suggested(str(word), KINDS, f"the kinds are {listed(KINDS)}")
            findings.add(
                "E403", f"there is no kind of data `{word}`", statement.span_of(word), label="not known", help=help
            )
            return ()
    kinds = tuple(sorted({str(word) for word in words}, key=lambda kind: ("prompts", *KINDS).index(kind)))
    if len(words) > 1 and kinds != ("prompts", "demonstrations"):
        span = statement.span_of(words[0]).to(statement.span_of(words[-1]))
        message = f"{listed(map(str, words), last='and')} cannot be mixed"
        findings.add("E403", message, span, help="the one mixture is `data prompts + demonstrations`")
        return ()
    return kinds


def _group(declared: Declarations, data: tuple[str, ...], findings: Findings) -> int | None:
    statement = declared.one("group")
    if statement is None:
        return None
    word = leaf(statement)
    size = float(str(word))
    if math.isinf(size) or size != int(size) or size < 1:
        message = f"a group has a whole number of completions, at least 1, not {word}"
        findings.add("E504", message, statement.span_of(word), help="write for example `group 8`")
        return None
    if data and "prompts" not in data:
        have = " + ".join(data)
        message = f"`group` counts the completions drawn for a prompt; `data {have}` draws none"
        span = statement.span.model_copy(update={"end": statement.span_of(word).end})
        if statement.source.name == declared.place.file:
            findings.add("E401", message, span, help="delete the `group` line, or use `data prompts`")
        return None  # a parent's group is of no use here
    return int(size)


# --- components ------------------------------------------------------------------------------------------------


def _require_reward(declared: Declarations, findings: Findings) -> None:
    if not (declared.names | declared.broken) & {"reward", "advantage"} and not declared.incomplete:
        unused = {name for name, _ in declared.of_kind("definition")} - declared.used()
        edit = f"add it, for example `reward = {_example(declared)}`"
        if near := nearest("reward", unused) or nearest("advantage", unused):
            edit = f"write `{'reward' if nearest('reward', {near}) else 'advantage'}` for `{near}`"
        elif "loss" in unused:
            edit = DECLARED["loss"]
        findings.add("E209", "the method gives no reward", declared.place, help=edit)


def _example(declared: Declarations) -> str:
    """A reward that this method's data has."""
    scores = [name for name, _ in declared.of_kind("score")]
    data = declared.one("data")
    kinds = {str(word) for word in data.tree.children} if data is not None else set()
    return scores[0] if scores else "label" if kinds <= {"preference", "unpaired"} else "1"


def _functions(elaborator: Elaborator) -> dict[str, FunctionDefinition]:
    """omega of alpha * (measure - anchor), upsilon of the advantage."""
    declared, made = elaborator.declared, dict[str, FunctionDefinition]()
    for name, row in FUNCTION_COMPONENTS.items():
        parts = [elaborator.definitions.get(part) for part in row.of]
        scope = joined(*(part.body.scope for part in parts if part is not None))
        statement = declared.named(name)
        if statement is None or statement.kind != "function":
            body = elaborator.default(row, Binding(row.argument, name, scope))
            assert body is not None, f"bug in grolang: {name} has no default"
            made[name] = FunctionDefinition(
                name=name, spelled=name, argument=row.argument, body=body, span=declared.place, given=False
            )
        elif None in parts:
            continue  # the scope of the argument is not known; what it is made of has a finding of its own
        elif (own := _function(name, statement, scope, elaborator)) is not None:
            made[name] = own
    return made


def _function(name: str, statement: Statement, scope: Scope, elaborator: Elaborator) -> FunctionDefinition | None:
    """The author's omega or upsilon, of an argument of this scope; None where it has a finding."""
    word, argument, tree = statement.tree.children
    assert isinstance(word, Token) and isinstance(argument, Token) and isinstance(tree, Tree)
    if _shadows(argument, statement, elaborator):
        return None
    body = elaborator.expression(statement, tree, Binding(canonical(str(argument)), name, scope))
    if body is None:
        return None
    span = statement.span_of(word)
    return FunctionDefinition(name=name, spelled=str(word), argument=str(argument), body=body, span=span)


def _shadows(argument: Token, statement: Statement, elaborator: Elaborator) -> bool:
    """Whether the argument's name means something else already."""
    name = canonical(str(argument))
    if name == "advantage" and canonical(str(leaf(statement))) == "upsilon":
        return False  # it is its argument's own name
    if name not in OBSERVABLES and name not in ("inf", "advantage") and elaborator.declared.named(name) is None:
        return False
    help = "give the argument a name of its own, such as `z`"
    elaborator.findings.add(
        "E203", f"the argument `{argument}` hides another `{argument}`", statement.span_of(argument), help=help
    )
    return True


# --- reports and laws ------------------------------------------------------------------------------------------


def _report(name: str, statement: Statement, elaborator: Elaborator) -> Report | None:
    tree = statement.tree.children[1]
    assert isinstance(tree, Tree)
    body = elaborator.expression(statement, tree)
    return None if body is None else Report(name=name, body=body, span=statement.span_of(leaf(statement)))
