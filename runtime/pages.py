"""Pieces of the pages about runs: one HTML file each, whole in itself, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from grolang.runtime.compare import Comparison, curve_names
from grolang.runtime.curves import COLOURS, Points, chart, short
from grolang.runtime.figures import better, gain
from grolang.runtime.record import curve

STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --paper: #fff; --shade: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --soft: #9ca3af; --line: #374151; --paper: #111827; --shade: #1b2433; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 70rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; } h3 { font-size: 1rem; }
p.sub, figcaption, .soft { color: var(--soft); } p.sub { margin: .2rem 0 1.2rem; }
table { border-collapse: collapse; margin: .4rem 0; } .wide { overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); white-space: nowrap; } td.n { font-variant-numeric: tabular-nums; }
pre, code, .mono { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background: var(--shade); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; margin: .5rem 0; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 9rem; max-width: 24rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.tile { background: var(--shade); border-radius: 8px; padding: .7rem 1rem; min-width: 9rem; }
.tile b { display: block; font-size: 1.35rem; font-weight: 600; } .tile span { color: var(--soft); font-size: .85rem; }
.up { color: #059669; } .down { color: #dc2626; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: .6rem 1rem; }
svg { width: 100%; height: auto; } svg text { font: 10.5px system-ui, sans-serif; fill: var(--soft); }
svg text.title { font-size: 12.5px; font-weight: 600; fill: var(--ink); } svg .grid { stroke: var(--line); }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .35em 0 .9em; }
.tokens { font: 13px/2 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  background: var(--shade); border-radius: 6px; padding: .5rem .9rem; margin: .3rem 0 1rem; }
.tokens i { font-style: normal; color: var(--soft); display: block; }
.tokens span { border-radius: 3px; padding: .12em 0; }
figure { margin: 0; } details summary { cursor: pointer; color: var(--soft); }
"""


def page(title: str, body: str, style: str = "") -> str:
    """A whole page."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    head += f"<style>{STYLE}{style}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it; nothing where nothing does."""
    there = [part for part in parts if part]
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(there) + "</section>\n" if there else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = ()) -> str:
    """Cells are texts; the columns `text` keep their line ends."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = []
    for row in rows:
        cells = (f'<td class="{"text mono" if at in text else "n"}">{escape(cell)}</td>' for at, cell in enumerate(row))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><tr>{top}</tr>{"".join(lines)}</table></div>' if lines else ""


def charts(series: Mapping[str, Mapping[str, Points]]) -> str:
    """A chart for each name, those that can be drawn."""
    drawn = [chart(name, curves) for name, curves in series.items()]
    return (
        f'<div class="charts">{"".join(f"<figure>{one}</figure>" for one in drawn if one)}</div>' if any(drawn) else ""
    )


def legend(names: Sequence[str]) -> str:
    """The colours of curves."""
    keys = (
        f'<span class="key" style="background:{COLOURS[at % len(COLOURS)]}"></span>{escape(name)}'
        for at, name in enumerate(names)
    )
    return f'<p class="soft">{"".join(keys)}</p>'


def tile(name: str, value: str, mark: str = "") -> str:
    """A number to be seen first."""
    return f'<div class="tile"><b class="{mark}">{escape(value)}</b><span>{escape(name)}</span></div>'


def moved(name: str, before: float, after: float) -> str:
    """The class of a change: up where the figure became better, down where it became worse."""
    if before == after or not better(name):
        return ""
    return "up" if gain(name, before, after) else "down"


def number(value: float | None) -> str:
    return "–" if value is None else short(value)


def comparison_page(found: Comparison) -> str:
    """Runs side by side, with charts."""
    names = [run.name for run in found.runs]
    figures = curve_names(found.runs)
    trained = {name: {run.name: curve(run.metrics, name) for run in found.runs} for name in figures}
    held = {name: {run.name: curve(run.evaluations, name) for run in found.runs} for name, _, _ in found.held_out}
    rows = [(name, [f"{number(a)} → {number(b)}" for a, b in zip(one, two)]) for name, one, two in found.held_out]
    body = f"<h1>{escape(' · '.join(names))}</h1><p class='sub'>runs compared by grolang</p>"
    body += section("Runs", table(["", *names], [(what, *cells) for what, cells in found.facts]))
    same = "<p>None differ.</p>"
    body += section("Settings that differ", table(["", *names], [(a, *b) for a, b in found.settings]) or same)
    columns = range(1, len(names) + 1)
    body += section("Statements that differ", table(["", *names], [(a, *b) for a, b in found.parts], columns) or same)
    body += section(
        "Held out", table(["before → after", *names], [(a, *b) for a, b in rows]), legend(names), charts(held)
    )
    last = [(name, *map(number, values)) for name, values in found.last]
    body += section("Steps", legend(names), charts(trained), table(["mean of the last tenth", *names], last))
    return page(" · ".join(names), body)
