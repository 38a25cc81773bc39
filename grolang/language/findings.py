"""The list that every check writes to, and the nearest known name for a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from grolang.language.diagnostics import Diagnostic, Note, Severity
from grolang.language.source import Span


class Findings(list[Diagnostic]):
    """Findings in the order in which they were made."""

    def add(
        self,
        code: str,
        message: str,
        span: Span,
        *,
        label: str = "",
        help: str = "",
        notes: Iterable[tuple[Span, str]] = (),
    ) -> None:
        """A finding at this place; a code that begins with W is a warning."""
        severity: Severity = "warning" if code.startswith("W") else "error"
        marks = tuple(Note(span=place, label=text) for place, text in notes)
        self.append(
            Diagnostic(code=code, severity=severity, message=message, span=span, label=label, notes=marks, help=help)
        )

    @property
    def errors(self) -> list[Diagnostic]:
        return [finding for finding in self if finding.severity == "error"]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like this one, if any looks like it at all."""
    names = sorted(known)
    lowered = {candidate.lower(): candidate for candidate in reversed(names)}
    if name.lower() in lowered:
        return lowered[name.lower()]
    close = get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[close[0]] if close else None


def suggested(name: str, known: Iterable[str], otherwise: str) -> str:
    """The help for a name that is not known: the nearest one that is, or where none is near, these words."""
    near = nearest(name, known)
    return f"did you mean `{near}`?" if near else otherwise


def listed(names: Iterable[str], *, last: str = "or") -> str:
    """`a`, `b` or `c`"""
    quoted = [f"`{name}`" for name in names]
    if len(quoted) < 2:
        return "".join(quoted)
    return ", ".join(quoted[:-1]) + f" {last} {quoted[-1]}"
