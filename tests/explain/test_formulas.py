"""Formulas mean what the expression means: every word has a spelling, and parentheses stand where they must."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import Phase, given, settings

import grolang
import grolang.testing
from grolang.compiler.execute import Run
from grolang.compiler.lowering import Lowering, estimator
from grolang.compiler.program import Builder, Program
from grolang.explain import notation
from grolang.explain.estimator import estimator as formulas
from grolang.explain.estimator import slope
from grolang.explain.formula import Formula, tightened
from grolang.explain.printer import Printer
from grolang.language import library
from grolang.language.checker import check
from grolang.language.facts import value
from grolang.language.functions import FORMS, FUNCTIONS, OBSERVABLES, REDUCTIONS
from grolang.language.ir import Call, Expr, MethodIR, Number, Parameter, constant
from grolang.language.scopes import Scope
from grolang.language.source import Source, Span

NAMES = sorted(library.built_in())
NOWHERE = Span(file="", start=0, end=0)


def method(lines: str, data: str = "prompts\nscore correct") -> MethodIR:
    return check(Source("m.gro", f"method m\ndata {data}\n{lines}\n")).unwrap()


def shown(lines: str, name: str = "reward", data: str = "prompts\nscore correct") -> tuple[str, str]:
    """A definition's body in LaTeX and in text."""
    made = method(lines, data)
    formula = Printer(made).of(made.definitions[name].body).tight()
    return formula.latex, formula.text


# --- the tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "table"),
    [
        (FUNCTIONS, notation.FUNCTIONS),
        (REDUCTIONS, notation.REDUCTIONS),
        (FORMS, notation.FORMS),
        (OBSERVABLES, notation.OBSERVABLES),
    ],
    ids=["functions", "reductions", "forms", "observables"],
)
def test_every_word_of_the_language_has_a_spelling(words: dict[str, Any], table: dict[str, Any]) -> None:
    assert set(words) == set(table)


def test_every_component_has_a_sign() -> None:
    made = method("reward = correct")
    assert {*made.definitions, *made.functions} <= set(notation.COMPONENTS)


def test_a_word_without_a_row_is_written_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(notation.FUNCTIONS, "tanh")
    assert shown("reward = tanh(correct)") == (r"\operatorname{tanh}(\mathrm{correct}_{i})", "tanh(correct_i)")


# --- what single expressions look like ------------------------------------------------------------------------------

SPELLED = {
    "sum(logp over tokens)": (r"\sum_{t} \log \pi_\theta(y_{i,t})", "Σ_t log πθ(y_it)"),
    "sum(logp - logp_ref over tokens)": (
        r"\sum_{t} \log \frac{\pi_\theta(y_{i,t})}{\pi_{\mathrm{ref}}(y_{i,t})}",
        "Σ_t log(πθ(y_it) / π_ref(y_it))",
    ),
    "mean(correct over others)": (
        r"\frac{1}{\lvert g\rvert - 1} \sum_{j \in g \setminus i} \mathrm{correct}_{j}",
        "1/(|g| − 1) Σ_(j∈g∖i) correct_j",
    ),
    "sum(own(correct) > correct over others)": (
        r"\sum_{j \in g \setminus i} \mathbf{1}[\mathrm{correct}_{i} > \mathrm{correct}_{j}]",
        "Σ_(j∈g∖i) 1[correct_i > correct_j]",
    ),
    "mean(correct over group)": (
        r"\frac{1}{\lvert g\rvert} \sum_{i \in g} \mathrm{correct}_{i}",
        "1/|g| Σ_(i∈g) correct_i",
    ),
    "correct - mean(correct over batch)": (
        r"\mathrm{correct}_{i} - \frac{1}{S} \sum_{j} \mathrm{correct}_{j}",
        "correct_i − 1/S Σ_j correct_j",
    ),
    "mean(logp over batch)": (
        r"\frac{1}{N} \sum_{i} \sum_{t} \log \pi_\theta(y_{i,t})",
        "1/N Σ_i Σ_t log πθ(y_it)",
    ),
    "logp - mean(logp over tokens)": (
        r"\log \pi_\theta(y_{i,t}) - \frac{1}{\lvert y_{i}\rvert} \sum_{k} \log \pi_\theta(y_{i,k})",
        "log πθ(y_it) − 1/|y_i| Σ_k log πθ(y_ik)",
    ),
    "quantile(correct, 0.5 over group)": (
        r"\operatorname{quantile}_{0.5; i \in g}(\mathrm{correct}_{i})",
        "quantile_(0.5; i∈g)(correct_i)",
    ),
    "greedy(correct)": (r"\mathrm{correct}_{\hat{\imath}}", "correct_î"),
    "mismatched(sum(terminal(1) * logp over tokens))": (
        r"\sum_{t} \mathbf{1}[t = \lvert y_{\tilde{\imath}}\rvert - 1]\,1\,\log \pi_\theta(y_{\tilde{\imath},t})",
        "Σ_t 1[t = |y_i\u0303| − 1]·1·log πθ(y_i\u0303t)",
    ),
    "to_go(terminal(correct), 0.9)": (
        r"\sum_{k \ge t} 0.9^{k - t}\,\mathbf{1}[k = \lvert y_{i}\rvert - 1]\,\mathrm{correct}_{i}",
        "Σ_(k≥t) 0.9^(k−t)·1[k = |y_i| − 1]·correct_i",
    ),
    "to_go(logp, 1)": (r"\sum_{k \ge t} \log \pi_\theta(y_{i,k})", "Σ_(k≥t) log πθ(y_ik)"),
    "3e-6 * correct": (r"3 \cdot 10^{-6}\,\mathrm{correct}_{i}", "3·10^-6·correct_i"),
    "correct * 2": (r"\mathrm{correct}_{i} \cdot 2", "correct_i·2"),
    "-(correct + 1) ^ 2": (r"-{(\mathrm{correct}_{i} + 1)}^{2}", "−(correct_i + 1)^2"),
    "correct - (1 - length)": (r"\mathrm{correct}_{i} - (1 - \lvert y_{i}\rvert)", "correct_i − (1 − |y_i|)"),
    "-correct * length": (r"-\mathrm{correct}_{i}\,\lvert y_{i}\rvert", "−correct_i·|y_i|"),
    "correct > 0 and not length < 3": (
        r"\mathbf{1}[\mathrm{correct}_{i} > 0 \land \lvert y_{i}\rvert \ge 3]",
        "1[correct_i > 0 and |y_i| ≥ 3]",
    ),
    "(sum(logp over tokens)) * correct": (
        r"\left(\sum_{t} \log \pi_\theta(y_{i,t})\right)\,\mathrm{correct}_{i}",
        "(Σ_t log πθ(y_it))·correct_i",
    ),
}


