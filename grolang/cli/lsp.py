"""`grolang lsp`: what an editor starts for `.gro` files."""

from __future__ import annotations

from grolang.language.diagnostics import GroError


def lsp() -> None:
    """Serve an editor on standard input and output: findings, meanings, completion, layout."""
    try:
        from grolang.server import make
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("pygls", "lsprotocol"):
            raise
        message = "`grolang lsp` needs pygls, which is not installed"
        raise GroError.plain(message, help='pip install "grolang[lsp]"') from None
    make().start_io()
