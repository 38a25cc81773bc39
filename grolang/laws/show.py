"""Verdicts as text: a table, and for a failed law the numbers that a person can check by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor

from grolang.compiler.batch import PER_TOKEN
from grolang.laws.claims import Counterexample, Verdict

_STYLES = {"proved": "green", "held": "green", "failed": "red"}


def table(rows: Iterable[tuple[str, Verdict]]) -> Table:
    """A row per law: method, law, claim, outcome."""
    made = Table("method", "law", "claim", "outcome", box=None, header_style="bold", pad_edge=False)
    for method, verdict in rows:
        detail = {"held": f"on {verdict.tried} batches", "proved": ""}.get(verdict.outcome, "")
        outcome = f"[{_STYLES[verdict.outcome]}]{verdict.outcome}[/] {detail}".strip()
        made.add_row(method, verdict.law, escape(verdict.claim), outcome)
    return made


def failure(method: str, verdict: Verdict) -> RenderableType:
    """What broke a law: a small batch, both coefficients, the first part that differs."""
    title = Text(f"{method}: law {verdict.law} fails ({verdict.claim})", style="bold red")
    if verdict.counterexample is None:
        return Group(title, Text(verdict.error))
    note = [Text(verdict.note)] if verdict.note else []
    return Group(title, counterexample(verdict.counterexample), *note)


def counterexample(found: Counterexample) -> RenderableType:
    """The batch row by row, with the two coefficients under each token."""
    parts: list[RenderableType] = []
    for row in found.batch.mask.any(1).nonzero()[:, 0].tolist():
        parts += [Text(_about(found, row), style="bold"), _tokens(found, row)]
    if found.part:
        parts.append(Text(f"the first part that differs: {found.part}"))
    return Group(*parts)


def text(shown: RenderableType) -> str:
    """As plain text, for a test's message."""
    console = Console(width=110, no_color=True)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def _about(found: Counterexample, row: int) -> str:
    batch, reads = found.batch, found.reads
    words = [f"row {row}"]
    words += [
        f"{name} {_number(getattr(batch, name)[row])}"
        for name in ("group", "label")
        if name == "group" or name in reads
    ]
    words += [f"{name} = {_number(values[row])}" for name, values in batch.scores.items() if name in reads]
    words += [
        f"greedy {name} = {_number(values[row])}"
        for name, values in batch.greedy_scores.items()
        if f"greedy {name}" in reads
    ]
    return ", ".join(words)


def _tokens(found: Counterexample, row: int) -> Table:
    slots = found.batch.mask[row].nonzero()[:, 0].tolist()
    made = Table("", *(f"token {place}" for place in range(len(slots))), box=None, pad_edge=False)
    for name in PER_TOKEN:
        values = getattr(found.batch, name)
        if values is not None and name in found.reads:
            made.add_row(name, *(_number(values[row, slot]) for slot in slots))
    for name, side in (("left", found.left), ("right", found.right)):
        made.add_row(f"[bold]{name}[/]", *(f"[bold]{_number(side[row, slot])}[/]" for slot in slots))
    return made


def _number(value: Tensor) -> str:
    return str(int(value)) if not torch.is_floating_point(value) else f"{float(value) + 0:.9g}"  # -0 is 0


def square(names: list[str], found: Mapping[tuple[str, str], Verdict]) -> Table:
    """The matrix of a comparison: `=` proved, `≈` equal on every batch tried, `≠` different, blank not comparable."""
    made = Table("", *names, box=None, header_style="bold", pad_edge=False)
    marks = {"proved": "[green]=[/]", "held": "[green]≈[/]", "failed": "[dim]≠[/]"}
    for row in names:
        cells = []
        for column in names:
            verdict = found.get((row, column)) or found.get((column, row))
            cells.append("=" if row == column else marks[verdict.outcome] if verdict else "")
        made.add_row(row, *cells)
    return made
