"""A file to a checked method: declarations, expressions, components, aggregation, laws; all findings at once."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from lark import Token, Tree

from grolang.language import library
from grolang.language.analysis import analyse, arguments, falling, refuted
from grolang.language.declarations import Declarations, canonical, declare, leaf, room_to_nest, text
from grolang.language.diagnostics import Diagnostic, GroError, Note
from grolang.language.expressions import Binding, Elaborator
from grolang.language.facts import Facts
from grolang.language.findings import Findings, listed, nearest
from grolang.language.functions import OBSERVABLES
from grolang.language.intervals import Interval
from grolang.language.ir import (
    Argument,
    Expr,
    FunctionDefinition,
    Law,
    MethodIR,
    Number,
    ParameterRow,
    Report,
    ScoreRow,
    Step,
)
from grolang.language.scopes import AGGREGATION_AXES, Scope, joined
from grolang.language.source import Source
from grolang.language.syntax import Statement
from grolang.language.verify import verify

KINDS = ("preference", "unpaired", "prompts", "demonstrations")
BUILTIN_SCORES = ("exact_match", "length", "regex")
DEFAULT_AGGREGATE = (("sum", "tokens"), ("mean", "sequences"))


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
    elaborator = Elaborator(declared, data, findings)
    parameters = _whole({name: _parameter(name, st, findings) for name, st in declared.of_kind("param")})
    scores = {name: _score(name, statement, findings) for name, statement in declared.of_kind("score")}
    _require_reward(declared, findings)
    for name in ("advantage", "reward", "baseline", "measure", "anchor", "alpha", "credit", "penalty"):
        if name != "reward" or ("name", "reward") in declared.table:
            elaborator.define(name)
    functions = _functions(declared, elaborator)
    for name, _ in declared.of_kind("definition"):
        elaborator.define(name)
    aggregate = _aggregation(declared, elaborator, findings)
    group = _group(declared, data, findings)
    reports = _whole({name: _report(name, st, elaborator) for name, st in declared.of_kind("report")})
    laws = _whole({name: _law(name, st, elaborator, findings) for name, st in declared.laws.items()})
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
            near = nearest(str(word), KINDS)
            help = f"did you mean `{near}`?" if near else f"the kinds are {listed(KINDS)}"
            findings.add(
                "E403",
                f"there is no kind of data `{word}`",
                statement.span_of(word),
                label="not known",
                help=help,
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


# --- parameters and scores -------------------------------------------------------------------------------------


def number(tree: Tree[Token] | Token | None) -> float:
    """The value of the grammar's `number`."""
    assert isinstance(tree, Tree)
    sign, digits = tree.children
    return -float(str(digits)) if sign else float(str(digits))


def _parameter(name: str, statement: Statement, findings: Findings) -> ParameterRow | None:
    _, value_tree, interval_tree, help_text = statement.tree.children
    assert isinstance(value_tree, Tree) and not isinstance(help_text, Tree)
    value, interval = number(value_tree), Interval()
    if isinstance(interval_tree, Tree):
        opens, low, high, closes = interval_tree.children
        interval = Interval(number(low), number(high), str(opens) == "(", str(closes) == ")")
        if interval.low > interval.high or (interval.point is not None and interval.point not in interval):
            help = "put the smaller bound first"
            findings.add("E502", f"no number lies in {interval}", statement.span_of(interval_tree), help=help)
            return None
    if value not in interval:
        shown = statement.text_of(interval_tree) if isinstance(interval_tree, Tree) else str(interval)
        message = f"the default of `{leaf(statement)}`, {value:g}, lies outside of its own bounds {shown}"
        findings.add("E501", message, statement.span_of(value_tree), help="change the default or the bounds")
        return None
    span = statement.span_of(leaf(statement))
    return ParameterRow(name=name, value=value, interval=interval, help=text(help_text), span=span)


