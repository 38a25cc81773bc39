"""Which expression made a coefficient infinite or not a number, and with which values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from grolang.compiler.execute import ELEMENTWISE, Run
from grolang.language.diagnostics import Diagnostic, GroError
from grolang.language.scopes import Scope
from grolang.language.source import Source


class NotFinite(GroError):
    """A number that is infinite or not a number. `rows` of the batch made it; all of them where that is ()."""

    rows: tuple[int, ...] = ()


def not_finite(run: Run, output: str, sources: Mapping[str, Source]) -> NotFinite:
    """An error that names the first step whose inputs are finite and whose value is not."""
    index = run.program.outputs[output]
    place = _first_bad(run.values[index])
    while (cause := _cause(run, index, place)) is not None:
        index, place = cause
    step = run.program.steps[index]
    found = f"{float(run.values[index].reshape(-1)[place]):g}{_place(run, index, place)}"
    if step.op == "load":
        message, help = f"`{step.detail[0]}` is {found}", supplier(str(step.detail[0]))
        finding = Diagnostic(code="E902", severity="error", message=message, help=help)
    else:
        message, help = f"a {output} is not finite: this is {found}", _HELP.get(step.op, _HELP[""])
        label = ", ".join(_inputs(run, index, place, sources))
        finding = Diagnostic(code="E902", severity="error", message=message, span=step.span, label=label, help=help)
    error = NotFinite([finding], sources)
    error.rows = _rows(run, index, place)
    return error


_HELP = {
    "divide": "guard it, for example `… / x if x > 0 else 0`, or add a small number to the divisor",
    "": "keep the argument in the range where the function is finite",
}


def _inputs(run: Run, index: int, place: int, sources: Mapping[str, Source]) -> list[str]:
    """What a step was made of there, `text` = number; of a quotient its divisor alone."""
    step = run.program.steps[index]
    texts = {part: _text(run, part, sources) for part in step.args}
    own = _text(run, index, sources)  # a derivative's steps have the text of what is differentiated
    told = step.args[1:] if step.op == "divide" else [part for part in step.args if texts[part] not in (own, "const")]
    return [f"`{texts[part]}` = {_value(run, part, step.scope, place)}" for part in told[:3]]


def supplier(name: str) -> str:
    """What to look at where a number of the batch is not finite."""
    if name.startswith(("logp", "entropy")):
        return "the model gives it: lower the learning rate, or look at the model's own weights"
    return "look at what supplies it"


def _cause(run: Run, index: int, place: int) -> tuple[int, int] | None:
    """An argument that is not finite where it made this value so, and its place; None where all are finite."""
    whole_step, whole = run.program.steps[index], run.values[index]
    for argument in _taken(run, index, place):
        step, value = run.program.steps[argument], run.values[argument]
        if step.op in ("const", "param") or bool(torch.isfinite(value).all()):
            continue
        if whole_step.op not in ELEMENTWISE or value.shape != whole.shape:  # it mixes places, or repeats one number
            return argument, _first_bad(value)
        if not bool(torch.isfinite(value.reshape(-1)[place])):
            return _source(run, argument, place)
    return None


def _source(run: Run, index: int, place: int) -> tuple[int, int]:
    """What a step repeats for finer scopes, and the place of the value there."""
    step = run.program.steps[index]
    while step.op == "spread":
        index, scope = step.args[0], step.scope
        inner = run.program.steps[index].scope
        place = int(run.layout_of(step.world).parent(scope, inner)[place])
        step = run.program.steps[index]
    return index, place


def _taken(run: Run, index: int, place: int) -> tuple[int, ...]:
    """The arguments that a value came from: of a branch, the one that was taken there."""
    step = run.program.steps[index]
    if step.op != "choose":
        return step.args
    condition = run.values[step.args[0]].expand_as(run.values[index])
    return (step.args[0], step.args[1] if bool(condition.reshape(-1)[place] != 0) else step.args[2])


def _first_bad(value: Tensor) -> int:
    return int((~torch.isfinite(value.reshape(-1))).nonzero()[0, 0])


def _place(run: Run, index: int, place: int) -> str:
    """in group 3; in row 5; at token 2 of row 5."""
    step = run.program.steps[index]
    layout = run.layout_of(step.world)
    if step.scope is Scope.GROUP:
        return f" in group {int(run.layout.groups[0][place])}"
    if step.scope is Scope.SEQUENCE:
        return f" in row {int(layout.rows[place])}"
    if step.scope is Scope.TOKEN:
        row = layout.places[0][place]
        return f" at token {int(layout.position[place])} of row {int(layout.rows[row])}"
    return ""


def _rows(run: Run, index: int, place: int) -> tuple[int, ...]:
    """The rows of the batch that a value belongs to."""
    step = run.program.steps[index]
    layout = run.layout_of(step.world)
    if step.scope is Scope.GROUP:
        return tuple(layout.rows[run.layout.groups[1] == place].tolist())
    if step.scope is Scope.SEQUENCE:
        return (int(layout.rows[place]),)
    return (int(layout.rows[layout.places[0][place]]),) if step.scope is Scope.TOKEN else ()


def _text(run: Run, index: int, sources: Mapping[str, Source]) -> str:
    """The author's text of a step."""
    step = run.program.steps[index]
    while step.op == "spread":
        step = run.program.steps[step.args[0]]
    if step.op in ("load", "param"):
        return str(step.detail[0])
    if step.span is None or step.span.file not in sources or step.op in ("const", "count"):
        return step.op
    return sources[step.span.file].quoted(step.span)


def _value(run: Run, index: int, scope: Scope, place: int) -> str:
    """The argument's number at a place of `scope`, with its own place where that is a coarser one."""
    value, own = run.values[index], run.program.steps[index].scope
    if not value.numel():
        return "nothing"
    if value.ndim == 0:
        return f"{float(value):g}"
    if own != scope:
        return f"{float(value.min()):g} … {float(value.max()):g}"
    inner, there = _source(run, index, place)
    shown = f"{float(value[place]):g}"
    coarser = Scope.BATCH < run.program.steps[inner].scope < scope
    return shown + _place(run, inner, there) if coarser else shown
