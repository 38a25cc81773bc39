"""Runs side by side: settings and statements that differ, what they measured, and their curves. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grolang.language.difference import changes
from grolang.runtime.figures import METRICS, better
from grolang.runtime.record import Record

UNTOLD = ("method", "output", "track")
"""Settings that say nothing of what a run does."""

Row = tuple[str, tuple[str, ...]]
Values = tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """What differs between runs: a name and a value for each run; the figures, and the curves that all or some have."""

    runs: tuple[Record, ...]
    facts: tuple[Row, ...]
    settings: tuple[Row, ...]
    parts: tuple[Row, ...]
    held_out: tuple[tuple[str, Values, Values], ...]  # name, before, after
    last: tuple[tuple[str, Values], ...]


def compare(runs: Sequence[Record]) -> Comparison:
    """Two runs or more, in the order given. `last` are means over the last tenth of each run's steps."""
    return Comparison(tuple(runs), _facts(runs), _settings(runs), _parts(runs), _held_out(runs), _last(runs))


def _facts(runs: Sequence[Record]) -> tuple[Row, ...]:
    rows = [
        ("method", tuple(run.method_name for run in runs)),
        ("status", tuple(run.status for run in runs)),
        ("steps", tuple(f"{run.steps}/{run.planned}" for run in runs)),
        ("seconds", tuple(f"{sum(line.get('seconds', 0) for line in run.metrics):.1f}" for run in runs)),
        ("began", tuple(run.began for run in runs)),
    ]
    for name in dict.fromkeys(name for run in runs for name in run.versions):
        values = tuple(str(run.versions.get(name, "-")) for run in runs)
        if len(set(values)) > 1:
            rows.append((name, values))
    data = tuple(
        ", ".join(str(one.get("sha256", "-"))[:12] for one in run.info.get("data", {}).values()) for run in runs
    )
    return tuple(rows + ([("data (SHA-256)", data)] if len(set(data)) > 1 else []))


def _settings(runs: Sequence[Record]) -> tuple[Row, ...]:
    """Settings, parameters that the file or the flags give included, that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in UNTOLD)
    rows = ((name, tuple(_said(run.settings.get(name)) for run in runs)) for name in names)
    return tuple(row for row in rows if len(set(row[1])) > 1)


def _said(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _parts(runs: Sequence[Record]) -> tuple[Row, ...]:
    """Statements of the methods in force that are not those of the first run's."""
    first, rest = runs[0].method, [run.method for run in runs[1:]]
    found = [{change.what: change for change in changes(first, other)} for other in rest]
    rows = []
    for what in dict.fromkeys(what for change in found for what in change):
        mine = next(change[what].left for change in found if what in change)
        others = (change[what].right if what in change else mine for change in found)
        rows.append((what, tuple(text or "-" for text in (mine, *others))))
    return tuple(rows)


def _held_out(runs: Sequence[Record]) -> tuple[tuple[str, Values, Values], ...]:
    names = dict.fromkeys(name for run in runs for line in run.evaluations[:1] for name in line if name != "step")
    keys = [run.key for run in runs]
    ranked = sorted(names, key=lambda name: (name not in keys, not better(name)))
    return tuple((name, _at(runs, 0, name), _at(runs, -1, name)) for name in ranked)


def _at(runs: Sequence[Record], place: int, name: str) -> Values:
    return tuple(run.evaluations[place].get(name) if run.evaluations else None for run in runs)


def _last(runs: Sequence[Record]) -> tuple[tuple[str, Values], ...]:
    known = [name for row in METRICS for name in row.names]
    names = dict.fromkeys(name for run in runs for line in run.metrics[-1:] for name in line if name != "step")
    ranked = sorted(names, key=lambda name: known.index(name) if name in known else len(known))
    return tuple((name, tuple(_mean_of_last(run, name) for run in runs)) for name in ranked)


def _mean_of_last(run: Record, name: str) -> float | None:
    some = [line[name] for line in run.metrics[-max(1, len(run.metrics) // 10) :] if name in line]
    return sum(some) / len(some) if some else None


def curve_names(runs: Sequence[Record]) -> list[str]:
    """Figures worth a curve: those that the view of a run draws and shows, where a run has them twice."""
    from grolang.runtime.progress import CURVES, SHOWN

    wanted = dict.fromkeys((*CURVES, *SHOWN))
    return [name for name in wanted if any(sum(name in line for line in run.metrics) > 1 for run in runs)]
