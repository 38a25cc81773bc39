"""The parser never shows itself raw: every state has words, and any text at all gives a result or findings."""

from __future__ import annotations

import random
import time

import lark
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.lark import from_lark

from grolang.language import library, tables
from grolang.language.checker import Checked, check
from grolang.language.diagnostics import as_json, render
from grolang.language.source import Source, Span, statements
from grolang.language.syntax import MAX_BYTES, MAX_STATEMENTS, parser, wording

START = "method m\ndata prompts\nscore r = exact_match\nreward = r\n"


SECONDS = 600  # what grows too fast takes hours; `benchmarks/check.py` holds the slowest text against the clock


def checked(text: str) -> Checked:
    """The outcome of a check, rendered both ways, before long."""
    start = time.process_time()
    found = check(Source("any.gro", text))
    render(found.findings, found.sources)
    as_json(found.findings, found.sources)
    assert time.process_time() - start < SECONDS
    return found


def test_a_quoted_statement_loses_its_comments_and_keeps_its_texts() -> None:
    text = 'param beta = 0.1  # of "DPO"\n  "the #1 knob" # and more'
    shown = Source("any.gro", text).quoted(Span(file="any.gro", start=0, end=len(text)))
    assert shown == 'param beta = 0.1 "the #1 knob"'


def test_every_state_of_the_parser_has_a_wording_without_names_of_terminals() -> None:
    table = parser().parser.parser._parse_table  # type: ignore[attr-defined]
    states = {frozenset(name for name in row if name.isupper() or name == "$END") for row in table.states.values()}
    assert len(states) > 20
    for accepted in states - {frozenset()}:
        words = wording(accepted)
        outside = "".join(words.split("`")[::2])  # what is quoted is the language's own
        assert words and "__" not in words
        assert not any(word.isupper() and len(word) > 1 for word in outside.split()), words


def test_the_written_tables_are_those_of_the_grammar_and_parse_alike() -> None:
    from grolang.grammar import tables as found

    assert tables.digest() == found.GRAMMAR, "run `python -m grolang.language.tables`"
    written, built = tables.load(), tables.build()
    for name, source in library.built_in().items():
        for start, end in statements(source.text):
            text = source.text[start:end]
            assert written.parse(text) == built.parse(text), name


def test_another_version_of_lark_builds_the_grammar_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lark, "__version__", "0")
    assert tables.load().parse("anchor = 1") == parser().parse("anchor = 1")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(from_lark(tables.build(), start="statement"))
def test_any_statement_of_the_grammar_is_checked(statement: str) -> None:
    checked(START + " ".join(statement.split("\n")) + "\n")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_checked(text: str) -> None:
    checked(text)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(library.built_in())), st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_a_mutated_method_is_checked(name: str, seed: int, changes: int) -> None:
    draw, raw = random.Random(seed), bytearray(library.built_in()[name].text.encode())
    for _ in range(changes):
        place = draw.randrange(len(raw))
        match draw.randrange(3):
            case 0:
                raw[place] = draw.randrange(256)
            case 1:
                del raw[place : place + draw.randrange(1, 12)]
            case _:
                raw[place:place] = raw[place : place + draw.randrange(1, 40)]
    checked(raw.decode("utf-8", "replace"))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("#" * (MAX_BYTES + 1), id="more bytes than the limit"),
        pytest.param("a = 1\n" * (MAX_STATEMENTS + 1), id="more statements than the limit"),
        pytest.param(START + "anchor = " + "(" * 5000 + "1" + ")" * 5000, id="parentheses"),
        pytest.param(START + "anchor = " + "-" * 50_000 + "1", id="signs"),
        pytest.param(START + "anchor = " + "1 ^ " * 20_000 + "1", id="powers"),
        pytest.param(START + "anchor = " + "1 if 1 else " * 10_000 + "1", id="branches"),
        pytest.param(START + "anchor = " + "not " * 10_000 + "1", id="nots"),
        pytest.param(START + "anchor = " + "1 + " * 20_000 + "1", id="a long sum"),
        pytest.param(START + "anchor = " + "9" * 100_000, id="digits"),
        pytest.param(START + "anchor = min(" + "1, " * 30_000 + "1)", id="arguments"),
    ],
)
def test_a_text_past_a_limit_is_one_error(text: str) -> None:
    found = checked(text)
    assert [finding.code for finding in found.errors] in (["E104"], ["E206"])


def test_a_chain_of_definitions_past_the_limit_is_one_error_and_below_it_none() -> None:
    def chain(steps: int) -> str:
        lines = [f"x{n} = x{n - 1} + 1" for n in range(steps, 0, -1)]
        return START + "\n".join(lines) + f"\nx0 = length\nanchor = x{steps}\nomega(z) = sigmoid(z)\n"

    assert not checked(chain(60)).errors
    assert [finding.code for finding in checked(chain(300)).errors] == ["E104"]


@pytest.mark.parametrize(
    "line",
    [
        "anchor = " + " < ".join(["length"] * 90),
        "anchor = " + "(" * 60 + "r" + " and r)" * 60,
        "anchor = " + "(r if r > " * 25 + "0" + " else 0)" * 25,
        "x0 = r\n"
        + "\n".join(f"x{n} = x{n - 1} if x{n - 1} > 0 else x{n - 1} + 1" for n in range(1, 40))
        + "\nanchor = x39",
        "\n".join(f"x{n} = unknown{n}" for n in range(1900)),
        "extends " + "a" * 300,
        "law l: equals " + "a" * 300,
        "group 1e400",
        "credit = 1 / length ^ (-inf)",
        "param q = 1.5\nbaseline = quantile(r, q over group)",
    ],
)
def test_what_once_was_slow_or_crashed_is_checked(line: str) -> None:
    checked(f"{START}{line}\n")


def test_a_keyword_ends_where_its_word_ends() -> None:
    for line in ("law l: lossx", "anchor = 1 if r elsex", "anchor = sum(logp overtokens)"):
        assert "E101" in [finding.code for finding in checked(f"{START}{line}\n").errors], line


def test_texts_and_comments_do_not_count_against_the_limits() -> None:
    quiet = "(" * 150 + "1" * 60
    assert not checked(f'method m "{quiet}"\ndata preference\nreward = label # {quiet}\n').errors


def test_control_characters_of_a_file_do_not_reach_the_terminal() -> None:
    found = checked("method m\ndata preference\nreward = lable # \x1b[31m \u202e\n")
    assert not any(char in render(found.findings, found.sources) for char in "\x1b\u202e")


def test_definitions_that_double_each_other_are_checked() -> None:
    lines = ["a0 = length"] + [f"a{n} = a{n - 1} + a{n - 1}" for n in range(1, 60)]
    assert not checked(START + "\n".join(lines) + "\nanchor = a59\nomega(z) = sigmoid(z)\n").errors
