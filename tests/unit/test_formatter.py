"""The formatter: canonical, idempotent, and no word, spelling or comment is lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lark import Tree

import grolang
from grolang.language import library
from grolang.language.diagnostics import GroError
from grolang.language.formatter import WIDTH, format_text
from grolang.language.source import Source
from grolang.language.syntax import parse, parser

METHODS = {name: source.text for name, source in library.built_in().items()}


def trees(text: str) -> list[object]:
    read = parse(Source("x.gro", text))
    assert not read.findings, read.findings
    return [_plain(statement.tree) for statement in read.statements]


def _plain(node: object) -> object:
    if isinstance(node, Tree):
        return str(node.data), [_plain(child) for child in node.children]
    return None if node is None else str(node)


def comments(text: str) -> list[str]:
    """Every comment in order; in the texts of this test `#` starts nothing else."""
    return [found.strip() for found in re.findall(r"#[^\n]*", re.sub(r'"[^"\n]*"', '""', text))]


def same(text: str) -> str:
    """The formatted text, after the promises were checked."""
    formatted = format_text(text)
    assert trees(formatted) == trees(text)
    assert comments(formatted) == comments(text)
    assert format_text(formatted) == formatted
    assert "\n\n\n" not in formatted and not formatted.startswith("\n")
    assert formatted == "" or (formatted.endswith("\n") and not formatted.endswith("\n\n"))
    assert not re.search(r"[ \t]$", formatted, re.M)
    return formatted


@pytest.mark.parametrize("name", sorted(METHODS))
def test_built_in_methods_are_in_canonical_form(name: str) -> None:
    assert format_text(METHODS[name]) == METHODS[name]


def test_spacing() -> None:
    text = same(
        'method   m"T"   # t\ndata   prompts+demonstrations\nparam β=-  .5 in[ -1,inf ) "h"\n'
        "reward=( a+b )*-c^-2/d if not(a<b<=c)else sum( x over   tokens)\nω ( z )=σ( - z )\n"
        "law  g :loss - logp aggregate mean over batch/3\nlaw e: equals dpo with a=1,b=-2 when c=0 , d=- - 1\n"
    )
    assert text == (
        'method m "T"  # t\ndata prompts + demonstrations\nparam β = -.5 in [-1, inf) "h"\n'
        "reward = (a + b) * -c ^ -2 / d if not (a < b <= c) else sum(x over tokens)\nω(z)   = σ(-z)\n"
        "law g: loss -logp aggregate mean over batch / 3\nlaw e: equals dpo with a = 1, b = -2 when c = 0, d = --1\n"
    )


def test_equals_signs_align_within_a_block_and_only_there() -> None:
    text = same(
        "method m\nparam a = 1\nparam long_one = 2\nreward=1\nmeasure=2\naggregate=mean over batch\n"
        "report a=1\nreport abc=2\n\nb=1\n# c\nlonger=1\nlaw x: unbiased\nlaw xyz: unbiased\n"
    )
    assert text == (
        "method m\nparam a = 1\nparam long_one = 2\nreward    = 1\nmeasure   = 2\naggregate = mean over batch\n"
        "report a   = 1\nreport abc = 2\n\nb = 1\n# c\nlonger = 1\nlaw x: unbiased\nlaw xyz: unbiased\n"
    )


def test_a_very_long_name_does_not_push_its_block_to_the_right() -> None:
    name = "n" * 40
    assert same(f"a=1\n{name}=2\nbc=3\n") == f"a  = 1\n{name} = 2\nbc = 3\n"


def test_continued_lines_are_joined_where_they_fit_and_broken_at_the_loosest_place() -> None:
    assert same("x = a\n  + b\n\n  + c\n") == "x = a + b + c\n"
    first, second = "mean(reward over group) * some_name_or_other +", f"clip({'a' * 15}, {'b' * 15}, {'c' * 30}) * d"
    assert same(f"x = {first} {second}") == f"x = {first}\n    {second}\n"


def test_a_line_of_exactly_the_width_stays_and_one_more_breaks() -> None:
    fits = "x = " + "a" * (WIDTH - 8) + " + b"
    assert len(fits) == WIDTH
    assert same(fits + "\n") == fits + "\n"
    assert same(fits + "b\n") == fits[: -len(" b")] + "\n    bb\n"


def test_comments_within_a_statement_keep_their_place() -> None:
    text = "x = a   # one\n\n  # two\n + b  # three\n        # four\ny = 1 # five\n   # six\n"
    assert same(text) == "x = a  # one\n    # two\n    + b  # three\n# four\ny = 1  # five\n# six\n"
    assert same("x # head\n = a\n") == "x  # head\n    = a\n"


def test_blank_lines_line_ends_and_empty_files() -> None:
    assert same("\n\n# a\n\n\n\nx = 1\r\n\r\n\r\ny = 2") == "# a\n\nx = 1\n\ny = 2\n"
    assert format_text("") == "" == format_text("\n \n")
    assert format_text("# only") == "# only\n"


def test_a_sign_that_looks_like_a_comment_stays_in_its_text() -> None:
    assert same('method m "a # b"\n') == 'method m "a # b"\n'


def test_a_text_that_does_not_parse_is_an_error_with_every_finding() -> None:
    with pytest.raises(GroError) as caught:
        format_text("method m\nx = \ny = 1 +\n", "mine.gro")
    assert [finding.code for finding in caught.value.diagnostics] == ["E101", "E101"]
    assert "mine.gro:2" in str(caught.value)


_BETWEEN = st.sampled_from([" ", "  ", "\n ", "\n\n\t", " # c\n  ", "\n  # own\n ", "\n# outer\n    "])
_TOKENS = {
    name: [
        [str(token) for token in parser().parse_interactive(s.source.text[s.start : s.end]).exhaust_lexer()]
        for s in parse(Source(name, text)).statements
    ]
    for name, text in METHODS.items()
}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(METHODS)))
def test_however_a_method_is_laid_out_its_tree_and_comments_stay(data: st.DataObject, name: str) -> None:
    lines = []
    for words in _TOKENS[name]:
        gaps = data.draw(st.lists(_BETWEEN, min_size=len(words) - 1, max_size=len(words) - 1))
        lines.append("".join(word + gap for word, gap in zip(words, [*gaps, ""])))
        lines += data.draw(st.sampled_from([[], [""], ["", ""], ["# between"], ["   # indented"]]))
    text = "\n".join(lines)
    assert trees(text) == trees(METHODS[name])
    same(text)


_LEAF = st.sampled_from(["a", "βeta", "1.5e-3", "label", "σ(x)", "f(a, b)", "mean(a over tokens)"])
_EXPRESSION = st.recursive(
    _LEAF,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "^", "<", ">=", "==", "and", "or"]), inner).map(" ".join),
        st.tuples(inner, inner, inner).map(lambda p: f"({p[0]} if {p[1]} else {p[2]})"),
        inner.map(lambda x: f"({x})"),
        inner.map(lambda x: f"- {x}"),
        st.tuples(inner, inner, inner).map(lambda p: f"clip({p[0]}, {p[1]}, {p[2]})"),
    ),
    max_leaves=40,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(_EXPRESSION, min_size=1, max_size=4))
def test_any_expression_keeps_its_tree_and_no_line_is_too_long(expressions: list[str]) -> None:
    text = "".join(f"{'n' * (3 * i + 1)} = {expression}\n" for i, expression in enumerate(expressions))
    formatted = same(text)
    assert max(map(len, formatted.split("\n"))) <= WIDTH


def test_the_formatter_is_torch_free() -> None:
    text = Path(grolang.__file__).parent.joinpath("language", "formatter.py").read_text(encoding="utf-8")
    assert "torch" not in text
