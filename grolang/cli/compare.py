"""`grolang compare`: two runs or more side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from grolang.runtime.compare import Comparison

WIDTH = 40  # of a curve on a terminal


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Folders of runs, two or more.")],
    html: Annotated[Path | None, typer.Option(help="Write a page with charts to this file as well.")] = None,
) -> None:
    """Show what differs between runs (settings, statements of the methods), what they measured, and their curves."""
    from rich.console import Console

    from grolang.language.diagnostics import GroError
    from grolang.runtime.compare import compare as compared
    from grolang.runtime.record import open_record

    if len(runs) < 2:
        raise GroError.plain("one run is nothing to compare", help="name two or more", code="E602")
    found = compared([open_record(run) for run in runs])
    console = Console(soft_wrap=False)
    _print(console, found)
    if html is not None:
        from grolang.runtime.pages import comparison_page
        from grolang.runtime.record import write_text

        write_text(html, comparison_page(found))
        console.print(f"\nthe page is in {html}", highlight=False)


def _print(console: Console, found: Comparison) -> None:
    from rich.markup import escape
    from rich.table import Table

    from grolang.runtime.compare import curve_names
    from grolang.runtime.curves import short, sparkline
    from grolang.runtime.figures import better

    names = [escape(run.name) for run in found.runs]

    def table(title: str, rows: Sequence[tuple[str, Sequence[str]]], none: str) -> None:
        if not rows:
            console.print(f"\n[bold]{title}[/]: {none}")
            return
        made = Table("", *names, title=title, title_justify="left", title_style="bold")
        for what, values in rows:
            made.add_row(escape(what), *map(escape, values))
        console.print()
        console.print(made)

    def number(value: float | None) -> str:
        return "-" if value is None else short(value)

    table("runs", found.facts, "")
    table("settings that differ", found.settings, "none differ")
    table("statements that differ", found.parts, "the methods say the same")
    moved = []
    for name, before, after in found.held_out:
        arrow = {"higher": " ↑", "lower": " ↓", "": ""}[better(name)]
        cells = [f"{number(a)} → {number(b)}" for a, b in zip(before, after)]
        moved.append((name + arrow, cells))
    table("held out, before → after", moved, "nothing was held out")
    table("steps, mean of the last tenth", [(name, list(map(number, row))) for name, row in found.last], "no steps")
    for name in curve_names(found.runs)[:2]:
        curves = [[line[name] for line in run.metrics if name in line] for run in found.runs]
        every = [value for curve in curves for value in curve]
        console.print(f"\n[bold]{name}[/], {short(min(every))} to {short(max(every))}", highlight=False)
        for run, curve in zip(found.runs, curves):
            line = sparkline(curve, WIDTH, min(every), max(every), ascii=console.encoding == "ascii")
            console.print(f"  {line:{WIDTH}}  {escape(run.name)}", highlight=False)
