"""What changed between two methods, statement by statement, after `extends`."""

from __future__ import annotations

from dataclasses import dataclass

from grolang.language.declarations import Declarations, declare
from grolang.language.findings import Findings
from grolang.language.formatter import one_line
from grolang.language.source import Source


@dataclass(frozen=True)
class Change:
    """One statement: its text on either side, None where that side does not have it."""

    what: str
    left: str | None
    right: str | None


def changes(left: Source, right: Source) -> list[Change]:
    """Every statement in force that is not the same on both sides, in the order of the left file.

    Spacing and comments do not count; laws are left out, since they change no coefficient.
    """
    mine, theirs = _statements(left), _statements(right)
    return [
        Change(what, mine.get(what), theirs.get(what))
        for what in [*mine, *(what for what in theirs if what not in mine)]
        if mine.get(what) != theirs.get(what)
    ]


def _statements(source: Source) -> dict[str, str]:
    declared: Declarations = declare(source, Findings())
    kinds = {"param": "param", "score": "score", "report": "report"}
    found = {}
    for (space, name), statement in declared.table.items():
        what = " ".join(word for word in (kinds.get(statement.kind, ""), name or space) if word)
        found[what] = one_line(statement)
    return found
