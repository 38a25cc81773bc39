"""Where text comes from: files, positions in them, and the cut into statements."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from pydantic import BaseModel, ConfigDict

#: texts, as a group of their own, and comments
QUIET = re.compile(r'("(?:[^"\\\n]|\\.)*")|#[^\n]*')


@dataclass(frozen=True)
class Source:
    """One file's text under the name that messages show."""

    name: str
    text: str = field(repr=False)
    built_in: bool = False

    @cached_property
    def line_starts(self) -> list[int]:
        starts = [0]
        for line in self.text.split("\n"):
            starts.append(starts[-1] + len(line) + 1)
        return starts[:-1]

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column of an offset, both counted from 1."""
        line = bisect_right(self.line_starts, offset)
        return line, offset - self.line_starts[line - 1] + 1

    @property
    def resolved(self) -> str:
        """One name for every spelling of a file's path."""
        return self.name if self.built_in else os.path.realpath(self.name)

    def quoted(self, span: Span) -> str:
        """The text of a span on one line, without its comments."""
        return " ".join(QUIET.sub(lambda found: found[1] or "", self.text[span.start : span.end]).split())

    def line(self, number: int) -> str:
        """The text of a line (counted from 1), without its end."""
        return self.text.split("\n")[number - 1].rstrip("\r")


class Frozen(BaseModel):
    """A value: what it is made of is checked once, and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Span(Frozen):
    """A stretch of a source: the file's shown name and the offsets [start, end)."""

    file: str
    start: int
    end: int

    def to(self, other: Span) -> Span:
        """From the start of this span to the end of the other."""
        return Span(file=self.file, start=self.start, end=other.end)


#: of what no source holds
NOWHERE = Span(file="", start=0, end=0)


def heading(text: str) -> list[str]:
    """The comment lines at the head of a text, without their signs: where a method comes from."""
    lines: list[str] = []
    for line in text.split("\n"):
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return lines


def statements(text: str) -> Iterator[tuple[int, int]]:
    """The offsets [start, end) of each statement.

    A statement starts in column 0; lines that start with blanks, blank lines and comment lines between them
    continue it. Comments and blanks on lines of their own after its last word are not part of it. Text that is
    indented before any statement is handed on as a statement of its own, so that the parser can say what is wrong.
    """
    start: int | None = None
    end = offset = 0
    for line in text.split("\n"):
        body = line.rstrip("\r")
        if body.strip() and not body.lstrip().startswith("#"):
            if start is None or body[0] not in " \t":
                if start is not None:
                    yield start, end
                start = offset + (len(body) - len(body.lstrip()))
            end = offset + len(body)
        offset += len(line) + 1
    if start is not None:
        yield start, end
