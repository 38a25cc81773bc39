"""Text to a stream, with colour where a person reads it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TextIO

#: a pattern, whose group is painted, and its style
_COLOURS = (
    (re.compile(r"^(error(?:\[\w+\])?)", re.M), "bold red"),
    (re.compile(r"^(warning(?:\[\w+\])?)", re.M), "bold yellow"),
    (re.compile(r"^ +\| +(\^+.*)$", re.M), "bold red"),
    (re.compile(r"^ *(help:)", re.M), "bold green"),
    (re.compile(r"^ *(-->|\d+ \||\|)", re.M), "dim"),
    (re.compile(r"^(\+(?!\+\+).*)$", re.M), "green"),
    (re.compile(r"^(-(?!--).*)$", re.M), "red"),
)


def say(text: str, stream: TextIO | None = None) -> None:
    """Write a text and a line end, to stdout unless another stream is given."""
    out = sys.stdout if stream is None else stream
    if _coloured(out):
        _paint(text, out)
    else:
        out.write(text + "\n")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows with their columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows)


def _coloured(stream: TextIO) -> bool:
    """NO_COLOR and dumb terminals get none (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _paint(text: str, stream: TextIO) -> None:
    from rich.console import Console
    from rich.text import Text

    painted = Text(text)
    for pattern, style in _COLOURS:
        for found in pattern.finditer(text):
            painted.stylize(style, *found.span(1))
    # `soft_wrap`: the carets stand below the marked text only as long as no line is wrapped.
    Console(file=stream, highlight=False).print(painted, soft_wrap=True)