def _score(name: str, statement: Statement, findings: Findings) -> ScoreRow:
    word, builtin, help_text = statement.tree.children
    assert isinstance(word, Token) and not isinstance(builtin, Tree) and not isinstance(help_text, Tree)
    if builtin is not None and str(builtin) not in BUILTIN_SCORES:
        near = nearest(str(builtin), BUILTIN_SCORES)
        help = (
            f"did you mean `{near}`?"
            if near
            else f"they are {listed(BUILTIN_SCORES)}; `score {word}` alone takes your own"
        )
        findings.add(
            "E405",
            f"there is no built-in score `{builtin}`",
            statement.span_of(builtin),
            label="not known",
            help=help,
        )
    found = None if builtin is None else str(builtin)
    return ScoreRow(name=name, builtin=found, help=text(help_text), span=statement.span_of(word))


# --- components ------------------------------------------------------------------------------------------------


def _require_reward(declared: Declarations, findings: Findings) -> None:
    names = {name for kind, name in declared.table if kind == "name"} | declared.broken
    if not names & {"reward", "advantage"} and not declared.incomplete:
        help = "add `reward = …`, for example `reward = label`"
        findings.add("E209", "the method gives no reward", declared.place, help=help)


def _functions(declared: Declarations, elaborator: Elaborator) -> dict[str, FunctionDefinition]:
    """omega of alpha * (measure - anchor), upsilon of the advantage."""
    made: dict[str, FunctionDefinition] = {}
    for name, feeds in (("upsilon", ("advantage",)), ("omega", ("alpha", "measure", "anchor"))):
        parts = [elaborator.definitions.get(part) for part in feeds]
        scope = joined(*(part.body.scope for part in parts if part is not None))
        statement = declared.table.get(("name", name))
        if statement is None or statement.kind != "function":
            body: Expr = (
                Argument(scope=scope, span=declared.place, name=name)
                if name == "upsilon"
                else Number(scope=Scope.CONST, span=declared.place, value=1.0)
            )
            made[name] = FunctionDefinition(
                name=name,
                spelled=name,
                argument="a" if name == "upsilon" else "z",
                body=body,
                span=declared.place,
                given=False,
            )
            continue
        word, argument, tree = statement.tree.children
        assert isinstance(word, Token) and isinstance(argument, Token) and isinstance(tree, Tree)
        if None in parts:
            continue  # the scope of the argument is not known; what it is made of has a finding of its own
        if _shadows(argument, statement, declared, elaborator.findings):
            continue
        checked = elaborator.expression(statement, tree, Binding(canonical(str(argument)), name, scope))
        if checked is not None:
            span = statement.span_of(word)
            made[name] = FunctionDefinition(
                name=name, spelled=str(word), argument=str(argument), body=checked, span=span
            )
    return made


def _shadows(argument: Token, statement: Statement, declared: Declarations, findings: Findings) -> bool:
    """Whether the argument's name means something else already."""
    name = canonical(str(argument))
    if name == "advantage" and canonical(str(leaf(statement))) == "upsilon":
        return False  # it is its argument's own name
    if name not in OBSERVABLES and ("name", name) not in declared.table and name not in ("inf", "advantage"):
        return False
    help = "give the argument a name of its own, such as `z`"
    findings.add(
        "E203",
        f"the argument `{argument}` hides another `{argument}`",
        statement.span_of(argument),
        help=help,
    )
    return True


# --- aggregation -----------------------------------------------------------------------------------------------


def _aggregation(declared: Declarations, elaborator: Elaborator, findings: Findings) -> tuple[Step, ...]:
    statement = declared.one("aggregate")
    if statement is None:
        return tuple(
            Step(function="sum" if word == "sum" else "mean", axis=axis, divisor=None, span=declared.place)
            for word, axis in DEFAULT_AGGREGATE
        )
    tree = statement.tree.children[0]
    assert isinstance(tree, Tree)
    return _steps(statement, tree, elaborator, findings, Scope.TOKEN) or ()


