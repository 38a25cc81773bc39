"""`grolang report`: the page of a run, made anew."""

from __future__ import annotations

from typing import Annotated

import typer

from grolang.cli.paint import say


def report(run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run.")]) -> None:
    """Make report.html of a run from what stands in its folder: finished, interrupted or still running."""
    from grolang.runtime.record import open_record
    from grolang.runtime.report import write_report

    say(f"the report is in {write_report(open_record(run).path)}")
