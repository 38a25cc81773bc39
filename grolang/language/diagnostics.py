"""What is wrong, where, and one edit that mends it: the one type of finding and its renderers."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

from grolang.language.source import Frozen, Source, Span

Severity = Literal["error", "warning"]


class Note(Frozen):
    """A second place that belongs to a finding: the first of two definitions, a step of a cycle."""

    span: Span
    label: str


class Diagnostic(Frozen):
    """One finding. `message` says expected and found, `label` stands under the marked text, `help` mends it."""

    code: str
    severity: Severity
    message: str
    span: Span | None = None
    label: str = ""
    notes: tuple[Note, ...] = ()
    help: str = ""


Raised = TypeVar("Raised", bound="GroError")


class GroError(Exception):
    """Every error that a user can cause. Its text is the rendered findings; `diagnostics` holds them as data."""

    def __init__(self, diagnostics: Iterable[Diagnostic], sources: Mapping[str, Source] | None = None) -> None:
        self.diagnostics = tuple(diagnostics)
        self.sources = dict(sources or {})
        super().__init__(render(self.diagnostics, self.sources))

    def __reduce__(self) -> tuple[type[GroError], tuple[object, ...]]:
        return GroError, (self.diagnostics, self.sources)  # workers hand errors on

    @classmethod
    def plain(cls: type[Raised], message: str, *, help: str = "", code: str = "E900") -> Raised:
        """An error without a place in a `.gro` file: data, settings, a missing tensor."""
        return cls([Diagnostic(code=code, severity="error", message=message, help=help)])


def cause(error: BaseException, most: int = 400) -> str:
    """What an exception of another library says, on one line; its class where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def in_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Sorted by file and place, each finding once."""
    unique = dict.fromkeys(diagnostics)
    return sorted(unique, key=lambda d: (d.span is None, d.span.file if d.span else "", d.span.start if d.span else 0))


#: characters of a source line that a message shows
_WIDEST = 160


def render(diagnostics: Iterable[Diagnostic], sources: Mapping[str, Source]) -> str:
    """The terminal form, without colour; findings are parted by a blank line."""
    text = "\n\n".join(_render_one(finding, sources) for finding in in_order(diagnostics))
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)  # no control characters


def _render_one(finding: Diagnostic, sources: Mapping[str, Source]) -> str:
    lines = [f"{finding.severity}[{finding.code}]: {finding.message}"]
    marks = [(finding.span, finding.label)] if finding.span else []
    marks += [(note.span, note.label) for note in finding.notes]
    numbers = [sources[span.file].place(span.start)[0] for span, _ in marks if span.file in sources]
    width = len(str(max(numbers, default=1)))
    shown: str | None = None
    for span, label in marks:
        source = sources.get(span.file)
        if source is None:
            continue
        line, column = source.place(span.start)
        if span.file != shown:
            lines += [f"{' ' * width}--> {span.file}:{line}:{column}", f"{' ' * width} |"]
            shown = span.file
        text = source.line(line)
        stop = min(span.end - source.line_starts[line - 1], len(text))
        if len(text) > _WIDEST:  # a window around the mark
            first = max(0, column - 1 - _WIDEST // 4)
            text, column, stop = text[first : first + _WIDEST], column - first, min(stop, first + _WIDEST) - first
        before, marked = text[: column - 1].expandtabs(4), text[column - 1 : stop].expandtabs(4)
        carets = "^" * max(_cells(marked), 1)
        lines.append(f"{line:>{width}} | {text.expandtabs(4)}")
        lines.append(f"{' ' * width} | {' ' * _cells(before)}{carets} {label}".rstrip())
    if finding.help:
        if shown is not None:
            lines.append(f"{' ' * width} |")
        lines.append(f"{' ' * width}help: {finding.help}" if shown is None else f" help: {finding.help}")
    return "\n".join(lines)


def _cells(text: str) -> int:
    """Terminal cells that a text takes: wide characters two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def as_json(diagnostics: Iterable[Diagnostic], sources: Mapping[str, Source]) -> str:
    """One JSON document: a list of findings, each with file, line, column, end line, end column."""
    rows = []
    for finding in in_order(diagnostics):
        row: dict[str, object] = {"code": finding.code, "severity": finding.severity, "message": finding.message}
        row |= {"label": finding.label, "help": finding.help}
        row |= _position(finding.span, sources)
        row["notes"] = [{"label": note.label} | _position(note.span, sources) for note in finding.notes]
        rows.append(row)
    return json.dumps(rows, ensure_ascii=False, indent=2)


def _position(span: Span | None, sources: Mapping[str, Source]) -> dict[str, object]:
    if span is None or span.file not in sources:
        return {"file": span.file if span else None}
    source = sources[span.file]
    (line, column), (end_line, end_column) = source.place(span.start), source.place(span.end)
    return {"file": span.file, "line": line, "column": column, "end_line": end_line, "end_column": end_column}