def _steps(
    statement: Statement, tree: Tree[Token], elaborator: Elaborator, findings: Findings, scope: Scope
) -> tuple[Step, ...] | None:
    """Check the steps of an aggregation of a value of this scope; None where one of them is wrong."""
    made: list[Step] = []
    left = scope
    for step in tree.children:
        assert isinstance(step, Tree)
        word, axis, divisor = step.children
        assert isinstance(word, Token) and isinstance(axis, Token)
        span = statement.span_of(step)
        if str(word) not in ("sum", "mean"):
            near = nearest(str(word), ("sum", "mean"))
            help = f"did you mean `{near}`?" if near else "write `sum` or `mean`"
            findings.add(
                "E207",
                f"an aggregation sums or averages; it has no `{word}`",
                statement.span_of(word),
                help=help,
            )
            return None
        if str(axis) not in AGGREGATION_AXES:
            near = nearest(str(axis), AGGREGATION_AXES)
            help = f"did you mean `{near}`?" if near else f"the axes are {listed(AGGREGATION_AXES)}"
            findings.add("E207", f"there is no axis `{axis}` to aggregate over", statement.span_of(axis), help=help)
            return None
        after = _after(left, str(axis), elaborator)
        if isinstance(after, str):
            findings.add("E303", f"`{statement.text_of(step)}`: {after}", span, help=_AGGREGATE_HELP)
            return None
        left = after
        amount = _divisor(divisor, statement, elaborator, findings)
        made.append(Step(function="sum" if word == "sum" else "mean", axis=str(axis), divisor=amount, span=span))
    if left > Scope.BATCH:
        findings.add(
            "E303",
            f"the aggregation does not end in one number: it leaves one value per {left.word}",
            statement.span_of(tree),
            label=f"one value per {left.word}",
            help=_AGGREGATE_HELP,
        )
        return None
    return tuple(made)


_AGGREGATE_HELP = "go from the tokens up to one number, for example `sum over tokens, mean over sequences`"


def _after(scope: Scope, axis: str, elaborator: Elaborator) -> Scope | str:
    """The scope that a step leaves, or why it cannot be taken."""
    if scope <= Scope.BATCH:
        return "nothing is left to aggregate"
    if axis == "batch":
        return Scope.BATCH
    if axis in ("group", "groups") and not elaborator.has("groups"):
        return f"`data {' + '.join(elaborator.data)}` has no groups"
    if axis == "tokens":
        return Scope.SEQUENCE if scope is Scope.TOKEN else "the tokens are aggregated already"
    if axis == "group":
        return Scope.GROUP if scope > Scope.GROUP else "the groups' sequences are aggregated already"
    if axis == "sequences" and scope is Scope.GROUP:
        return "the sequences are aggregated already: what is left are groups"
    if axis == "sequences":
        return Scope.BATCH if scope is Scope.SEQUENCE else "the tokens of each sequence must be aggregated first"
    return Scope.BATCH if scope is Scope.GROUP else "the sequences of each group must be aggregated first"


def _divisor(
    divisor: Tree[Token] | Token | None, statement: Statement, elaborator: Elaborator, findings: Findings
) -> float | str | None:
    if divisor is None:
        return None
    if isinstance(divisor, Tree):
        value = number(divisor)
        if value == 0:
            help = "leave it out, or write another number"
            findings.add("E505", "an aggregation cannot divide by 0", statement.span_of(divisor), help=help)
        return value
    name = canonical(str(divisor))
    known = {row for row, _ in elaborator.declared.of_kind("param")}
    if name not in known:
        near = nearest(name, known)
        help = f"did you mean `{near}`?" if near else f"declare it: `param {divisor} = …`"
        findings.add(
            "E201",
            f"there is no parameter `{divisor}`",
            statement.span_of(divisor),
            label="not known",
            help=help,
        )
    return name


# --- reports and laws ------------------------------------------------------------------------------------------


def _report(name: str, statement: Statement, elaborator: Elaborator) -> Report | None:
    tree = statement.tree.children[1]
    assert isinstance(tree, Tree)
    body = elaborator.expression(statement, tree)
    return None if body is None else Report(name=name, body=body, span=statement.span_of(leaf(statement)))


