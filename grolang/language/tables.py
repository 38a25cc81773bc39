"""The parser's tables, built once: `python -m grolang.language.tables` writes grammar/tables.py from grammar/gro.lark.

Building them takes about a sixth of a whole `grolang check`. The written tables are plain literals, used only with
the Lark version and the grammar that they were made from; otherwise the grammar is built anew.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import lark
from lark import Lark
from lark.grammar import Rule
from lark.lexer import TerminalDef


def grammar() -> str:
    """The text of gro.lark."""
    return files("grolang.grammar").joinpath("gro.lark").read_text(encoding="utf-8")


def digest() -> str:
    """What tells one grammar from another."""
    return sha256(grammar().encode()).hexdigest()


def build() -> Lark:
    """The parser from its grammar."""
    return Lark(grammar(), parser="lalr", start="statement", propagate_positions=True, maybe_placeholders=True)


def load() -> Lark:
    """The parser from the written tables, where they are those of this grammar and this Lark."""
    try:
        from grolang.grammar import tables
    except ImportError:
        return build()
    if lark.__version__ != tables.LARK or digest() != tables.GRAMMAR:
        return build()
    made: Lark = Lark._load_from_dict(tables.DATA, tables.MEMO)  # type: ignore[no-untyped-call]
    return made


def written() -> str:
    """The text of grammar/tables.py."""
    data, memo = build().memo_serialize([TerminalDef, Rule])
    lines = [
        '"""Parser tables of gro.lark; written by `python -m grolang.language.tables`, not by hand."""',
        "",
        "from typing import Any",
        "",
        f'LARK = "{lark.__version__}"',
        f'GRAMMAR = "{digest()}"',
        f"DATA: dict[str, Any] = {data!r}",
        f"MEMO: dict[int, Any] = {memo!r}",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(str(files("grolang.grammar"))).joinpath("tables.py").write_text(written(), encoding="utf-8")
