"""Laws: what each form claims, and which methods, parameters and stand-ins it may name (LANGUAGE.md, 7)."""

from __future__ import annotations

from functools import lru_cache

from lark import Token, Tree

from grolang.language import library
from grolang.language.aggregation import steps
from grolang.language.declarations import Declarations, canonical, declare, leaf
from grolang.language.expressions import Elaborator
from grolang.language.findings import Findings, suggested
from grolang.language.functions import OBSERVABLES
from grolang.language.ir import Expr, Law, ParameterRow
from grolang.language.parameters import infinite, number, parameter
from grolang.language.scopes import ALL_OF, Scope
from grolang.language.source import Source
from grolang.language.syntax import Statement, branches


def law(name: str, statement: Statement, elaborator: Elaborator) -> Law | None:
    """The law of a statement; None where it has a finding."""
    claim = statement.tree.children[1]
    assert isinstance(claim, Tree)
    read = {"unbiased": _unbiased, "loss": _loss}.get(str(claim.data), _relation)
    elaborator.in_law = True
    try:
        parts = read(claim, statement, elaborator)
    finally:
        elaborator.in_law = False
    if parts is None:
        return None
    span = statement.span_of(leaf(statement))
    return Law.model_validate({"name": name, "claim": str(claim.data), "span": span, **parts})


#: the fields of a law that its claim gives
_Parts = dict[str, object] | None


def _unbiased(claim: Tree[Token], statement: Statement, elaborator: Elaborator) -> _Parts:
    if elaborator.data and "prompts" not in elaborator.data:
        have = " + ".join(elaborator.data)
        message = f"`unbiased` is a claim about completions that the policy draws; `data {have}` draws none"
        elaborator.findings.add("E401", message, statement.span_of(claim), help="delete the law, or use `data prompts`")
        return None
    return {}


def _loss(claim: Tree[Token], statement: Statement, elaborator: Elaborator) -> _Parts:
    tree, steps_tree = claim.children
    assert isinstance(tree, Tree)
    body = elaborator.expression(statement, tree)
    if body is None:
        return None
    if isinstance(steps_tree, Tree):
        taken = steps(statement, steps_tree, elaborator, _starts_at(steps_tree, body.scope))
        return None if taken is None else {"body": body, "aggregate": taken}
    if body.scope is Scope.TOKEN:
        given = elaborator.declared.one("aggregate")
        steps_text = "sum over tokens, mean over sequences" if given is None else given.text_of(given.tree.children[0])
        help = f"add the paper's average after it, for example `aggregate {steps_text}`"
        span = statement.span_of(tree)
        elaborator.findings.add("E305", "a loss per token must say how it is averaged", span, label="token", help=help)
        return None
    return {"body": body, "aggregate": None}


def _relation(claim: Tree[Token], statement: Statement, elaborator: Elaborator) -> _Parts:
    """`equals`, `proportional to` and `invariant`: the other method, `with` values and `when` stand-ins."""
    method: str | None = None
    settings: dict[str, float] = {}
    exchanges: dict[str, Expr] = {}
    for part in claim.children:
        if isinstance(part, Token):
            method = str(part)
            if not _known(part, statement, elaborator):
                return None
        elif isinstance(part, Tree) and part.data == "with":
            pairs = [setting.children for setting in branches(part)]
            if any(infinite(value, statement, elaborator.findings) for _, value in pairs):
                return None
            if not _settable(part, method, statement, elaborator):
                return None
            settings = {canonical(str(word)): number(value) for word, value in pairs}
        elif isinstance(part, Tree):
            for word, tree in (exchange.children for exchange in branches(part)):
                assert isinstance(word, Token) and isinstance(tree, Tree)
                if not _exchangeable(word, statement, elaborator):
                    return None
                value = elaborator.expression(statement, tree)
                if value is None or not _fits(word, value, statement, tree, elaborator):
                    return None
                exchanges[canonical(str(word))] = value
    return {"method": method, "settings": settings, "exchanges": exchanges}


def _known(method: Token, statement: Statement, elaborator: Elaborator) -> bool:
    if library.sibling(str(method), statement.source) is not None or method == elaborator.declared.name:
        return True
    help = suggested(str(method), library.built_in(), f"put `{method}.gro` into the same folder")
    span = statement.span_of(method)
    elaborator.findings.add("E601", f"there is no method `{method}`", span, label="not known", help=help)
    return False


def _fits(word: Token, value: Expr, statement: Statement, tree: Tree[Token], elaborator: Elaborator) -> bool:
    """A stand-in has the scope of what it replaces, or a coarser one."""
    row = OBSERVABLES.get(canonical(str(word)))
    scope = Scope.SEQUENCE if row is None else row.scope
    if value.scope <= scope:
        return True
    message = f"`{word}` has one value per {scope.word}; `{statement.text_of(tree)}` {value.scope.phrase}"
    help = f"reduce it, for example `{word} = mean({statement.text_of(tree)} over tokens)`"
    elaborator.findings.add("E302", message, statement.span_of(tree), label=value.scope.word, help=help)
    return False


def _declared(source: Source) -> Declarations:
    """Another method's declarations, to be read only; what is wrong with them is told where that method is checked."""
    return declare(source, Findings()) if "extends" in source.text else _alone(source)


@lru_cache(maxsize=64)
def _alone(source: Source) -> Declarations:
    """Of a source that depends on no other file, so that its text decides everything."""
    return declare(source, Findings())


def _settable(settings: Tree[Token], method: str | None, statement: Statement, elaborator: Elaborator) -> bool:
    """`with p = v` sets the parameter on each side that has it; one of them must, and must allow the value."""
    declared = elaborator.declared
    other = library.sibling(method, statement.source) if method and method != declared.name else None
    sides = [declared] if other is None else [declared, _declared(other)]
    known: dict[str, list[ParameterRow | None]] = {}
    for side in sides:
        for name, declaration in side.of_kind("param"):
            known.setdefault(name, []).append(parameter(name, declaration, Findings()))
    for setting in branches(settings):
        word, value = setting.children
        assert isinstance(word, Token) and isinstance(value, Tree)
        rows = known.get(canonical(str(word)))
        if rows is None:
            help = suggested(str(word), known, "set a parameter that one of the two methods has")
            elaborator.findings.add("E208", f"no side has a parameter `{word}`", statement.span_of(word), help=help)
            return False
        for row in rows:
            if row is not None and number(value) not in row.interval:
                message = f"`{word}` = {number(value):g} lies outside of its bounds {row.interval}"
                elaborator.findings.add("E501", message, statement.span_of(value), help=f"its default is {row.value:g}")
                return False
    return True


def _starts_at(steps: Tree[Token], scope: Scope) -> Scope:
    """The scope that an aggregation is checked from: the tokens, or that of a coarser loss which it starts with."""
    first = str(branches(steps)[0].children[1])
    if first == "sequences" and scope is Scope.GROUP:
        return Scope.SEQUENCE  # a group counts once for each of its sequences
    return scope if ALL_OF.get(scope) == first else Scope.TOKEN


def _exchangeable(word: Token, statement: Statement, elaborator: Elaborator) -> bool:
    """`when X = …` replaces what the batch brings: an observable or a score."""
    known = {name for name, _ in elaborator.declared.of_kind("score")} | set(OBSERVABLES)
    if canonical(str(word)) in known:
        return True
    help = suggested(str(word), known, "replace an observable such as `logp_ref`, or a score")
    elaborator.findings.add(
        "E201", f"there is no observable or score `{word}` to replace", statement.span_of(word), help=help
    )
    return False
