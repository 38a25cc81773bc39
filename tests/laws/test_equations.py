"""The table of the paper's equations in docs/maths.md: each law that it names is there, and each erratum is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import grolang
from grolang.compiler.method import from_source
from grolang.language.source import Source
from grolang.laws.check import check_law

PAGE = Path(__file__).resolve().parents[2] / "docs" / "maths.md"


def table(name: str) -> list[list[str]]:
    """The rows of a table of the page."""
    text = PAGE.read_text(encoding="utf-8").split(f"<!-- {name} -->")[1].split(f"<!-- end {name} -->")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()[2:]]


ROWS, NUMBERS = table("equations"), table("numbers")
LAWS = sorted({found for row in ROWS for found in re.findall(r"`(\w+: \w+)`", row[2])})


def test_the_table_is_read() -> None:
    assert len(ROWS) > 15 and all(len(row) == 4 for row in ROWS)
    assert {"Eq. 7", "Eq. 13", "Eq. 17", "Eq. 33", "Eq. 34", "Eq. 36"} <= {row[0] for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_equation_is_held_by_a_law_that_exists(row: list[str]) -> None:
    named = re.findall(r"`(\w+): (\w+)`", row[2])
    assert named, row
    for method, law in named:
        assert law in grolang.load(method).ir.laws, f"{method}: {law}"


def test_every_number_from_1_to_37_has_a_row_that_says_what_holds_it_or_that_it_was_not_seen() -> None:
    numbers: list[int] = []
    for place, statement, held in NUMBERS:
        first, last = (re.findall(r"\d+", place) * 2)[:2]
        numbers += range(int(first), int(last) + 1)
        assert held or "not seen" in statement
        for method, law in re.findall(r"`(\w+): (\w+)`", held):
            assert law in grolang.load(method).ir.laws, f"{method}: {law}"
    assert numbers == list(range(1, 38))


#: the printed form: method, what it says instead, and the law that then breaks
PRINTED = {
    "GRPO's mean is a sum": ("grpo", "baseline = sum(reward over group)", "shift"),
    "Eq. 13 adds the KL reward": (
        "reinforce_pp",
        "reward = to_go(terminal(correct) + beta * (logp_old - logp_ref), 1)",
        "kl_reward",
    ),
    "Eq. 13 has no weight": (
        "reinforce_pp",
        "reward = to_go(terminal(correct) - (logp_old - logp_ref), 1)",
        "kl_reward",
    ),
    "Table 1 gives DPO's alpha no sign": ("dpo", "alpha = beta", "weight"),
    "Table 1 gives CPL's alpha no sign": ("cpl", "alpha = beta", "gradient"),
}


def changed(name: str, line: str) -> grolang.Method:
    """A built-in method, laws and all, with one line said otherwise."""
    word = line.split(" = ")[0]
    method = grolang.load(name)
    text, count = re.subn(rf"^{word} *=.*$", line, method.sources[method.path].text, flags=re.MULTILINE)
    assert count == 1
    return from_source(Source("printed.gro", text))


@pytest.mark.parametrize("name", PRINTED)
def test_the_printed_form_breaks_the_law(name: str) -> None:
    parent, line, law = PRINTED[name]
    published, printed = grolang.load(parent), changed(parent, line)
    assert check_law(published.ir.laws[law], published, examples=30).good
    assert check_law(printed.ir.laws[law], printed).outcome == "failed"


def test_in_kto_the_sign_of_alpha_does_not_matter() -> None:
    """Its ω is even: Table 1's erratum is one of DPO and CPL."""
    printed = changed("kto", "alpha = beta")
    assert check_law(printed.ir.laws["weight"], printed).good


def test_eq_17_with_the_sigmoid_of_each_token_is_not_kto() -> None:
    text = """method printed
data unpaired
param beta = 0.1
reward = label
measure = logp - logp_ref
anchor = max(0, mean(mismatched(sum(logp - logp_ref over tokens)) over batch))
alpha = beta * label
omega(z) = beta * sigmoid(z) * sigmoid(-z)
law whole: equals kto
"""
    printed = from_source(Source("printed.gro", text))
    assert check_law(printed.ir.laws["whole"], printed).outcome == "failed"