def _law(name: str, statement: Statement, elaborator: Elaborator, findings: Findings) -> Law | None:
    claim = statement.tree.children[1]
    assert isinstance(claim, Tree)
    elaborator.in_law = True
    try:
        return _claim(name, str(claim.data), claim, statement, elaborator, findings)
    finally:
        elaborator.in_law = False


def _claim(
    name: str, kind: str, claim: Tree[Token], statement: Statement, elaborator: Elaborator, findings: Findings
) -> Law | None:
    span = statement.span_of(leaf(statement))
    if kind == "unbiased":
        if elaborator.data and "prompts" not in elaborator.data:
            have = " + ".join(elaborator.data)
            message = f"`unbiased` is a claim about completions that the policy draws; `data {have}` draws none"
            findings.add("E401", message, statement.span_of(claim), help="delete the law, or use `data prompts`")
            return None
        return Law(name=name, claim="unbiased", span=span)
    if kind == "loss":
        tree, steps_tree = claim.children
        assert isinstance(tree, Tree)
        body = elaborator.expression(statement, tree)
        if body is None:
            return None
        steps: tuple[Step, ...] | None = None
        if isinstance(steps_tree, Tree):
            steps = _steps(statement, steps_tree, elaborator, findings, _starts_at(steps_tree, body.scope))
            if steps is None:
                return None
        elif body.scope is Scope.TOKEN:
            help = "add `aggregate …` after it, as the paper averages"
            findings.add(
                "E305",
                "a loss per token must say how it is averaged",
                statement.span_of(tree),
                label="token",
                help=help,
            )
            return None
        return Law(name=name, claim="loss", body=body, aggregate=steps, span=span)
    method: str | None = None
    settings: dict[str, float] = {}
    exchanges: dict[str, Expr] = {}
    for part in claim.children:
        if isinstance(part, Token):
            method = str(part)
            if library.sibling(method, statement.source) is None and method != elaborator.declared.name:
                near = nearest(method, library.built_in())
                help = f"did you mean `{near}`?" if near else f"put `{method}.gro` into the same folder"
                findings.add(
                    "E601",
                    f"there is no method `{method}`",
                    statement.span_of(part),
                    label="not known",
                    help=help,
                )
                return None
        elif (
            isinstance(part, Tree)
            and part.data == "with"
            and not _settable(part, method, statement, elaborator.declared, findings)
        ):
            return None
        elif isinstance(part, Tree) and part.data == "with":
            settings = {
                canonical(str(s.children[0])): number(_as_tree(s.children[1])) for s in map(_as_tree, part.children)
            }
        elif isinstance(part, Tree):
            for exchange in map(_as_tree, part.children):
                word, tree = exchange.children
                assert isinstance(word, Token)
                if not _exchangeable(word, statement, elaborator, findings):
                    return None
                value = elaborator.expression(statement, _as_tree(tree))
                if value is None or not _fits(word, value, statement, _as_tree(tree), findings):
                    return None
                exchanges[canonical(str(word))] = value
    claim_kind = {"equals": "equals", "proportional": "proportional", "invariant": "invariant"}[kind]
    return Law.model_validate(
        {
            "name": name,
            "claim": claim_kind,
            "method": method,
            "settings": settings,
            "exchanges": exchanges,
            "span": span,
        }
    )


def _fits(word: Token, value: Expr, statement: Statement, tree: Tree[Token], findings: Findings) -> bool:
    """A stand-in has the scope of what it replaces, or a coarser one."""
    row = OBSERVABLES.get(canonical(str(word)))
    scope = Scope.SEQUENCE if row is None else row.scope
    if value.scope <= scope:
        return True
    message = f"`{word}` has one value per {scope.word}; `{statement.text_of(tree)}` {value.scope.phrase}"
    help = f"reduce it, for example `{word} = mean({statement.text_of(tree)} over tokens)`"
    findings.add("E302", message, statement.span_of(tree), label=value.scope.word, help=help)
    return False


