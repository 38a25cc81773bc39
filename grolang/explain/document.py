"""What a page is made of, whatever it is printed as: sections of paragraphs, formulas, tables, figures and texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Union

from grolang.explain.formula import Formula


@dataclass(frozen=True)
class Code:
    """A piece of code within a line."""

    text: str


@dataclass(frozen=True)
class Link:
    """The name of a built-in method, which has a page of its own."""

    name: str


Inline = Union[str, Formula, Code, Link]
Words = tuple[Inline, ...]


@dataclass(frozen=True)
class Paragraph:
    """A line of words."""

    words: Words


@dataclass(frozen=True)
class Display:
    """Formulas below each other, each on a line of its own."""

    formulas: tuple[Formula, ...]


@dataclass(frozen=True)
class Items:
    """A list, an item for each row."""

    rows: tuple[Words, ...]


@dataclass(frozen=True)
class Table:
    """A head and rows of as many cells."""

    head: tuple[Words, ...]
    rows: tuple[tuple[Words, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A drawing as SVG text; `name` is short and fit for a file's name."""

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Figures:
    """Drawings beside each other."""

    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Listing:
    """A text as it is, in a language that a highlighter knows."""

    text: str
    language: str


Block = Union[Paragraph, Display, Items, Table, Figures, Listing]


@dataclass(frozen=True)
class Section:
    """A heading, blank where there is none, and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A title and sections: what markdown, html, latex and terminal print."""

    title: str
    sections: tuple[Section, ...]

    def figures(self) -> Iterable[Figure]:
        """Every drawing of the document, in order."""
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Figures):
                    yield from block.figures


def listed(parts: Iterable[Words], last: str = "and") -> Words:
    """`a, b and c`"""
    rows = list(parts)
    found: Words = ()
    for place, row in enumerate(rows):
        sign = "" if place == 0 else f" {last} " if place == len(rows) - 1 else ", "
        found += ((sign,) if sign else ()) + row
    return found
