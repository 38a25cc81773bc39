"""A document for terminals, through rich: formulas as Unicode text; figures and whole files are left out."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from grolang.explain import document as doc
from grolang.explain.curves import Plot
from grolang.explain.document import Block, Document, Words
from grolang.explain.formula import Formula

_BARS = "▁▂▃▄▅▆▇█"
_WIDE = 160  # columns that a wide table needs


def rendered(document: Document, plots: Iterable[Plot] = ()) -> Iterator[RenderableType]:
    """What rich prints, part after part; plots as lines of bars."""
    yield Text(document.title, style="bold")
    for section in document.sections:
        if all(isinstance(block, (doc.Listing, doc.Figures)) for block in section.blocks):
            continue
        yield Text(f"\n{section.title}" if section.title else "", style="bold cyan")
        for block in section.blocks:
            yield from _block(block)
    rows = [line for plot in plots for line in _bars(plot)]
    if rows:
        yield Text("\nCurves", style="bold cyan")
        yield from rows


def plain(document: Document, plots: Iterable[Plot] = ()) -> str:
    """The same as text without colour, for files."""
    console = Console(file=io.StringIO(), width=120, no_color=True, highlight=False)
    for part in rendered(document, plots):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _block(block: Block) -> Iterator[RenderableType]:
    match block:
        case doc.Paragraph():
            yield _words(block.words)
        case doc.Display():
            lines = Text("\n").join(Text(formula.text, style="green") for formula in block.formulas)
            yield Padding(lines, (0, 4), expand=False)
        case doc.Items():
            for row in block.rows:
                grid = Grid.grid(padding=(0, 1))
                grid.add_row("•", _words(row))
                yield grid
        case doc.Table():
            yield _Fitted(block)
        case doc.Listing() | doc.Figures():
            pass


@dataclass(frozen=True)
class _Fitted:
    """A table; where the terminal is too narrow for its columns, each row stands upright."""

    table: doc.Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        head, rows = self.table.head, self.table.rows
        if len(head) < 5 or options.max_width >= _WIDE:
            yield _grid(head, rows)
            return
        for first, *rest in rows:
            yield Text.assemble(_words(first), style="bold")
            yield _grid(((), ()), tuple(zip(head[1:], rest)))


def _grid(head: tuple[Words, ...], rows: tuple[tuple[Words, ...], ...]) -> Grid:
    grid = Grid(box=None, pad_edge=False, header_style="bold", show_header=any(head))
    for cell in head:
        grid.add_column(_words(cell), overflow="fold")
    for row in rows:
        grid.add_row(*(_words(cell) for cell in row))
    return grid


def _words(words: Words) -> Text:
    text = Text()
    for word in words:
        match word:
            case Formula():
                text.append(word.text, style="green")
            case doc.Code():
                text.append(word.text, style="bold")
            case doc.Link():
                text.append(word.name, style="bold")
            case _:
                text.append(word)
    return text


def _bars(plot: Plot) -> Iterator[Text]:
    """`ω(z)  ████▆▄▂▁▁  z: −6 … 6, between 0.0002 and 0.1`; a blank where the curve is not finite."""
    for curve in plot.curves:
        values = curve.y[:: max(1, len(curve.y) // 40)]
        finite = list(filter(math.isfinite, values))
        low, high = min(finite, default=math.nan), max(finite, default=math.nan)
        height = (high - low) or 1.0
        bars = "".join(_BARS[round((value - low) / height * 7)] if math.isfinite(value) else " " for value in values)
        label = f"{plot.y}{f', {curve.label}' if curve.label else ''}"
        ends = f"{curve.x[0]:.3g} … {curve.x[-1]:.3g}, between {low:.3g} and {high:.3g}"
        yield Text.assemble((f"{label:26}", ""), (bars, "green"), f"  {plot.x}: {ends}")
