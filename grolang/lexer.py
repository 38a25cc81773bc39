"""`.gro` for pygments: colours in the manual, in notebooks and wherever pygments colours code.

The words come from the tables of the language: keywords, functions, observables and components.
"""

from __future__ import annotations

from typing import ClassVar

from pygments.lexer import RegexLexer, words
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Text

from grolang.language.functions import CALLABLE, KEYWORDS, OBSERVABLES

_NAME = r"[A-Za-z_\u0370-\u03ff\u1f00-\u1fff\u00b5][A-Za-z0-9_\u0370-\u03ff\u1f00-\u1fff\u00b5]*"


class GroLexer(RegexLexer):  # type: ignore[misc]  # pygments is not typed
    """Pygments' lexer of `.gro` files."""

    name = "gro"
    aliases: ClassVar[list[str]] = ["gro"]
    filenames: ClassVar[list[str]] = ["*.gro"]
    url = "https://arxiv.org/abs/2503.19523"
    tokens: ClassVar[dict[str, list[tuple[object, object]]]] = {
        "root": [
            (r"\s+", Text.Whitespace),
            (r"#[^\n]*", Comment.Single),
            (r'"([^"\\\n]|\\.)*"', String.Double),
            (words(sorted(KEYWORDS), prefix=r"\b", suffix=r"\b"), Keyword),
            (words(sorted(CALLABLE), prefix=r"\b", suffix=r"\b(?=\s*\()"), Name.Function),
            (words(sorted(OBSERVABLES), prefix=r"\b", suffix=r"\b"), Name.Builtin),
            (r"(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", Number),
            (_NAME, Name),
            (r"[-+*/^<>=!]+", Operator),
            (r"[()\[\],:]", Punctuation),
        ]
    }
