"""Errors of use: each is a GroError in words, with a code, a place where there is one, and a way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import grolang
from grolang.compiler.method import from_source
from grolang.language.checker import check, check_file
from grolang.language.diagnostics import as_json, render
from grolang.language.ir import MethodIR
from grolang.language.library import built_in
from grolang.language.source import Source

HEAD = "method m\ndata prompts\nscore correct\nreward = correct\n"
PAIRS = "method m\ndata preference\nreward = label\n"
ALONE = "method m\ndata unpaired\nreward = label\n"

#: what is wrong, its code, and what the message must say
WRONG = [
    (HEAD + "credit = (1 + 2\n", "E101", "`)`"),
    (HEAD + "credit = 1 +\n", "E101", "an expression"),
    (HEAD + "credit = x ** 2\n", "E101", "`^`"),
    ("data prompts\nreward = 1\n", "E105", "method"),
    (HEAD + "credit = logpp\n", "E201", "did you mean `logp`"),
    (HEAD + "reward = 2\n", "E202", "twice"),
    (HEAD + "logp = 2\n", "E203", "observable"),
    (HEAD + "exp = 2\n", "E203", "function"),
    (HEAD + "param measure = 2\n", "E203", "component"),
    (HEAD + "a = b\nb = c\nc = a\ncredit = a\n", "E204", "a → b → c → a"),
    (HEAD + "credit = credit\n", "E204", "credit → credit"),
    (HEAD + "credit = exp\n", "E205", "exp(…)"),
    (HEAD + "credit = omega(2)\n", "E205", "component"),
    (HEAD + "credit = exp(1, 2)\n", "E206", "takes 1 argument"),
    (HEAD + "credit = clip(1, 2)\n", "E206", "clip(x, lo, hi)"),
    (HEAD + "credit = mean(logp over token)\n", "E207", "tokens"),
    ("method m\nreward = 1\n", "E209", "learns from"),
    ("method m\ndata prompts\n", "E209", "reward"),
    (PAIRS + "measure = sum(label over tokens)\n", "E301", "sequence"),
    (HEAD + "credit = mean(group_size over group)\n", "E301", "group"),
    (HEAD + "credit = mean(1 over batch)\n", "E301", "one number"),
    (PAIRS + "credit = opposite(logp)\n", "E302", "sequence"),
    (PAIRS + "credit = chosen(group_size)\n", "E302", "group"),
    (HEAD + "credit = to_go(correct, 1)\n", "E302", "token"),
    (HEAD + "credit = to_go(logp, correct)\n", "E302", "one number"),
    (HEAD + "aggregate = sum over tokens\n", "E303", "sequence"),
    (HEAD + "aggregate = mean over sequences\n", "E303", "tokens"),
    (HEAD + "aggregate = sum over batch, sum over batch\n", "E303", "nothing is left"),
    (HEAD + "aggregate = max over batch\n", "E207", "max"),
    (HEAD + "credit = sum(logp)\n", "E304", "axis"),
    (HEAD + "credit = greedy(logp)\n", "E302", "token"),
    (HEAD + "credit = greedy(correct + length)\n", "E306", "scores only"),
    (HEAD + "credit = mismatched(correct)\n", "E307", "log-probs only"),
    (HEAD + "credit = label\n", "E401", "label"),
    (ALONE + "credit = mean(label over group)\n", "E402", "groups"),
    (ALONE + "credit = mean(label over others)\n", "E402", "groups"),
    (ALONE + "credit = group_size\n", "E402", "group"),
    (ALONE + "credit = opposite(label)\n", "E401", "preference"),
    (ALONE + "aggregate = sum over tokens, sum over group, sum over groups\n", "E303", "no groups"),
    ("method m\ndata preferences\nreward = label\n", "E403", "preference"),
    ("method m\ndata preference + prompts\nreward = label\n", "E403", "mixed"),
    ("method m\ndata prompts\nscore c = exact\nreward = c\n", "E405", "exact_match"),
    (HEAD + "param k = 3 in [0, 1]\ncredit = k\n", "E501", "bounds"),
    (HEAD + "param k = 0 in (0, 1]\ncredit = k\n", "E501", "bounds"),
    (HEAD + "param k = 0 in [1, -1]\ncredit = k\n", "E502", "smaller"),
    (HEAD + "upsilon(a) = -a\n", "E503", "falls"),
    (HEAD + "upsilon(a) = a ^ 2\n", "E503", "falls"),
    (HEAD + "group 2.5\n", "E504", "whole"),
    (HEAD + "credit = quantile(logp, 2 over tokens)\n", "E505", "0 and 1"),
    (HEAD + "aggregate = sum over batch / 0\n", "E505", "divide by 0"),
    (HEAD + "extends nowhere\n", "E601", "nowhere"),
]


@pytest.mark.parametrize(("text", "code", "says"), WRONG, ids=[f"{c}-{i}" for i, (_, c, _) in enumerate(WRONG)])
def test_a_mistake_has_one_finding_with_its_code_place_and_way_out(text: str, code: str, says: str) -> None:
    found = check(Source("m.gro", text))
    assert [finding.code for finding in found.errors] == [code], render(found.findings, found.sources)
    shown = render(found.errors, found.sources)
    assert says in shown, shown
    assert "m.gro:" in shown and "^" in shown
    assert found.errors[0].help, shown
    with pytest.raises(grolang.GroError):
        found.unwrap()


#: a mistake, the edit that the help names, and the same text after that edit
MENDED = [
    (HEAD + "law a unbiased\n", "write `:` before `unbiased`", HEAD + "law a: unbiased\n"),
    (HEAD + "law a: unbaised\n", "did you mean `unbiased`?", HEAD + "law a: unbiased\n"),
    (HEAD + "credit = 2length\n", "write `*` before `length`", HEAD + "credit = 2*length\n"),
    (HEAD + "credit = 2 * / 3\n", "delete `/`", HEAD + "credit = 2 * 3\n"),
    (HEAD + "credit == 2\n", "delete `=`", HEAD + "credit = 2\n"),
    (HEAD + "credit = |logp|\n", "write `abs(x)`", HEAD + "credit = abs(logp)\n"),
    (HEAD + "credit = length)\n", "delete `)`", HEAD + "credit = length\n"),
    (HEAD + "credit = mean(logp, over tokens)\n", "delete the comma", HEAD + "credit = mean(logp over tokens)\n"),
    (HEAD + "credit = logp over tokens\n", "into a call: `mean(x over", HEAD + "credit = mean(logp over tokens)\n"),
    (HEAD + "credit = max(length, 2, 3)\n", "`max(max(a, b), c)`", HEAD + "credit = max(max(length, 2), 3)\n"),
    (
        HEAD + "credit = quantile(logp over batch)\n",
        "(x, q over batch)",
        HEAD + "credit = quantile(logp, 0 over batch)\n",
    ),
    (HEAD + "param k = 1 in (0 2)\ncredit = k\n", "`,` before `2`", HEAD + "param k = 1 in (0, 2)\ncredit = k\n"),
    (HEAD + "omega(z, a) = z\n", "one argument", HEAD + "omega(z) = z\n"),
    (
        HEAD + "aggregate = sum over tokens / length, mean over sequences\n",
        "by `length` in `credit`",
        HEAD + "credit = 1 / length\n",
    ),
    (HEAD.replace("reward =", "Reward ="), "write `reward` for `Reward`", HEAD),
    (HEAD.replace("reward = correct\n", ""), "`reward = correct`", HEAD),
    ("method m\ndata demonstrations\n", "`reward = 1`", "method m\ndata demonstrations\nreward = 1\n"),
]


@pytest.mark.parametrize(("text", "edit", "mended"), MENDED, ids=[f"{i}" for i in range(len(MENDED))])
def test_the_edit_that_a_message_names_mends_the_file(text: str, edit: str, mended: str) -> None:
    (error,) = check(Source("m.gro", text)).errors
    assert edit in error.help
    assert not check(Source("m.gro", mended)).errors


def test_several_mistakes_are_reported_together_in_the_order_of_the_file() -> None:
    text = HEAD + "credit = logpp\nmeasure = sum(correct over tokens)\nalpha = exp(1, 2)\naggregate = sum over tokens\n"
    found = check(Source("m.gro", text))
    rows = json.loads(as_json(found.findings, found.sources))
    errors = [(row["code"], row["line"]) for row in rows if row["severity"] == "error"]
    assert errors == [("E201", 5), ("E301", 6), ("E206", 7), ("E303", 8)]


def test_one_mistake_that_spreads_gives_one_message() -> None:
    text = HEAD + "a = nothing_here\nb = a + 1\nmeasure = b\nanchor = mean(b over batch)\nomega(z) = z * b\n"
    assert [finding.code for finding in check(Source("m.gro", text)).errors] == ["E201"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"beta": 0.0}, "bounds"),
        ({"beta": -1.0}, "bounds"),
        ({"beta": float("inf")}, "bounds"),
        ({"beta": float("nan")}, "number"),
        ({"beta": True}, "number"),
        ({"beta": "0.1"}, "number"),
        ({"bta": 0.1}, "did you mean `beta`"),
    ],
)
def test_a_wrong_parameter_is_refused_in_words(settings: dict[str, float], says: str) -> None:
    with pytest.raises(grolang.GroError) as caught:
        grolang.load("dpo", **settings)
    assert says in str(caught.value)
    with pytest.raises(grolang.GroError):
        grolang.load("dpo").replace(**settings)


@pytest.mark.parametrize("name", ["dopo", "dpo.gro", "/nowhere/dpo.gro", ""])
def test_a_method_that_is_not_there_is_an_error_in_words(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(grolang.GroError) as caught:
        grolang.load(name)
    assert "E602" in str(caught.value)
    assert check_file(name).method is None


def test_a_file_that_is_not_utf8_is_an_error_in_words(tmp_path: Path) -> None:
    path = tmp_path / "bad.gro"
    path.write_bytes(b"method m\ndata prompts\nreward = \xff\n")
    with pytest.raises(grolang.GroError, match="E102"):
        grolang.load(path)


def test_a_file_that_extends_itself_shows_the_way_round(tmp_path: Path) -> None:
    (tmp_path / "a.gro").write_text("method a\nextends b\n")
    (tmp_path / "b.gro").write_text("method b\nextends a\n")
    with pytest.raises(grolang.GroError, match="E603"):
        grolang.load(tmp_path / "a.gro")


@pytest.mark.parametrize(
    "text",
    [
        "method m\ndata prompts\nreward = " + "(" * 5000 + "1" + ")" * 5000,
        "method m\ndata prompts\nreward = " + "-" * 50_000 + "1",
        "method m\ndata prompts\nreward = " + "not " * 50_000 + "1",
        "method m\ndata prompts\nreward = " + "1 + " * 20_000 + "1",
        "method m\ndata prompts\nreward = " + "2 ^ " * 5_000 + "1",
        "method m\ndata prompts\nreward = " + "1 if 1 else " * 5_000 + "1",
        "method m\ndata prompts\nreward = " + "1 < " * 20_000 + "1",
        "method m\ndata prompts\nreward = " + "exp(" * 500 + "1" + ")" * 500,
        "method m\ndata prompts\nreward = " + "9" * 10_000,
        "method m\n" + "x" * 400_000,
        "method m\n" + "\n".join(f"d{i} = 1" for i in range(5000)),
        "method m\ndata prompts\nreward = d900\nd0 = 1\n" + "\n".join(f"d{i} = d{i - 1} + 1" for i in range(1, 901)),
        "method m\ndata prompts\nreward = 1 / d40\nd0 = position\n"
        + "\n".join(f"d{i} = d{i - 1} + d{i - 1}" for i in range(1, 41)),
    ],
    ids=[
        "nested",
        "minus",
        "not",
        "sum",
        "power",
        "else",
        "chain",
        "calls",
        "digits",
        "long",
        "many",
        "definitions",
        "doubling",
    ],
)
def test_a_hostile_file_is_answered_within_bounds(text: str) -> None:
    """In time, and by a finding or a method: never a crash."""
    found = check(Source("m.gro", text))
    assert found.method is not None or found.errors
    if found.method is not None:
        assert from_source(Source("m.gro", text)).program.steps


@pytest.mark.parametrize("name", sorted(built_in()))
def test_a_built_in_method_survives_json_and_back(name: str) -> None:
    ir = grolang.load(name).ir
    assert MethodIR.model_validate_json(ir.model_dump_json()) == ir


def test_infinite_bounds_and_numbers_survive_json() -> None:
    text = HEAD + "param k = -inf\nparam j = 1 in (-inf, inf)\ncredit = min(inf, j) if k < -inf else -inf + inf\n"
    ir = from_source(Source("m.gro", text)).ir
    assert MethodIR.model_validate_json(ir.model_dump_json()) == ir


@pytest.mark.parametrize("name", sorted(built_in()))
def test_a_built_in_method_has_no_finding_but_what_its_paper_makes_it(name: str) -> None:
    """Warnings that tell of the published form (bias, an unbounded weight) are fine; dead code and domains are not."""
    codes = {finding.code for finding in check_file(name).findings}
    assert codes <= {"W702", "W703", "W706"}, codes
