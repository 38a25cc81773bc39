"""The lexer colours every built-in file without an error token, and each word by what it is where it stands."""

from __future__ import annotations

import pytest
from pygments.token import Error, Keyword, Name, Operator

from grolang.language import library, syntax, tables
from grolang.language.checker import KINDS
from grolang.language.components import COMPONENTS, FUNCTION_COMPONENTS, LETTERS
from grolang.language.functions import CALLABLE, OBSERVABLES, SPELLINGS
from grolang.language.scopes import AGGREGATED, REDUCED
from grolang.language.source import Source
from grolang.lexer import GroLexer


@pytest.mark.parametrize("name", sorted(library.built_in()))
def test_every_file_is_coloured_whole(name: str) -> None:
    text = library.built_in()[name].text
    found = list(GroLexer(stripnl=False, ensurenl=False).get_tokens(text))
    assert "".join(part for _, part in found) == text
    assert not [part for kind, part in found if kind is Error]
    assert (Keyword.Declaration, "method") in found


#: every keyword of the grammar where it stands; `loss` and `to` are names elsewhere
SAMPLE = """method mine
extends dpo
data prompts + demonstrations
group 8
param beta = 0.1 in (0, inf)
score right = exact_match
loss = 1 if right and not beta or label else 0
ω(z) = σ(-z)
υ(a) = a
α = to
aggregate = mean over tokens, sum over group / 8, mean over groups
report up = loss
law a: loss loss * 2 aggregate sum over batch
law b: equals dpo with beta = 2 when logp_ref = any(sequence)
law c: proportional to rloo
law d: invariant when right = right + any(group)
law e: unbiased
"""


def kinds(text: str) -> list[tuple[object, str]]:
    return [(kind, part) for kind, part in GroLexer().get_tokens(text) if part.strip()]


def kind_of(word: str, text: str) -> object:
    """What the word is the first time that it stands in the text."""
    return next(kind for kind, part in kinds(text) if part == word)


def test_every_keyword_of_the_grammar_has_a_colour() -> None:
    parser = tables.load()
    keywords = {
        terminal.pattern.value.removesuffix(r"\b")
        for terminal in parser.terminals
        if terminal.name.startswith("_") or terminal.name == "INF"
    }
    parsed = syntax.parse(Source("sample.gro", SAMPLE))
    coloured = {part for kind, part in kinds(SAMPLE) if kind in Keyword or kind is Operator.Word}
    assert len(keywords) > 20 and not parsed.findings and keywords <= coloured


@pytest.mark.parametrize("word", sorted(CALLABLE | set(SPELLINGS)))
def test_every_function_is_one(word: str) -> None:
    assert kind_of(word, f"x = {word}(y)") is Name.Function
    assert kind_of(word, f"x = {word} + 1") is Name


def test_words_have_the_colour_of_what_they_are_where_they_stand() -> None:
    for word in OBSERVABLES:
        assert kind_of(word, f"x = {word}") is Name.Builtin
    for word in (*COMPONENTS, *FUNCTION_COMPONENTS, *LETTERS):
        assert kind_of(word, f"x = {word}") is Name.Builtin.Pseudo
    for axis in (*REDUCED, *AGGREGATED):
        assert kind_of(axis, f"x = sum(y over {axis})") is Keyword.Type
    for kind in KINDS:
        assert kind_of(kind, f"data {kind}") is Name.Constant
    assert [kind for kind, part in kinds(SAMPLE) if part == "loss"] == [
        Name.Variable,
        Name,
        Keyword,
        Name,
    ]
    assert kind_of("to", SAMPLE) is Name and kind_of("sum", SAMPLE) is Name.Function
    assert [part for kind, part in kinds(SAMPLE) if kind is Name.Class] == ["mine", "dpo", "dpo", "rloo"]
    assert [part for kind, part in kinds(SAMPLE) if kind is Name.Label] == ["a", "b", "c", "d", "e"]
