"""`grolang doctor`: what is installed, on what machine, and whether it works."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    folder: Annotated[Path, typer.Argument(help="Where runs are to be put.")] = Path(),
    test: Annotated[bool, typer.Option(help="Train one step and check a gradient; --no-test leaves it out.")] = True,
) -> None:
    """Show versions, device, threads and disk, and try the parts; exit code 1 where something is broken."""
    from rich.console import Console

    from grolang.language.diagnostics import GroError
    from grolang.runtime.doctor import examine

    if not folder.is_dir():
        raise GroError.plain(f"there is no folder {folder}", help="name one that is there", code="E602")
    console, broken = Console(), 0
    marks = {True: "[green]ok[/]     ", False: "[bold red]broken[/] ", None: "[dim]-[/]      "}
    for finding in examine(folder, test=test):
        broken += finding.good is False
        console.print(marks[finding.good], end="")
        console.print(f"{finding.what:<18} {finding.found}", markup=False, highlight=False, soft_wrap=True)
        if finding.mend and not finding.good:
            console.print(f"       help: {finding.mend}", markup=False, highlight=False, soft_wrap=True)
    if broken:
        raise typer.Exit(1)
