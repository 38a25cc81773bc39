"""Curves drawn as SVG. Text stays text and lines take the page's own colour, so that a drawing fits where it stands."""

from __future__ import annotations

import io
import re
from types import ModuleType
from typing import Any

from grolang.explain.curves import Plot
from grolang.explain.document import Figure
from grolang.language.diagnostics import GroError

_COLOURS = ("#2f7ed8", "#d9603b")  # good and bad: told apart in grey and by most who see few colours
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "grolang",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def drawn(plot: Plot, caption: str = "") -> Figure:
    """A plot as a figure; a GroError where matplotlib is not installed."""
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(4.0, 2.7), layout="constrained")
        _draw(canvas.add_subplot(), plot)
        text = io.StringIO()
        canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": "grolang"})
    return Figure(plot.name, caption or plot.note, _fitted(text.getvalue()))


def _draw(axes: Any, plot: Plot) -> None:
    axes.axhline(0, color="#888888", linewidth=0.6)
    for curve, colour, style in zip(plot.curves, _COLOURS, ("-", "--")):
        axes.plot(curve.x, curve.y, style, color=colour, label=curve.label, linewidth=1.8)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    axes.margins(x=0.02)
    if any(curve.label for curve in plot.curves):
        axes.legend()


def _fitted(svg: str) -> str:
    """The `<svg>` element alone, black as the page's own colour, its size left to the page."""
    start = svg.index("<svg")
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[start:], flags=re.DOTALL)
    body = body.replace("#000000", "currentColor")
    # matplotlib writes text without a fill: SVG's black
    return body.replace("<svg ", '<svg fill="currentColor" role="img" ', 1).rstrip() + "\n"


def _matplotlib() -> ModuleType:
    try:
        import matplotlib
    except ImportError:
        help = "pip install 'grolang[explain]'; --no-plots leaves them out"
        raise GroError.plain("plots need the package matplotlib", help=help) from None
    return matplotlib
