"""`.gro` for pygments: colours in the manual, in notebooks and wherever pygments colours code.

The words come from the language's own tables: those that start a statement or a claim from the grammar, functions,
observables, components, axes and data kinds from theirs. A word has the colour of what it is where it stands: `loss`
is a keyword after `law NAME:` and a name elsewhere, `sum` a function before `(` and `over` alone.
"""

from __future__ import annotations

from typing import ClassVar

from pygments.lexer import RegexLexer, bygroups, default, words
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Text

from grolang.language.checker import KINDS
from grolang.language.components import COMPONENTS, FUNCTION_COMPONENTS, LETTERS
from grolang.language.functions import CALLABLE, KEYWORDS, OBSERVABLES, SPELLINGS
from grolang.language.scopes import AGGREGATED, REDUCED, Scope
from grolang.language.tables import load

_PARSER = load()
_WORDS = {terminal.name: terminal.pattern.value.removesuffix(r"\b") for terminal in _PARSER.terminals}


def _first(rule: str) -> set[str]:
    """The keywords that a rule of the grammar may start with."""
    starts = {made.expansion[0].name for made in _PARSER.rules if made.origin.name == rule}
    return {_WORDS[name] for name in starts if name.startswith("_")}


def _any_of(chosen: frozenset[str] | set[str], before: str = r"\b", after: str = r"\b") -> object:
    return words(sorted(chosen), prefix=before, suffix=after)


_STATEMENTS, _CLAIMS = _first("statement"), _first("claim")
_AXES = set(REDUCED) | set(AGGREGATED)
_LOGIC = {_WORDS[name] for name in ("_AND", "_OR", "_NOT")}
_SCOPES = "|".join(scope.word for scope in Scope)
_COMPONENTS = {*COMPONENTS, *FUNCTION_COMPONENTS, *LETTERS}
_NAME = _WORDS["NAME"]
_BLANK = Text.Whitespace


class GroLexer(RegexLexer):  # type: ignore[misc]  # pygments is not typed
    """Pygments' lexer of `.gro` files."""

    name = "gro"
    aliases: ClassVar[list[str]] = ["gro"]
    filenames: ClassVar[list[str]] = ["*.gro"]
    url = "https://arxiv.org/abs/2503.19523"
    tokens: ClassVar[dict[str, list[object]]] = {
        "root": [
            (rf"^(method|extends)(\s+)({_NAME})", bygroups(Keyword.Declaration, _BLANK, Name.Class)),
            (rf"^(param|score|report)(\s+)({_NAME})", bygroups(Keyword.Declaration, _BLANK, Name.Variable)),
            (rf"^(law)(\s+)({_NAME})", bygroups(Keyword.Declaration, _BLANK, Name.Label), "claim"),
            (r"^data\b", Keyword.Declaration, "data"),
            (_any_of(_STATEMENTS, "^"), Keyword.Declaration),
            (rf"\b(any)(\()({_SCOPES})\b", bygroups(Name.Function, Punctuation, Keyword.Type)),
            (_any_of(_AXES), Keyword.Type),
            (_any_of(_LOGIC), Operator.Word),
            (r"\binf\b", Keyword.Constant),
            (_any_of(CALLABLE | set(SPELLINGS), after=r"\b(?=\s*\(|\s+over\b)"), Name.Function),
            (_any_of(KEYWORDS), Keyword),
            (_any_of(set(OBSERVABLES)), Name.Builtin),
            (_any_of(_COMPONENTS), Name.Builtin.Pseudo),
            (rf"^{_NAME}(?=\s*=)", Name.Variable),
            (_NAME, Name),
            (_WORDS["NUMBER"], Number),
            (r"[-+*/^<>=!]+", Operator),
            (r"[()\[\],:]", Punctuation),
            (_WORDS["TEXT"], String.Double),
            (_WORDS["COMMENT"], Comment.Single),
            (r"\s+", _BLANK),
        ],
        "data": [
            (r"[ \t]+", _BLANK),
            (_any_of(set(KINDS)), Name.Constant),
            (r"\+", Operator),
            default("#pop"),
        ],
        "claim": [
            (r"\s+", _BLANK),
            (r":", Punctuation),
            (rf"(equals|to)(\s+)({_NAME})", bygroups(Keyword, _BLANK, Name.Class), "#pop"),
            (r"proportional\b", Keyword),
            (_any_of(_CLAIMS), Keyword, "#pop"),
            default("#pop"),
        ],
    }
