"""Pages: every built-in method has one in every form, and what it says is so."""

from __future__ import annotations

import io
import math
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import grolang
from grolang import explain
from grolang.explain import curves, fonts, html, latex, markdown, terminal
from grolang.explain.document import Document, Words
from grolang.explain.facts import bias
from grolang.explain.notation import GREEK
from grolang.language import library
from grolang.language.checker import check
from grolang.language.source import Source

NAMES = sorted(library.built_in())


def text(words: Words) -> str:
    return "".join(getattr(word, "text", getattr(word, "name", word)) for word in words)  # type: ignore[misc]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_a_page_in_every_form(name: str) -> None:
    page = explain.page(name)
    document = page.document(plots=False)
    assert {"Estimator", "Row of Table 1", "What a step costs", "Facts"} <= {part.title for part in document.sections}
    made = html.rendered(document)
    assert "<math" in made and "https://" not in made.split("<body>")[0] and "src=" not in made
    ElementTree.fromstring(re.sub(r"&\w+;", "", made.removeprefix("<!doctype html>")))
    plain = markdown.rendered(document)
    assert plain.startswith("# ") and plain.count("$$") % 2 == 0
    article = latex.rendered(document)
    assert article.count(r"\begin{") == article.count(r"\end{")
    assert all(ord(char) < 0x100 for char in article), "pdflatex reads Latin-1 and commands"
    assert "ĝ = " in terminal.plain(document)


def test_a_page_takes_a_file_a_text_a_method_and_parameters(tmp_path: Path) -> None:
    path = tmp_path / "mine.gro"
    path.write_text('# Mine (2025).\nmethod mine "Mine"\nextends dpo\n', encoding="utf-8")
    assert explain.page(path).name == "mine"
    assert text(explain.page(path).relatives[0]) == "Extends dpo."
    loaded = grolang.load("dpo", beta=0.25)
    for page in (
        explain.page(loaded),
        explain.page("dpo", beta=0.25),
        explain.page(loaded.sources[loaded.path], beta=0.25),
    ):
        assert page.estimator.parameters[0].sign.text == "β = 0.25"
    with pytest.raises(grolang.GroError, match="no parameter"):
        explain.page("dpo", betta=1)


def test_a_section_is_a_piece_of_another_page() -> None:
    piece = html.fragment(explain.page("kto").section("estimator"))
    assert piece.startswith("<h2>Estimator</h2>") and "<style" not in piece and "<math" in piece
    assert "@font-face" in html.style()


# --- what it says -----------------------------------------------------------------------------------------------------

BIASES = {
    "reinforce": "unbiased",
    "rloo": "unbiased",
    "remax": "unbiased",
    "grpo": "biased",
    "ppo": "biased",
    "dpo": "–",
    "sft": "–",
}


@pytest.mark.parametrize("name", BIASES)
def test_the_bias_of_a_known_method(name: str) -> None:
    found = check(library.built_in()[name])
    assert bias(found.unwrap(), found.findings).word == BIASES[name]


@pytest.mark.parametrize("name", [name for name in NAMES if grolang.load(name).data == ("prompts",)])
def test_no_law_of_unbiasedness_contradicts_the_page(name: str) -> None:
    """What is called unbiased is, on a policy that can be enumerated; what has no word for it is not asked."""
    found = check(library.built_in()[name])
    if bias(found.unwrap(), found.findings).word == "unbiased":
        from grolang.laws.unbiased import bias as measured

        assert measured(grolang.load(name), 0).unbiased


def test_a_reward_that_others_decide_has_no_word_for_its_bias() -> None:
    lines = "method m\ndata prompts\nscore r\nreward = r - mean(r over others)\n"
    found = check(Source("m.gro", lines))
    assert bias(found.unwrap(), found.findings).word == "–"


def test_a_weight_by_length_is_no_unbiased_estimate() -> None:
    lines = (
        "method m\ndata prompts\nscore correct\nreward = correct\naggregate = mean over tokens, mean over sequences\n"
    )
    found = check(Source("m.gro", lines))
    assert bias(found.unwrap(), found.findings).word == "weighted"


def test_the_cost_of_a_step_names_every_pass() -> None:
    kto, remax, dpo = (dict(explain.page(name).cost) for name in ("kto", "remax", "dpo"))
    assert kto["reference model"] == "1 pass over every sequence and over the mismatched ones"
    assert "without gradient" in kto["policy, mismatched"]
    assert remax["greedy completions"] == "1 per prompt" and remax["a coefficient is known"] == "before the policy runs"
    assert "policy, without gradient" in dpo and "policy, without gradient" not in remax
    assert dict(explain.page("grpo").cost)["completions drawn"] == "8 per prompt"
    assert "reference model" not in dict(explain.page("grpo", beta=0).cost)


def test_relatives_are_told_from_both_sides() -> None:
    rows = [text(row) for row in explain.page("dpo").relatives]
    assert any(row.startswith("Extended by cdpo") for row in rows)
    assert any(row.startswith("cpl equals dpo with gamma = 1 where log π_ref(y_it) is 0") for row in rows)
    mine = [text(row) for row in explain.page("cpl").relatives]
    assert "It equals dpo with gamma = 1 where log π_ref(y_it) is 0 (law is_dpo)." in mine