@pytest.mark.parametrize("text", SPELLED)
def test_an_expression_is_written_as_a_paper_would(text: str) -> None:
    latex, plain = SPELLED[text]
    found = shown(f"reward = {text}")
    assert (found[0], found[1].replace("i\u0302", "î")) == (latex, plain)


def test_forms_of_pairs_move_the_index() -> None:
    lines = "m = sum(logp over tokens)\nreward = label\nd = chosen(m) - rejected(m)\ne = m - opposite(m)"
    assert shown(lines, "d", "preference") == ("m_{w} - m_{l}", "m_w − m_l")
    assert shown(lines, "e", "preference") == ("m_{i} - m_{i'}", "m_i − m_i′")


def test_cases_are_laid_out_one_below_the_other() -> None:
    latex, text = shown("reward = 1 if correct > 0 else 2 if correct < 0 else 3")
    rows = r"1 & \text{if } \mathrm{correct}_{i} > 0 \\ 2 & \text{if } \mathrm{correct}_{i} < 0 \\ 3 & \text{otherwise}"
    assert latex == rf"\begin{{cases}} {rows} \end{{cases}}"
    assert text == "1 if correct_i > 0 else 2 if correct_i < 0 else 3"


def test_a_bound_letter_is_never_one_that_is_taken() -> None:
    _, text = shown("param t = 1\nparam j = 2\nreward = mean(logp * t over tokens) + j * sum(correct over others)")
    assert text == "1/|y_i| Σ_k log πθ(y_ik)·t + j·Σ_(n∈g∖i) correct_n"


def test_a_sign_of_the_legend_is_one_in_both_spellings() -> None:
    made = formulas(method("reward = group_size if length > 2 else correct"))
    signs = {(row.sign.latex, row.sign.text) for row in made.signs}
    assert signs == {(r"\lvert g\rvert", "|g|"), (r"\lvert y_{i}\rvert", "|y_i|"), ("S", "S")}


def test_parentheses_grow_only_around_what_is_tall() -> None:
    assert tightened(r"\left(a + \left\lvert b\right\rvert\right)") == r"(a + \lvert b\rvert)"
    assert tightened(r"\left(\frac{a}{\left(b\right)}\right)") == r"\left(\frac{a}{(b)}\right)"


# --- round trips ----------------------------------------------------------------------------------------------------

PARAMETERS = method("param p = 0.7\nparam q = -1.3\nparam r = 2.5\nreward = correct")
P, Q, R = (Parameter(scope=Scope.CONST, span=NOWHERE, name=name) for name in "pqr")
ZERO, TWO = (Number(scope=Scope.CONST, span=NOWHERE, value=value) for value in (0.0, 2.0))
ARITHMETIC = ("add", "subtract", "multiply", "divide", "power", "negate")


