"""The table of faults still fits the code, and the page shows that each is found."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.mutants.run import BLIND, PAGE, ROOT, SURVIVED, rows_of
from tests.mutants.table import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_can_still_be_put_in(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"write {mutant.name} in tests/mutants/table.py anew"
    changed = text.replace(mutant.old, mutant.new)
    assert changed != text
    if mutant.file.endswith(".py"):
        ast.parse(changed)
    assert mutant.hint and all((ROOT / hint.split("::")[0]).exists() for hint in mutant.hint)


def test_names_are_names_and_this_file_is_left_out() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 60
    assert all(re.fullmatch(r"[a-z_]+", name) for name in names)
    assert Path(__file__).resolve() == ROOT / BLIND


def test_the_page_shows_every_fault_of_the_table_and_none_survives() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert list(rows_of(text)) == [mutant.name for mutant in MUTANTS], "run `python tests/mutants/run.py NAME`"
    assert SURVIVED not in text