def test_facts_tell_ranges_and_invariances() -> None:
    rows = [text(row) for row in explain.page("dpo").facts]
    assert "ω(z) lies in (0, 0.1) at these parameters, falling." in rows
    assert any(row.startswith("No coefficient changes where log π_ref(y_it) is replaced by") for row in rows)
    assert "With beta = 0 it needs no reference model." in [text(row) for row in explain.page("grpo").facts]


# --- curves -----------------------------------------------------------------------------------------------------------


def test_the_curve_of_omega_is_what_the_compiler_computes() -> None:
    method = grolang.load("dpo")
    plot = curves.omega(method.ir)
    assert plot is not None and [curve.label for curve in plot.curves] == [""]
    for z, weight in zip(plot.curves[0].x, plot.curves[0].y):
        assert math.isclose(weight, 0.1 / (1 + math.exp(z)), rel_tol=1e-9)


def test_a_clip_is_within_the_curve_and_tells_good_from_bad() -> None:
    plot = curves.omega(grolang.load("grpo").ir)
    assert plot is not None
    good, bad = plot.curves
    assert -1.5 < good.x[0] < math.log(0.8) < math.log(1.2) < good.x[-1] < 1.5
    assert good.y[-1] == 0 < good.y[0] and bad.y[0] == 0 < bad.y[-1]
    narrow = curves.omega(grolang.load("gspo").ir)
    assert narrow is not None and narrow.curves[0].x[-1] < 0.01


def test_a_weight_that_changes_its_sign_is_drawn_past_that_place() -> None:
    plot = curves.omega(grolang.load("ipo").ir)
    assert plot is not None and min(plot.curves[0].y) < 0 < max(plot.curves[0].y)


def test_what_is_no_function_of_z_is_not_drawn() -> None:
    assert curves.omega(grolang.load("rloo").ir) is None
    assert curves.omega(grolang.load("gmpo").ir) is None
    assert curves.upsilon(grolang.load("dpo").ir) is None
    held = curves.omega(grolang.load("r_dpo").ir)
    assert held is not None and held.note == "with longer at 0"


@pytest.mark.parametrize("omega", ["1 / z", "exp(z ^ 4)"])
def test_a_curve_that_is_not_finite_everywhere_has_gaps(omega: str) -> None:
    text = f"method m\ndata unpaired\nreward = label\nmeasure = sum(logp over tokens)\nomega(z) = {omega}\n"
    page = explain.page(Source("m.gro", text))
    assert not all(map(math.isfinite, page.plots["omega"].curves[0].y))
    assert "ω(z)" in terminal.plain(page.document(plots=False), page.plots.values())


def test_the_coefficient_curve_passes_through_the_coefficients() -> None:
    plot = curves.coefficient(grolang.load("dpo"))
    good, bad = plot.curves
    middle = len(good.x) // 2
    assert good.x[middle] == 0 and math.isclose(good.y[middle], 0.05) and math.isclose(bad.y[middle], -0.05)
    assert good.y[0] > good.y[-1] >= 0


@pytest.mark.parametrize("name", ["grpo", "kto", "sft", "remax"])
def test_figures_are_svg_of_their_own(name: str) -> None:
    pytest.importorskip("matplotlib")
    for figure in explain.page(name).figures.values():
        ElementTree.fromstring(figure.svg.replace("xlink:href", "href"))
        assert "currentColor" in figure.svg and "#000000" not in figure.svg


def test_two_figures_on_a_page_share_no_ids() -> None:
    pytest.importorskip("matplotlib")
    made = html.rendered(explain.page("dpo").document())
    ids = re.findall(r'\bid="([^"]+)"', made)
    assert len(ids) == len(set(ids)) > 3


# --- what is missing -------------------------------------------------------------------------------------------------


def test_without_matplotlib_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(grolang.GroError, match=r"matplotlib(.|\n)*pip install 'grolang\[explain\]'(.|\n)*--no-plots"):
        explain.page("dpo").figures  # noqa: B018


def test_without_math_core_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from grolang.explain import mathml

    mathml._converter.cache_clear()
    monkeypatch.setitem(sys.modules, "math_core", None)
    with pytest.raises(grolang.GroError, match=r"math-core(.|\n)*pip install 'grolang\[explain\]'"):
        html.rendered(explain.page("dpo").document(plots=False))
    mathml._converter.cache_clear()


def test_the_font_has_every_sign_that_formulas_use() -> None:
    ttlib = pytest.importorskip("fontTools.ttLib")
    data = (library.files("grolang.explain") / "math.woff").read_bytes()
    known = set(ttlib.TTFont(io.BytesIO(data)).getBestCmap())
    used: set[str] = set()
    for name in NAMES:
        made = html.rendered(explain.page(name).document(plots=False))
        for formula in re.findall(r"<math.*?</math>", made, re.DOTALL):
            used |= set(re.sub(r"<[^>]*>|&\w+;", "", formula))
    missing = {char for char in used if ord(char) not in known and not char.isspace()} - {"\ufe00"}  # a variant
    assert not missing, missing
    assert set(map(ord, GREEK.values())) <= known
    assert fonts.NAME == "Grolang Math"


def test_the_table_has_a_row_for_each_method() -> None:
    document: Document = explain.table_of(["rloo", "dpo"])
    made = markdown.rendered(document)
    assert "| `rloo` | $1$ | – | – |" in made and "| unbiased | sum over tokens, mean over sequences |" in made