def call(function: str, *arguments: Expr) -> Call:
    return Call(scope=Scope.CONST, span=NOWHERE, function=function, arguments=arguments)


def nested(names: Iterable[str]) -> Iterator[Call]:
    """Each function in each argument of each other, and once more around that: where parentheses decide."""
    words = list(names)
    for outer in words:
        for inner in words:
            inside = call(inner, *(R, TWO, Q)[: len(FUNCTIONS[inner].arguments)])
            for place in range(len(FUNCTIONS[outer].arguments)):
                for first in (P, ZERO):  # a 0 decides between `and` and `or`
                    arguments: list[Expr] = [first, R, Q][: len(FUNCTIONS[outer].arguments)]
                    arguments[place] = inside
                    yield call(outer, *arguments)


class Indicator:
    """`1[condition]`"""

    def __getitem__(self, holds: object) -> float:
        return float(bool(holds))


def evaluated(text: str) -> float:
    """The value of a formula in plain text, read by Python's own grammar."""
    for sign, python in (("·", " * "), ("−", "-"), ("^", "**"), ("≤", "<="), ("≥", ">="), ("≠", "!="), ("√", "sqrt")):
        text = text.replace(sign, python)
    text = re.sub(r" = ", " == ", text.replace("log σ", "logsigmoid").replace("σ", "sigmoid")).replace("1[", "one[")
    names: dict[str, Any] = {row.name: row.number for row in FUNCTIONS.values()}
    names |= {"p": 0.7, "q": -1.3, "r": 2.5, "one": Indicator()}
    return float(eval(text, names))


@pytest.mark.parametrize("around", ["", "multiply", "subtract", "power", "negate"])
def test_the_text_of_a_formula_read_by_python_has_the_value_of_the_expression(around: str) -> None:
    told = 0
    for inside in nested(FUNCTIONS):
        expr = call(around, *(inside, P)[: len(FUNCTIONS[around].arguments)]) if around else inside
        expected = value(expr, PARAMETERS, {})
        if isinstance(expected, float) and math.isfinite(expected) and abs(expected) < 1e12:
            told += 1
            text = Printer(PARAMETERS).of(expr).text
            assert math.isclose(evaluated(text), expected, rel_tol=1e-6, abs_tol=1e-9), text
    assert told > 500


def visible(latex: str) -> str:
    """Without the braces around the base of a power: nobody sees them."""
    while (end := latex.find("}^")) >= 0:
        start = max(place for place in range(end) if latex[place:end].count("{") - latex[place:end].count("}") == 1)
        latex = latex[:start] + latex[start + 1 : end] + latex[end + 1 :]
    return latex


def test_the_latex_of_a_formula_read_by_sympy_has_the_value_of_the_expression() -> None:
    from sympy import Symbol
    from sympy.parsing.latex import parse_latex

    numbers = {Symbol("p"): 0.7, Symbol("q"): -1.3, Symbol("r"): 2.5}
    for expr in nested(ARITHMETIC):
        if ZERO in expr.arguments:
            continue
        expected = value(expr, PARAMETERS, {})
        latex = visible(Printer(PARAMETERS).of(expr).tight().latex).replace(r"\,", r" \cdot ")
        if math.isfinite(expected):
            found = complex(parse_latex(latex, backend="lark").subs(numbers).evalf())
            assert abs(found - expected) <= 1e-5 * max(1.0, abs(expected)), latex


# --- whole methods --------------------------------------------------------------------------------------------------


