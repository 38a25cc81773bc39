"""`grolang audit`: which of another library's losses is which method?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def audit(
    peers: Annotated[list[str], typer.Argument(metavar="trl|verl|liger", help="The libraries, installed beside.")],
    method: Annotated[
        str | None, typer.Option(metavar="FILE", help="Compare every loss with this file or built-in method alone.")
    ] = None,
    loss: Annotated[str | None, typer.Option(metavar="TEXT", help="Only losses with this text in their name.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As the page of the manual.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", help="Write that page to a file, in place of what is there.")
    ] = None,
) -> None:
    """Run a library's own loss code on small batches, and say which method each loss equals, or how it differs.

    Exit code 0: every verdict is the expected one; 1: a loss is not what its row says, as with another version.
    """
    from grolang.cli.files import write_new
    from grolang.cli.paint import say
    from grolang.compiler.method import load
    from grolang.integrations.audit import run
    from grolang.integrations.page import page, text
    from grolang.integrations.peer import peer, untested

    only = None if method is None else load(method)
    found = [peer(name) for name in dict.fromkeys(peers)]
    for each in found:
        if warning := untested(each.name):
            say(f"warning: {warning}")
    made = [(each, run(each, only=only, containing=loss or "")) for each in found]
    if output is not None:
        write_new(output, page(made), force=True)
    elif markdown:
        say(page(made).rstrip("\n"))
    else:
        say("\n\n".join(text(*each) for each in made))
    wrong = [finding for _, groups in made for group in groups.values() for finding in group if not finding.holds]
    for finding in wrong:
        if only is None:
            say(f"not as expected: {finding.loss.name}")
    if wrong and only is None:
        raise typer.Exit(1)
