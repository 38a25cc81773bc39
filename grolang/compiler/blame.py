"""Which expression made a coefficient infinite or not a number, and with which values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from grolang.compiler.execute import Run
from grolang.language.diagnostics import Diagnostic, GroError
from grolang.language.scopes import Scope
from grolang.language.source import Source


def not_finite(run: Run, output: str, sources: Mapping[str, Source]) -> GroError:
    """An error that names the first step whose inputs are finite and whose value is not."""
    index, place = run.program.outputs[output], _first_bad(run.values[run.program.outputs[output]])
    while True:
        step = run.program.steps[index]
        for argument in step.args:
            value = run.values[argument]
            if not bool(torch.isfinite(value).all()) and run.program.steps[argument].op not in (
                "const",
                "param",
            ):
                index, place = argument, _first_bad(value)
                break
        else:
            break
    step = run.program.steps[index]
    made = float(run.values[index].reshape(-1)[place])
    where = _place(run, step.scope, place)
    if step.op == "load":
        message = f"`{step.detail[0]}` is {made:g}{where}"
        finding = Diagnostic(code="E902", severity="error", message=message, help="look at what supplies it")
        return GroError([finding], sources)
    inputs = [
        f"`{_text(run, argument, sources)}` = {_value(run, argument, step.scope, place)}" for argument in step.args[:3]
    ]
    divisor = step.op == "divide"
    why = inputs[1] if divisor and len(inputs) > 1 else ", ".join(inputs)
    finding = Diagnostic(
        code="E902",
        severity="error",
        message=f"a coefficient is not finite: this is {made:g}{where}",
        span=step.span,
        label=f"{why}",
        help="guard it, for example `… / x if x > 0 else 0`, or add a small number to the divisor"
        if divisor
        else "keep the argument in the range where the function is finite",
    )
    return GroError([finding], sources)


def _taken(run: Run, index: int, place: int) -> tuple[int, ...]:
    """The arguments that a value came from: of a branch, the one that was taken there."""
    step = run.program.steps[index]
    if step.op != "choose":
        return step.args
    condition = run.values[step.args[0]].expand_as(run.values[index])
    return (step.args[0], step.args[1] if bool(condition.reshape(-1)[place] != 0) else step.args[2])


def _first_bad(value: Tensor) -> int:
    return int((~torch.isfinite(value.reshape(-1))).nonzero()[0, 0])


def _place(run: Run, scope: Scope, place: int) -> str:
    """in group 3; in row 5; at token 2 of row 5."""
    if scope is Scope.GROUP:
        return f" in group {int(run.layout.groups[0][place])}"
    if scope is Scope.SEQUENCE:
        return f" in row {int(run.layout.rows[place])}"
    if scope is Scope.TOKEN and place < run.layout.size(Scope.TOKEN):
        row = run.layout.places[0][place]
        return f" at token {int(run.layout.position[place])} of row {int(run.layout.rows[row])}"
    return ""


def _text(run: Run, index: int, sources: Mapping[str, Source]) -> str:
    """The author's text of a step."""
    step = run.program.steps[index]
    if step.op in ("load", "param"):
        return str(step.detail[0])
    while step.op == "spread":
        step = run.program.steps[step.args[0]]
    if step.op in ("load", "param"):
        return str(step.detail[0])
    if step.span is None or step.span.file not in sources or step.op in ("const", "count"):
        return step.op
    return sources[step.span.file].quoted(step.span)


def _value(run: Run, index: int, scope: Scope, place: int) -> str:
    value, own = run.values[index], run.program.steps[index].scope
    if not value.numel():
        return "nothing"
    if value.ndim == 0:
        return f"{float(value):g}"
    if own == scope:
        return f"{float(value[place]):g}"
    return f"{float(value.min()):g} … {float(value.max()):g}"
