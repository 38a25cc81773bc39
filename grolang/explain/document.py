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
    words: Words


@dataclass(frozen=True)
class Display:
    """Formulas below each other, each on a line of its own."""

    formulas: tuple[Formula, ...]


@dataclass(frozen=True)
class Items:
    rows: tuple[Words, ...]


@dataclass(frozen=True)
class Table:
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
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Listing:
    """A text as it is, in a language that a highlighter knows."""

    text: str
    language: str


Block = Union[Paragraph, Display, Items, Table, Figures, Listing]


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    title: str
    sections: tuple[Section, ...]

    def figures(self) -> Iterable[Figure]:
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
