"""The lexer colours every built-in file without an error token; the cell magic leaves a method behind."""

from __future__ import annotations

import pytest
from pygments.token import Error, Keyword, Name

from grolang.language import library
from grolang.lexer import GroLexer


@pytest.mark.parametrize("name", sorted(library.built_in()))
def test_every_file_is_coloured_whole(name: str) -> None:
    text = library.built_in()[name].text
    found = list(GroLexer(stripnl=False, ensurenl=False).get_tokens(text))
    assert "".join(part for _, part in found) == text
    assert not [part for kind, part in found if kind is Error]
    assert (Keyword, "method") in found


def test_words_of_the_language_have_their_colours() -> None:
    found = list(GroLexer().get_tokens("measure = sum(logp over tokens)"))
    assert (Name.Function, "sum") in found and (Name.Builtin, "logp") in found and (Keyword, "over") in found


def test_a_cell_is_checked_explained_and_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    testing = pytest.importorskip("IPython.core.interactiveshell")
    shell = testing.InteractiveShell.instance()
    shell.run_line_magic("load_ext", "grolang.notebook")
    shell.run_cell_magic("gro", "mine", "method mine\ndata preference\nreward = label\n")
    assert shell.user_ns["mine"].name == "mine"
    shell.run_cell_magic("gro", "bad", "method bad\ndata preference\nreward = labell\n")
    assert "E201" in capsys.readouterr().out and "bad" not in shell.user_ns
