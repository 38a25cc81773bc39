"""Table 1 of arXiv:2503.19523, row by row: ω, ε*, B and A of the files against the printed ones, errata marked.

The printed rows are those that the project's specification and notes hold; each departure is an erratum, named in the
method's file, and `tests/laws/test_equations.py` shows that the printed form breaks one of its laws.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import pytest

from grolang import explain
from grolang.explain import markdown, row
from grolang.language import library

#: the ratio of the policy to the old one where PPO's minimum takes it, 0 where it takes the clipped one
CLIP = "0 if ({A} > 0 and exp(z) > 1 + ε) or ({A} ≤ 0 and exp(z) < 1 − ε) else exp(z)"


@dataclass(frozen=True)
class Printed:
    """A row as printed; `here` holds the cells that depart from it, by their column."""

    omega: str
    anchor: str | None
    baseline: str
    advantage: str
    here: dict[str, str]


TABLE = {
    "rloo": Printed("1", None, "1/(|g| − 1) Σ_(j∈g∖i) R_j", "R_i − B_i", {}),
    "remax": Printed("1", None, "R_î", "R_i − B_g", {}),
    "grpo": Printed(
        CLIP.format(A="A_i"),
        "log π_old(y_it)",
        "Σ_(i∈g) R_i",
        "(R_i − B_g) / σ_g if σ_g > 0 else 0",
        {"baseline": "1/|g| Σ_(i∈g) R_i"},
    ),
    "reinforce_pp": Printed(
        CLIP.format(A="A_it"), "log π_old(y_it)", "1/N Σ_i Σ_t R_it", "(R_it − B) / σ_b if σ_b > 0 else 0", {}
    ),
    "dpo": Printed("β·σ(−z)", "Σ_t log(πθ(y_i′t) / π_ref(y_i′t))", "0", "R_i", {}),
    "cpl": Printed("β·σ(−z)", "Σ_t κ_i′t·log πθ(y_i′t)", "0", "R_i", {}),
    "kto": Printed("β·σ(z)·σ(−z)", "max(0, 1/S Σ_i Σ_t log(πθ(y_ĩt) / π_ref(y_ĩt)))", "0", "R_i", {}),
}

#: what a row says beside its cells where the print errs: the reward of REINFORCE++, the sign of α, the sum within σ
BESIDE = {
    "reinforce_pp": ("where", "− β·log(π_old(y_ik) / π_ref(y_ik))"),
    "dpo": ("z", "β·ℓ_i·("),
    "cpl": ("z", "β·ℓ_i·("),
    "kto": ("z", "(Σ_t log("),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_row_is_the_printed_one_but_for_its_errata(name: str) -> None:
    printed, found = TABLE[name], explain.page(name).row
    for column in ("omega", "anchor", "baseline", "advantage"):
        said, formula = getattr(printed, column), getattr(found, column)
        corrected = printed.here.get(column, said)
        assert (unicodedata.normalize("NFC", formula.text) if formula else None) == corrected, column
        assert column not in printed.here or corrected != said


def test_the_rows_that_depart_are_marked_and_say_why() -> None:
    departs = {name for name, printed in TABLE.items() if printed.here} | set(BESIDE)
    made = markdown.rendered(explain.table_of(list(TABLE)))
    marked = set(re.findall(r"^\| `(\w+)` † \|", made, re.MULTILINE))
    told = dict(re.findall(r"^- `(\w+)`: (.+)$", made, re.MULTILINE))
    assert marked == set(told) == departs
    assert "1/N is missing" in told["grpo"] and "wrong sign" in told["reinforce_pp"]
    assert "label's sign" in told["dpo"] and "label's sign" in told["cpl"] and "per token" in told["kto"]
    assert "†" not in markdown.rendered(explain.table_of(["rloo", "remax"]))


@pytest.mark.parametrize("name", BESIDE)
def test_an_erratum_beside_the_cells_is_mended_in_the_file(name: str) -> None:
    page = explain.page(name)
    where, part = BESIDE[name]
    texts = [page.row.z.text] if where == "z" and page.row.z else [line.text for line in page.estimator.where]
    assert any(part in text for text in texts), texts


def test_an_erratum_ends_with_its_sentence() -> None:
    text = "# A paper.\n# Erratum: it prints a sum;\n# it is a mean.\n# More.\nmethod m\n"
    assert row.erratum(text) == "it prints a sum; it is a mean."
    assert row.erratum("# A paper.\nmethod m\n") == "" == row.erratum("method m\n")
    marked = {name for name, source in library.built_in().items() if row.erratum(source.text)}
    assert marked == {"grpo", *BESIDE}
