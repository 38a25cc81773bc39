"""What a method is made of: the parameters and scores that some part of it reads, and those that nothing does."""

from __future__ import annotations

from collections.abc import Collection

from grolang.language.components import COMPONENTS
from grolang.language.facts import reads
from grolang.language.ir import MethodIR


def used(method: MethodIR) -> set[str]:
    """The names that a component of the estimator, its aggregation or a report of the method's own file reads.

    A part that is replaced no longer counts: `dapo` takes GRPO's `beta` and puts 0 in the place of its penalty. Nor
    does a report that is inherited, or a law.
    """
    bodies = [method.definitions[name].body for name in COMPONENTS]
    bodies += [function.body for function in method.functions.values()]
    bodies += [report.body for report in method.reports.values() if report.span.file == method.file]
    divisors = {step.divisor for step in method.aggregate if isinstance(step.divisor, str)}
    return divisors | {name for body in bodies for _, name in reads(body, method)}


def idle_scores(method: MethodIR, given: Collection[str] = ()) -> list[str]:
    """The scores that are inherited, that nothing of the method reads, and that are not `given`."""
    inherited = [name for name, row in method.scores.items() if row.span.file != method.file]
    return [name for name in inherited if name not in {*used(method), *given}]


def without(method: MethodIR, scores: Collection[str]) -> MethodIR:
    """The method without these scores, and the inherited reports that are made of them."""
    kept = {
        name: report
        for name, report in method.reports.items()
        if not {word for _, word in reads(report.body, method)} & {*scores}
    }
    rest = {name: row for name, row in method.scores.items() if name not in scores}
    return method.model_copy(update={"scores": rest, "reports": kept})
