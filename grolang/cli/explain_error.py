"""`grolang explain-error`: what a code means, with a bad and a good example."""

from __future__ import annotations

from typing import Annotated

import typer

from grolang.cli.paint import say
from grolang.language.diagnostics import GroError


def explain_error(code: Annotated[str, typer.Argument(metavar="CODE", help="Such as E301.")]) -> None:
    """Explain a code: what it says, why it matters, a bad and a good example."""
    from grolang.language.codes import CODES
    from grolang.language.findings import suggested

    word = code.strip().upper()
    if word not in CODES:
        help = suggested(word, CODES, f"they are {', '.join(CODES)}")
        raise GroError.plain(f"there is no code `{code}`", help=help, code="E602")
    row = CODES[word]
    say(f"{word}: {row.title}\n\n{row.what}\n{row.why}\n")
    say(f"Bad:\n\n{_indented(row.bad)}\n")
    if row.kind == "gro" and (shown := _finding(row.bad.encode(row.encoding), word)):
        say(f"{shown}\n")
    say(f"Good:\n\n{_indented(row.good)}")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.rstrip("\n").split("\n"))


def _finding(raw: bytes, code: str) -> str:
    """The bad file's own message, from a real check of it in an empty folder."""
    import tempfile
    from pathlib import Path

    from grolang.language.checker import check_file
    from grolang.language.diagnostics import render

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bad.gro")
        path.write_bytes(raw)
        checked = check_file(path)
        text = render([finding for finding in checked.findings if finding.code == code], checked.sources)
    return text.replace(str(path), "bad.gro")
