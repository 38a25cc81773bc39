"""Every program that is lowered obeys the rules of steps, and a program that breaks one is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files

import pytest
from pydantic import ValidationError

from grolang.compiler.index import index
from grolang.compiler.lowering import lower
from grolang.compiler.program import Program, Step
from grolang.compiler.verify import verified
from grolang.language import ir, library
from grolang.language.checker import check
from grolang.language.scopes import Scope
from grolang.language.source import Span


def program(name: str) -> Program:
    return lower(check(library.built_in()[name]).unwrap())


def broken(name: str, op: str, change: Callable[[Step], Step]) -> Program:
    """The program with its first step of this kind changed."""
    whole = program(name)
    place = next(index for index, step in enumerate(whole.steps) if step.op == op)
    return replace(whole, steps=(*whole.steps[:place], change(whole.steps[place]), *whole.steps[place + 1 :]))


FAULTS: list[tuple[str, str, Callable[[Step], Step], str]] = [
    ("dpo", "opposite", lambda step: replace(step, args=(10**6,)), "uses a later step"),
    ("dpo", "sigmoid", lambda step: replace(step, args=step.args * 2), "takes 1 arguments"),
    ("dpo", "sigmoid", lambda step: replace(step, scope=Scope.TOKEN), "has another scope"),
    ("dpo", "subtract", lambda step: replace(step, op="subtracted"), "is of no known kind"),
    ("dpo", "opposite", lambda step: replace(step, scope=Scope.GROUP), "picks from no pair"),
    ("dpo", "reduce", lambda step: replace(step, scope=Scope.TOKEN), "reduces over an axis"),
    ("grpo", "spread", lambda step: replace(step, scope=Scope.CONST), "spreads to a scope that is not finer"),
    ("grpo", "count", lambda step: replace(step, scope=Scope.TOKEN), "counts what is not inside"),
    ("grpo", "load", lambda step: replace(step, world="elsewhere"), "lies in no world"),
]


@pytest.mark.parametrize(("name", "op", "change", "said"), FAULTS, ids=[row[-1] for row in FAULTS])
def test_a_step_that_breaks_a_rule_is_a_bug_that_says_so(
    name: str, op: str, change: Callable[[Step], Step], said: str
) -> None:
    verified(program(name))
    with pytest.raises(AssertionError, match=f"bug in grolang: step %.* {said}"):
        verified(broken(name, op, change))


def test_an_output_of_the_wrong_scope_is_caught() -> None:
    whole = program("dpo")
    wrong = whole.outputs | {"coefficient": whole.outputs["reward"]}
    with pytest.raises(AssertionError, match="the output coefficient has scope"):
        verified(replace(whole, outputs=wrong))


def test_the_index_says_what_the_files_say() -> None:
    written = (files("grolang.methods") / "index.json").read_text(encoding="utf-8")
    assert written == index(), "run `python -m grolang.compiler.index`"


def test_a_step_of_an_aggregation_sums_or_averages() -> None:
    span = Span(file="m.gro", start=0, end=0)
    assert ir.Step(function="mean", axis="tokens", span=span).divisor is None
    with pytest.raises(ValidationError):
        ir.Step(function="max", axis="tokens", span=span)
