"""`grolang table`: Table 1 of arXiv:2503.19523, made from files."""

from __future__ import annotations

from typing import Annotated

import typer

from grolang.cli.options import Force, Html, Output


def table(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE", help="Files, folders or built-in methods; else all of these.")
    ] = None,
    html: Html = False,
    latex: Annotated[bool, typer.Option("--latex", help="An article.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table.")] = False,
    output: Output = None,
    force: Force = False,
) -> None:
    """Tabulate methods as Table 1 of arXiv:2503.19523 does, ω, ε*, B, A, with z, needs, bias and aggregation."""
    from grolang.cli.deliver import asked, deliver
    from grolang.cli.files import named
    from grolang.explain import table_of

    names = named(files) if files else None
    deliver(table_of(names), asked(html, latex, markdown, output), output, force=force)