def everything(name: str) -> list[Formula]:
    shown = formulas(check(library.built_in()[name]).unwrap())
    signs = [sign.sign for sign in (*shown.signs, *shown.parameters)]
    return [
        shown.gradient,
        *shown.where,
        shown.coefficient,
        *(loss for _, loss in shown.losses),
        *shown.loss_where,
        *signs,
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_formula_of_a_method_is_sound_latex_and_mathml(name: str) -> None:
    for formula in everything(name):
        assert formula.latex.count("{") == formula.latex.count("}")
        assert formula.latex.count(r"\left") - formula.latex.count(r"\left\l") >= 0
        ElementTree.fromstring(formula.mathml().replace("&ApplyFunction;", ""))
        assert "merror" not in formula.mathml()


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_a_formula_is_defined_once(name: str) -> None:
    shown = formulas(check(library.built_in()[name]).unwrap())
    lines = [*shown.where, *shown.loss_where]
    heads = [line.text.split(" = ")[0] for line in lines]
    assert len(heads) == len(set(heads))
    words = " ".join([shown.gradient.text, shown.coefficient.text, *(line.text.split(" = ", 1)[1] for line in lines)])
    for sign in ("A_i", "B_g", "R_i", "ω(", "υ("):
        if sign in words and sign not in "ω(υ(":
            assert any(head.startswith(sign) for head in heads), f"{sign} is not defined"


def penalised() -> Iterator[str]:
    """The methods whose coefficient shows its penalty's derivative."""
    for name in NAMES:
        method = check(library.built_in()[name]).unwrap()
        penalty = method.definitions["penalty"].body
        if constant(penalty) != 0 and slope(method, penalty) is not None:
            yield name


def test_a_penalty_across_completions_is_written_as_a_derivative() -> None:
    lines = "reward = label\npenalty = (chosen(sum(logp over tokens)) - rejected(sum(logp over tokens))) ^ 2"
    text = formulas(method(lines, "preference")).coefficient.text
    assert text == "c_it = 1/S ℓ_i − ∂/∂(log πθ(y_it)) 1/S Σ_g |g|·P_g"
    assert {"grpo", "cpo", "rpo"} <= set(penalised())


@pytest.mark.parametrize("name", penalised())
def test_the_penalty_in_the_coefficient_is_its_derivative(name: str) -> None:
    """w · (−∂P/∂log π) of the formula is what the compiler adds to the coefficient."""
    loaded = grolang.load(name)
    penalty = loaded.ir.definitions["penalty"].body
    found = slope(loaded.ir, penalty)
    assert found is not None
    build = Builder()
    low = Lowering(loaded.ir, build)
    outputs = estimator(low)
    share = build.apply("multiply", low.weight(loaded.ir.aggregate, penalty.scope), low.expression(found))
    outputs["share"] = build.spread(share, Scope.TOKEN)
    program = Program(tuple(build.steps), outputs)

    @settings(max_examples=10, deadline=None, phases=[Phase.generate])
    @given(grolang.testing.batches(loaded, smallest_group=2))
    def same(batch: grolang.Batch) -> None:
        whole, score, share = Run(program, batch, name)("coefficient", "score_coefficient", "share")
        size = max(1.0, float(score.abs().max()), float(share.abs().max()))  # what cancels in the difference
        assert bool(((whole - score - share).abs() <= 1e-9 * size).all())

    same()


def test_what_stands_in_front_of_nabla_is_a_number_only_where_the_policy_is_in_it() -> None:
    assert "sg" in formulas(grolang.load("dpo").ir).gradient.latex
    assert "sg" not in formulas(grolang.load("rloo").ir).gradient.latex


ESTIMATORS = {
    "dpo": "ĝ = 1/G Σ_g Σ_(i∈g) Σ_t [β·σ(−z_i)·ℓ_i]^sg ∇θ log πθ(y_it | y_i<t, x_i)",
    "grpo": ("ĝ = 1/S Σ_i 1/|y_i| Σ_t [ω(z_it)·A_i]^sg ∇θ log πθ(y_it | y_i<t, x_i) − ∇θ 1/S Σ_i 1/|y_i| Σ_t P_it"),
    "rloo": "ĝ = 1/S Σ_i Σ_t A_i ∇θ log πθ(y_it | y_i<t, x_i)",
    "sft": "ĝ = 1/N Σ_i Σ_t ∇θ log πθ(y_it | y_i<t, x_i)",
    "kto": "ĝ = 1/S Σ_i Σ_t [β·σ(z_i)·σ(−z_i)·R_i]^sg ∇θ log πθ(y_it | y_i<t, x_i)",
    "awr": "ĝ = 1/S Σ_i Σ_t υ(A_i) ∇θ log πθ(y_it | y_i<t, x_i)",
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_estimator_of_a_known_method(name: str) -> None:
    assert formulas(grolang.load(name).ir).gradient.text == ESTIMATORS[name]


def test_the_coefficient_of_grpo_holds_the_derivative_of_its_penalty() -> None:
    text = formulas(grolang.load("grpo").ir).coefficient.text
    assert text == "c_it = 1/(S·|y_i|) (ω(z_it)·A_i + β·π_ref(y_it) / πθ(y_it) − β)"


def test_a_penalty_whose_derivative_is_very_long_is_not_written_out() -> None:
    """Each definition uses the one before it twice: written out, the derivative would have 2 ^ 60 parts."""
    definitions = "".join(f"d{place + 1} = d{place} * d{place}\n" for place in range(60))
    text = f"method m\ndata unpaired\nreward = label\nd0 = logp\n{definitions}penalty = d60\n"
    assert "∂/∂(log πθ(y_it))" in str(formulas(check(Source("m.gro", text)).unwrap()).coefficient)
