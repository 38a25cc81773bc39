"""Arguments and options that several commands have, and how NAME=VALUE flags are read."""

from __future__ import annotations

from typing import Annotated

import typer

from grolang.language.diagnostics import GroError

File = Annotated[str, typer.Argument(metavar="FILE", help="A file or a built-in method.")]
Files = Annotated[list[str], typer.Argument(metavar="FILE", help="Files, folders or built-in methods.")]
Parameters = Annotated[list[str] | None, typer.Option("--set", help="A parameter's value: --set beta=0.2")]
Html = Annotated[bool, typer.Option("--html", help="A page that needs nothing but a browser.")]
Output = Annotated[str | None, typer.Option("-o", "--output", help="Where to write it; else the screen.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file that is there.")]
Examples = Annotated[int, typer.Option(min=1, help="Batches to try where there is no proof.")]
Seed = Annotated[int, typer.Option(help="Seed of the batches.")]


def assignments(items: list[str] | None, flag: str) -> dict[str, str]:
    """NAME=VALUE flags as a mapping."""
    found = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            edit = f"{flag} NAME={item}" if not equals and item[:1].isalpha() and set(item) & set("./:") else ""
            raise GroError.plain(f"{flag} {item}: expected NAME=VALUE", help=f"write {edit or f'{flag} NAME=VALUE'}")
        found[name] = value
    return found


def numbers(items: list[str] | None, flag: str = "--set") -> dict[str, float]:
    """The same of hyper-parameters."""
    found = {}
    for name, text in assignments(items, flag).items():
        try:
            found[name] = float(text)
        except ValueError:
            raise GroError.plain(f"{flag}: `{text}` is not a number") from None
    return found
