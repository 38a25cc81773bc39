"""A document in the form that a command line asks for, on the screen or in a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from grolang.cli.files import write_new
from grolang.cli.paint import say

if TYPE_CHECKING:
    from grolang.explain.curves import Plot
    from grolang.explain.document import Document

_SUFFIXES = {".html": "html", ".htm": "html", ".tex": "latex", ".md": "markdown"}


def asked(html: bool, latex: bool, markdown: bool, output: str | None) -> str:
    """The form that flags ask for, else that of the file's suffix, else text for the terminal."""
    given = [name for name, flag in (("html", html), ("latex", latex), ("markdown", markdown)) if flag]
    if len(given) > 1:
        raise typer.BadParameter(f"one form at a time, not {' and '.join(f'--{name}' for name in given)}")
    return given[0] if given else _SUFFIXES.get(Path(output or "").suffix, "text")


def deliver(document: Document, form: str, output: str | None, *, force: bool, plots: Iterable[Plot] = ()) -> None:
    """Print it, or write it with its figures beside it; `plots` are drawn as bars where the form is text."""
    if form == "text" and output is None:
        from rich.console import Console

        from grolang.explain.terminal import rendered

        console = Console(highlight=False)
        for part in rendered(document, plots):
            console.print(part)
        return
    text = _text(document, form, output, plots)
    if output is None:
        sys.stdout.write(text)
        return
    if form == "markdown":
        for figure in document.figures():
            write_new(_beside(output, figure.name), figure.svg, force=force)
    write_new(output, text, force=force)
    say(f"wrote {output}")


def _text(document: Document, form: str, output: str | None, plots: Iterable[Plot]) -> str:
    from grolang.explain import html, latex, markdown, terminal

    if form == "text":
        return terminal.plain(document, plots)
    if form == "markdown":
        return markdown.rendered(document, figure=lambda name: _beside(Path(output or "").name, name))
    return html.rendered(document) if form == "html" else latex.rendered(document)


def _beside(output: str, figure: str) -> str:
    """Where a figure of a page lies: `dpo.md` has `dpo-omega.svg`."""
    path = Path(output)
    return str(path.with_name(f"{path.stem}-{figure}.svg"))
