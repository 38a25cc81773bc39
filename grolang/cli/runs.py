"""`grolang runs`: the runs of a folder, a line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grolang.cli.paint import say, table

if TYPE_CHECKING:
    from grolang.runtime.record import Record


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, also in the folders below.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list instead of a table.")] = False,
) -> None:
    """List runs: name, method, steps, status, held-out figure before and after, date."""
    from grolang.language.diagnostics import GroError
    from grolang.runtime.record import runs_below

    if not folder.is_dir():
        help = "name a folder that runs were put into with --output"
        raise GroError.plain(f"there is no folder {folder}", help=help, code="E602")
    found = runs_below(folder)
    if as_json:
        say(json.dumps(list(map(_row, found)), indent=2))
        return
    if not found:
        say(f"no run in {folder}")
        return
    say(table([("RUN", "METHOD", "STEPS", "STATUS", "HELD OUT", "BEFORE → AFTER", "BEGAN"), *map(_line, found)]))


def _line(run: Record) -> tuple[str, ...]:
    from grolang.runtime.curves import short

    ends = run.evaluations[:: max(1, len(run.evaluations) - 1)]  # the first and the last, or the one
    moved = " → ".join(short(line[run.key]) for line in ends) if run.key else "-"
    steps = f"{run.steps}/{run.planned}"
    return str(run.path), run.method_name, steps, run.status, run.key or "-", moved, run.began or "-"


def _row(run: Record) -> dict[str, object]:
    return {
        "path": str(run.path),
        "method": run.method_name,
        "steps": run.steps,
        "of": run.planned,
        "status": run.status,
        "metric": run.key,
        "before": run.evaluations[0].get(run.key) if run.key else None,
        "after": run.evaluations[-1].get(run.key) if run.key else None,
        "began": run.info.get("began"),
    }
