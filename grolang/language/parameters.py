"""Parameters and scores: their declarations, and a method with other values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

from lark import Token, Tree

from grolang.language.analysis import falling, refuted
from grolang.language.declarations import canonical, leaf, room_to_nest, text
from grolang.language.diagnostics import GroError
from grolang.language.facts import Facts
from grolang.language.findings import Findings, listed, suggested
from grolang.language.intervals import Interval
from grolang.language.ir import MethodIR, ParameterRow, ScoreRow
from grolang.language.misuse import too_large
from grolang.language.syntax import Statement, branches

BUILTIN_SCORES = ("exact_match", "math_answer", "regex", "json_schema", "code", "length", "repetition")


def number(tree: Tree[Token] | Token | None) -> float:
    """The value of the grammar's `number`."""
    assert isinstance(tree, Tree)
    sign, digits = tree.children
    return -float(str(digits)) if sign else float(str(digits))


def infinite(tree: Tree[Token] | Token | None, statement: Statement, findings: Findings) -> bool:
    """Whether a number that is no `inf` is too large for a float; a finding then (E505)."""
    assert isinstance(tree, Tree)
    if "inf" in tree.children or not math.isinf(number(tree)):
        return False
    wrong = too_large(statement.text_of(tree))
    findings.add(wrong.code, wrong.message, statement.span_of(tree), help=wrong.help)
    return True


def parameter(name: str, statement: Statement, findings: Findings) -> ParameterRow | None:
    """The row of `param NAME = NUMBER [in INTERVAL] ["help"]`.

    None, with a finding, where the default lies outside of the bounds (E501), no number within them (E502), or where
    one is too large (E505).
    """
    _, value_tree, interval_tree, help_text = statement.tree.children
    assert isinstance(value_tree, Tree) and not isinstance(help_text, Tree)
    written = [value_tree, *(branches(interval_tree) if isinstance(interval_tree, Tree) else ())]
    if any(infinite(tree, statement, findings) for tree in written):
        return None
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


def score(name: str, statement: Statement, findings: Findings) -> ScoreRow:
    """The row of `score NAME [= BUILTIN] ["help"]`; E405 for a built-in score that is not there."""
    word, builtin, help_text = statement.tree.children
    assert isinstance(word, Token) and not isinstance(builtin, Tree) and not isinstance(help_text, Tree)
    if builtin is not None and str(builtin) not in BUILTIN_SCORES:
        otherwise = f"they are {listed(BUILTIN_SCORES)}; `score {word}` alone takes your own"
        help = suggested(str(builtin), BUILTIN_SCORES, otherwise)
        message = f"there is no built-in score `{builtin}`"
        findings.add("E405", message, statement.span_of(builtin), label="not known", help=help)
    found = None if builtin is None else str(builtin)
    return ScoreRow(name=name, builtin=found, help=text(help_text), span=statement.span_of(word))


def bound(method: MethodIR, values: Mapping[str, float]) -> MethodIR:
    """The method with other parameter values.

    A name that is no parameter and a value outside of its bounds are errors.
    """
    rows = dict(method.parameters)
    for name, value in values.items():
        key = canonical(name)
        if key not in rows:
            known = f"its parameters are {listed(rows, last='and')}" if rows else "it has none"
            help = suggested(key, rows, known)
            raise GroError.plain(f"`{method.name}` has no parameter `{name}`", help=help, code="E208")
        row = rows[key]
        if isinstance(value, bool) or not isinstance(value, Real) or value != value:
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
        rises = facts.slope(upsilon.body, "upsilon") in ("+", "=")
        pair = None if rises or not values else refuted(made, facts)
    if pair is not None:
        raise GroError.plain(falling(upsilon, pair), help="choose parameters that keep it increasing", code="E503")
    return made
