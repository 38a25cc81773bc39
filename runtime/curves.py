"""Curves as text for terminals, and as SVG for pages: a few lines each, no package."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-=*#%@"
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")


def finite(points: Points) -> list[tuple[float, float]]:
    """The points that can be drawn."""
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]


def resampled(values: Sequence[float], width: int) -> list[float]:
    """At most `width` values: means of even stretches."""
    if len(values) <= width:
        return list(values)
    edges = [at * len(values) // width for at in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]


def sparkline(
    values: Sequence[float], width: int, low: float | None = None, high: float | None = None, *, ascii: bool = False
) -> str:
    """Values as a row of blocks from `low` to `high`, by default their own least and greatest."""
    some = resampled([value for value in values if math.isfinite(value)], max(1, width))
    if not some:
        return ""
    marks = ASCII if ascii else BLOCKS
    low, high = min(some) if low is None else low, max(some) if high is None else high
    step = (high - low) / len(marks)
    if step <= 0:
        return marks[0] * len(some)
    return "".join(marks[max(0, min(len(marks) - 1, int((value - low) / step)))] for value in some)


def dots(values: Sequence[float], width: int, height: int) -> list[str]:
    """Values as a curve of Braille dots, `height` rows of at most `width` characters, each 2 by 4 dots."""
    some = resampled([value for value in values if math.isfinite(value)], 2 * width)
    if not some:
        return []
    low, high, rows = min(some), max(some), 4 * height
    ys = [round((rows - 1) * (1 - (value - low) / (high - low))) if high > low else rows - 1 for value in some]
    cells = [[0] * math.ceil(len(some) / 2) for _ in range(height)]
    before = ys[0]
    for x, y in enumerate(ys):
        for dot in range(min(y, before + (y > before)), max(y, before - (y < before)) + 1):  # joined to the one before
            bit = (0x01, 0x02, 0x04, 0x40)[dot % 4] if x % 2 == 0 else (0x08, 0x10, 0x20, 0x80)[dot % 4]
            cells[dot // 4][x // 2] |= bit
        before = y
    return ["".join(chr(0x2800 + cell) for cell in row) for row in cells]


def short(value: float) -> str:
    """A number in few characters."""
    return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.2e}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that divide a range into about `count` parts."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    return [step * at for at in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


class Frame:
    """An SVG of two axes: places of values, and the marks on them."""

    def __init__(self, title: str, x: tuple[float, float], y: tuple[float, float], width: int = 420) -> None:
        self.title, self.width, self.height = title, width, 220
        self.left, self.right, self.top, self.bottom = 52, width - 12, 28, self.height - 26
        self.x, self.y = _wide(*x), _wide(*y)
        self.parts: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point stands in the picture."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def line(self, points: Points, colour: str, *, dashed: bool = False) -> None:
        """A curve through the points that can be drawn."""
        path = " ".join("{:.1f},{:.1f}".format(*self.at(x, y)) for x, y in finite(points))
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')

    def dot(self, x: float, y: float, colour: str) -> None:
        """A mark at a point."""
        px, py = self.at(x, y)
        self.parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>')

    def bar(self, left: float, right: float, height: float, colour: str) -> None:
        """A bar from the lower edge up to a share `height` of the frame."""
        a, b = self.at(left, self.y[0])[0], self.at(right, self.y[0])[0]
        tall = height * (self.bottom - self.top)
        box = f'x="{a:.1f}" y="{self.bottom - tall:.1f}" width="{max(0.5, b - a - 0.5):.1f}" height="{tall:.1f}"'
        self.parts.append(f'<rect {box} fill="{colour}" fill-opacity="0.25"/>')

    def svg(self) -> str:
        """The picture."""
        marks = []
        for value in ticks(*self.y):
            height = self.at(self.x[0], value)[1]
            marks.append(f'<line x1="{self.left}" x2="{self.right}" y1="{height:.1f}" y2="{height:.1f}" class="grid"/>')
            marks.append(f'<text x="{self.left - 5}" y="{height + 3:.1f}" text-anchor="end">{short(value)}</text>')
        for value in ticks(*self.x):
            across = self.at(value, self.y[0])[0]
            marks.append(f'<text x="{across:.1f}" y="{self.bottom + 15}" text-anchor="middle">{short(value)}</text>')
        head = f'<text x="{self.left}" y="16" class="title">{escape(self.title)}</text>'
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}"'
        label = escape(self.title, quote=True)
        return f'<svg {size} role="img" aria-label="{label}">{head}{"".join(marks)}{"".join(self.parts)}</svg>'


def _wide(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty."""
    return (low, high) if high > low else (low - max(abs(low), 1.0) * 0.05, high + max(abs(high), 1.0) * 0.05)


def chart(title: str, series: Mapping[str, Points], dashed: Sequence[str] = ()) -> str:
    """Curves in one SVG, each name with its colour by its place among all; "" where no point can be drawn."""
    every = [point for points in series.values() for point in finite(points)]
    if not every:
        return ""
    xs, ys = [x for x, _ in every], [y for _, y in every]
    frame = Frame(title, (min(xs), max(xs)), (min(ys), max(ys)))
    for at, (name, points) in enumerate(series.items()):
        colour, own = COLOURS[at % len(COLOURS)], finite(points)
        frame.line(own, colour, dashed=name in dashed)
        if 0 < len(own) <= 12:
            for x, y in own:
                frame.dot(x, y, colour)
    return frame.svg()


def bins(values: Sequence[float], low: float, high: float, count: int) -> list[float]:
    """The share of the values in each of `count` even stretches from low to high."""
    found = [0] * count
    for value in values:
        if low <= value <= high:
            found[min(count - 1, int((value - low) / (high - low) * count)) if high > low else 0] += 1
    return [number / max(1, len(values)) for number in found]