def _settable(
    settings: Tree[Token], method: str | None, statement: Statement, declared: Declarations, findings: Findings
) -> bool:
    """`with p = v` sets the parameter on each side that has it; one of them must, and must allow the value."""
    other = library.sibling(method, statement.source) if method and method != declared.name else None
    sides = [declared] if other is None else [declared, declare(other, Findings())]
    known: dict[str, list[ParameterRow | None]] = {}
    for side in sides:
        for name, declaration in side.of_kind("param"):
            known.setdefault(name, []).append(_parameter(name, declaration, Findings()))
    for setting in map(_as_tree, settings.children):
        word, value = setting.children
        assert isinstance(word, Token)
        rows = known.get(canonical(str(word)))
        if rows is None:
            near = nearest(str(word), known)
            help = f"did you mean `{near}`?" if near else "set a parameter that one of the two methods has"
            findings.add("E208", f"no side has a parameter `{word}`", statement.span_of(word), help=help)
            return False
        for row in rows:
            if row is not None and number(value) not in row.interval:
                message = f"`{word}` = {number(value):g} lies outside of its bounds {row.interval}"
                findings.add("E501", message, statement.span_of(_as_tree(value)), help=f"its default is {row.value:g}")
                return False
    return True


def _starts_at(steps: Tree[Token], scope: Scope) -> Scope:
    """The scope that an aggregation is checked from: the tokens, or that of a coarser loss which it starts with."""
    first = str(_as_tree(steps.children[0]).children[1])
    starts = {"sequences": Scope.SEQUENCE, "groups": Scope.GROUP}
    return scope if starts.get(first) is scope else Scope.TOKEN


def _exchangeable(word: Token, statement: Statement, elaborator: Elaborator, findings: Findings) -> bool:
    """`when X = …` replaces what the batch brings: an observable or a score."""
    known = {name for name, _ in elaborator.declared.of_kind("score")} | set(OBSERVABLES)
    if canonical(str(word)) in known:
        return True
    near = nearest(str(word), known)
    help = f"did you mean `{near}`?" if near else "replace an observable such as `logp_ref`, or a score"
    findings.add("E201", f"there is no observable or score `{word}` to replace", statement.span_of(word), help=help)
    return False


def _as_tree(child: Tree[Token] | Token | None) -> Tree[Token]:
    assert isinstance(child, Tree)
    return child


def bound(method: MethodIR, values: Mapping[str, float]) -> MethodIR:
    """The method with other parameter values.

    A name that is no parameter and a value outside of its bounds are errors.
    """
    rows = dict(method.parameters)
    for name, value in values.items():
        key = canonical(name)
        if key not in rows:
            near = nearest(key, rows)
            known = f"its parameters are {listed(rows, last='and')}" if rows else "it has none"
            help = f"did you mean `{near}`?" if near else known
            raise GroError.plain(f"`{method.name}` has no parameter `{name}`", help=help, code="E208")
        row = rows[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise GroError.plain(
                f"`{name}` must be a number, not {value!r}", help=f"its default is {row.value:g}", code="E501"
            )
        try:
            value = float(value)
        except OverflowError:
            value = math.inf if value > 0 else -math.inf
        if value not in row.interval:
            message = f"`{name}` = {value:g} lies outside of its bounds {row.interval}"
            raise GroError.plain(message, help=f"its default is {row.value:g}", code="E501")
        rows[key] = row.model_copy(update={"value": float(value)})
    made = method.model_copy(update={"parameters": rows})
    facts = Facts(made, fixed=True)
    upsilon = made.functions["upsilon"]
    with room_to_nest():
        facts.arguments = arguments(made, facts)
        rises = facts.slope(upsilon.body, "upsilon") in ("+", "=")
        pair = None if rises or not values else refuted(made, facts)
    if pair is not None:
        raise GroError.plain(falling(upsilon, pair), help="choose parameters that keep it increasing", code="E503")
    return made


__all__ = ["Checked", "bound", "check", "check_file"]
