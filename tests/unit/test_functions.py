"""The table of functions tells the truth: every declared fact of every row is tied to numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import grolang
from grolang.compiler import reductions
from grolang.compiler.emit import emit
from grolang.compiler.execute import ELEMENTWISE
from grolang.compiler.method import from_source
from grolang.language import intervals
from grolang.language.diagnostics import GroError
from grolang.language.functions import (
    BINARY,
    FORMS,
    FUNCTIONS,
    NAMED,
    OBSERVABLES,
    REDUCTIONS,
    ROWS,
    Function,
)
from grolang.language.intervals import Interval
from grolang.language.source import Source
from tests.oracle.language import Reduction, reduce_values

NAMES = [row.name for row in ROWS]
ENDS = [-math.inf, -3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0, 4.0, math.inf]


@st.composite
def ranges(draw: st.DrawFn) -> Interval:
    """An interval that holds at least one finite number."""
    low, high = sorted((draw(st.sampled_from(ENDS)), draw(st.sampled_from(ENDS))))
    if low == high:
        assume(math.isfinite(low))
        return Interval(low, high)
    low_open, high_open = draw(st.booleans()), draw(st.booleans())
    return Interval(low, high, low_open and math.isfinite(low), high_open and math.isfinite(high))


def points(draw: Callable[..., Any], within: Interval) -> float:
    """A finite number inside: an end, near an end, or anywhere."""
    low, high = max(within.low, -700.0), min(within.high, 700.0)
    near = [low, high, math.nextafter(low, high), math.nextafter(high, low), 0.0, 1.0, -1.0, (low + high) / 2]
    x = draw(st.one_of(st.sampled_from(near), st.floats(low, high), st.integers(-4, 4).map(float)))
    assume(x in within and math.isfinite(x))
    return float(x)


@st.composite
def inputs(draw: st.DrawFn, count: int) -> tuple[list[Interval], list[float]]:
    found = [draw(ranges()) for _ in range(count)]
    return found, [points(draw, one) for one in found]


def result(row: Function, values: list[float]) -> float | None:
    """The number, or None where the function is not defined or too large."""
    try:
        y = row.number(*values)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    if isinstance(y, complex) or math.isnan(y) or math.isinf(y):
        return None
    return float(y)


def held(y: float, within: Interval) -> bool:
    """Inside, but for rounding onto an open end or just across an end."""
    slack = 1e-12 * max(1.0, abs(y))
    return within.low - slack <= y <= within.high + slack


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_a_result_lies_in_the_declared_range(name: str, data: st.DataObject) -> None:
    row = FUNCTIONS[name]
    found, values = data.draw(inputs(len(row.arguments)))
    y = result(row, values)
    assume(y is not None)
    assert y is not None
    within = row.range(*found)
    assert held(y, within), f"{name}{values} = {y}, outside of {within} for {[str(i) for i in found]}"


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_an_open_end_of_a_range_is_never_reached_in_exact_arithmetic(name: str, data: st.DataObject) -> None:
    """Of small rational inputs, where no rounding reaches a limit: the range's open end is not a value."""
    row = FUNCTIONS[name]
    found = [data.draw(ranges()) for _ in row.arguments]
    values = []
    for one in found:
        x = data.draw(
            st.sampled_from([-3.0, -2.0, -1.0, -0.75, -0.5, -0.25, 0.0, 0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
        )
        assume(x in one)
        values.append(x)
    y = result(row, values)
    assume(y is not None)
    assert y is not None
    assert y in row.range(*found) or (abs(y) > 1e-300 and not exact(name)), (
        f"{name}{values} = {y}, not in {row.range(*found)} for {[str(i) for i in found]}"
    )


def exact(name: str) -> bool:
    """Whether the function rounds nothing on small dyadic inputs."""
    return name not in ("divide", "power", "exp", "log", "log1p", "expm1", "sqrt", "sigmoid", "logsigmoid") and (
        name not in ("softplus", "tanh")
    )


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_a_function_moves_as_its_slopes_say(name: str, data: st.DataObject) -> None:
    row = FUNCTIONS[name]
    found, values = data.draw(inputs(len(row.arguments)))
    slopes = row.slopes(*found)
    assert len(slopes) == len(row.arguments)
    for place, slope in enumerate(slopes):
        assert slope in ("+", "-", "=", "?")
        other = points(data.draw, found[place])
        moved = values[:place] + [other] + values[place + 1 :]
        low, high = sorted([values, moved], key=lambda v: v[place])
        a, b = result(row, low), result(row, high)
        if a is None or b is None or slope == "?":
            continue
        slack = 1e-12 * max(1.0, abs(a), abs(b))
        if slope in ("+", "="):
            assert a <= b + slack, f"{name}: {low} → {a}, {high} → {b} falls in argument {place}: {found[place]}"
        if slope in ("-", "="):
            assert a >= b - slack, f"{name}: {low} → {a}, {high} → {b} rises in argument {place}: {found[place]}"


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.domain])
@given(x=st.floats(-50, 50))
def test_a_function_is_defined_exactly_on_its_domain(name: str, x: float) -> None:
    row = FUNCTIONS[name]
    (place, domain, words) = row.domain[0]
    assert place == 0 and "not defined" in words
    defined = math.isfinite(float(ELEMENTWISE[name](torch.tensor(x, dtype=torch.float64))))
    if x != 0 and abs(x + 1) > 1e-12:
        assert defined == (x in domain)


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.domain])
def test_the_edge_of_a_domain_is_on_the_declared_side(name: str) -> None:
    domain = FUNCTIONS[name].domain[0][1]
    at_edge = float(ELEMENTWISE[name](torch.tensor(domain.low, dtype=torch.float64)))
    assert math.isfinite(at_edge) == (not domain.low_open)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_the_plain_number_and_the_tensor_agree(name: str, data: st.DataObject) -> None:
    row = FUNCTIONS[name]
    _, values = data.draw(inputs(len(row.arguments)))
    y = result(row, values)
    tensor = float(ELEMENTWISE[name](*(torch.tensor(v, dtype=torch.float64) for v in values)))
    if y is None:
        assert not math.isfinite(tensor) or name == "power", f"{name}{values}: no number, but the tensor is {tensor}"
    else:
        assert math.isclose(y, tensor, rel_tol=1e-12, abs_tol=1e-300), f"{name}{values}: {y} and {tensor}"


def test_every_row_has_a_number_and_a_tensor_function() -> None:
    for row in ROWS:
        assert row.name in ELEMENTWISE
        assert not math.isnan(row.number(*([0.75] * len(row.arguments)))), row.name
        assert len(row.derivative) == len(row.arguments)


# --- derivatives --------------------------------------------------------------------------------------------

INFIX = {"not": "not {0}", "negate": "-{0}", "choose": "({1} if {0} else {2})"}


def written(row: Function, arguments: list[str]) -> str:
    """The row's function of these arguments, in the language."""
    if row.name in INFIX:
        return "(" + INFIX[row.name].format(*arguments) + ")"
    if row.symbol:
        return f"({arguments[0]} {row.symbol} {arguments[1]})"
    return f"{row.name}({', '.join(arguments)})"


@pytest.mark.parametrize(
    ("name", "place"), [(row.name, place) for row in ROWS for place, d in enumerate(row.derivative) if d is not None]
)
@given(data=st.data())
def test_a_declared_derivative_is_torchs(name: str, place: int, data: st.DataObject) -> None:
    """The penalty's symbolic gradient against autograd, where the function has no kink."""
    row = FUNCTIONS[name]
    values = [data.draw(st.floats(-3, 3).filter(lambda x: abs(x) > 1e-3)) for _ in row.arguments]
    if row.domain or name in ("power",):
        values[0] = abs(values[0])
    for a, b in itertools.combinations(values, 2):
        assume(abs(a - b) > 1e-3)
    tensors = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
    (want,) = torch.autograd.grad(ELEMENTWISE[name](*tensors), tensors[place], allow_unused=True)
    # logp = −1 everywhere; the argument is logp + (value + 1), so that only this place is live.
    words = [f"({v!r})".replace("(-", "(0 - ") for v in values]
    shift = values[place] + 1
    words[place] = f"(logp + {shift!r})" if shift >= 0 else f"(logp - {-shift!r})"
    text = f"method d\ndata unpaired\nreward = 0\naggregate = sum over batch\npenalty = {written(row, words)}\n"
    logp = torch.full((1, 1), -1.0, dtype=torch.float64)
    found = from_source(Source("d.gro", text)).coefficients(
        grolang.Batch(mask=torch.ones(1, 1, dtype=torch.bool), logp=logp)
    )
    expected = 0.0 if want is None else -float(want)
    assert math.isclose(float(found), expected, rel_tol=1e-8, abs_tol=1e-10), f"{text}: {float(found)} for {expected}"


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("sigmoid", 30.0, math.exp(-30) / (1 + math.exp(-30)) ** 2),
        ("sigmoid", -30.0, math.exp(-30) / (1 + math.exp(-30)) ** 2),
        ("tanh", 12.0, math.cosh(12) ** -2),
        ("tanh", -12.0, math.cosh(12) ** -2),
        ("expm1", -30.0, math.exp(-30)),
        ("logsigmoid", 30.0, math.exp(-30) / (1 + math.exp(-30))),
        ("softplus", -30.0, math.exp(-30) / (1 + math.exp(-30))),
    ],
)
def test_a_derivative_is_exact_where_its_function_is_flat(name: str, x: float, expected: float) -> None:
    """Relative to itself: where every log-prob of a batch is saturated, it is the largest that there is."""
    text = f"method m\ndata demonstrations\nadvantage = 0\npenalty = {name}(logp + {x + 1})\n"
    logp = torch.tensor([[-1.0]], dtype=torch.float64)
    batch = grolang.Batch(mask=torch.ones(1, 1, dtype=torch.bool), logp=logp)
    found = -from_source(Source("m.gro", text)).coefficients(batch)
    assert float(found) == pytest.approx(expected, rel=1e-13, abs=0)


@pytest.mark.parametrize(
    ("a", "b", "in_a", "in_b"),
    [
        (0.0, 2.0, 0.0, 0.0),
        (0.0, 1.0, 1.0, 0.0),
        (0.0, 0.5, math.inf, 0.0),
        (0.0, 0.0, 0.0, -math.inf),  # 0 ^ b jumps from 1 to 0 there
        (0.0, -1.0, -math.inf, -math.inf),
        (2.0, 0.0, 0.0, math.log(2)),
    ],
)
def test_the_derivatives_of_a_power_of_0_are_numbers(a: float, b: float, in_a: float, in_b: float) -> None:
    """Of a ^ b with both from the batch; d/db a^b = a^b log a goes to 0 as a does, where b > 0."""
    for power, expected in ((f"(logp + {a + 1}) ^ b", in_a), ("a ^ (logp + 1 + b)", in_b)):
        text = f"method m\ndata demonstrations\nscore a\nscore b\nadvantage = 0 * (a + b)\npenalty = {power}\n"
        batch = grolang.Batch(
            mask=torch.ones(1, 1, dtype=torch.bool),
            logp=torch.tensor([[-1.0]], dtype=torch.float64),
            scores={"a": torch.tensor([a]), "b": torch.tensor([b])},
        )
        method = from_source(Source("m.gro", text))
        if math.isfinite(expected):
            assert float(-method.coefficients(batch)) == pytest.approx(expected)
        else:
            with pytest.raises(GroError, match=r"a coefficient is not finite: this is -?inf"):
                method.coefficients(batch)


@pytest.mark.parametrize(
    ("penalty", "shown"),
    [
        ("sqrt(logp + 1)", "`sqrt(logp + 1)` = 0"),
        ("log(logp + 1)", "`logp + 1` = 0"),
        ("(logp + 1) ^ 0.5", "`logp + 1` = 0"),
        ("exp(-logp * 900) ^ 2", "`-logp * 900` = 900"),
    ],
)
def test_a_derivative_that_is_not_finite_shows_the_authors_values(penalty: str, shown: str) -> None:
    """And none of its own steps, which have no text in the file."""
    text = f"method m\ndata demonstrations\nadvantage = 0\npenalty = {penalty}\n"
    mask = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(GroError) as raised:
        from_source(Source("m.gro", text)).coefficients(grolang.Batch(mask=mask, logp=torch.tensor([[-1.0]])))
    assert raised.value.diagnostics[0].label == shown


def test_the_sign_of_what_is_not_a_number_is_none() -> None:
    values = [math.nan, -math.inf, -2.0, -0.0, 0.0, 1e-300, math.inf]
    expected = [math.nan, -1.0, -1.0, 0.0, 0.0, 1.0, 1.0]
    tensor = ELEMENTWISE["sign"](torch.tensor(values, dtype=torch.float64))
    assert tensor.tolist() == pytest.approx(expected, nan_ok=True)
    assert [FUNCTIONS["sign"].number(x) for x in values] == pytest.approx(expected, nan_ok=True)


def test_the_sign_of_what_is_not_a_number_is_none_in_emitted_python_too() -> None:
    """Seen through a comparison, which holds for every number."""
    text = "method m\ndata demonstrations\nscore a\nadvantage = 1\ncredit = 1 if sign(a) == sign(a) else 2\n"
    method, written = from_source(Source("m.gro", text)), dict[str, Any]()
    exec(emit(method.ir), written)
    mask, logp, a = torch.ones(1, 1, dtype=torch.bool), torch.tensor([[-1.0]]), torch.tensor([math.nan])
    assert float(method.coefficients(grolang.Batch(mask=mask, logp=logp, scores={"a": a}))) == 2
    assert float(written["coefficients"]({"mask": mask, "logp": logp, "a": a})) == 2


@pytest.mark.parametrize("name", [row.name for row in ROWS if None in row.derivative])
@given(data=st.data())
def test_an_argument_without_a_derivative_has_none(name: str, data: st.DataObject) -> None:
    row = FUNCTIONS[name]
    values = [data.draw(st.floats(-3, 3)) for _ in row.arguments]
    for place, derivative in enumerate(row.derivative):
        if derivative is not None:
            continue
        assume(
            abs(values[place]) > 1e-3 and all(abs(values[place] - v) > 1e-3 for i, v in enumerate(values) if i != place)
        )
        moved = list(values)
        moved[place] += 1e-5
        assert row.number(*values) == row.number(*moved)


# --- intervals ----------------------------------------------------------------------------------------------

TWO: dict[str, tuple[Callable[[Interval, Interval], Interval], Callable[[float, float], float]]] = {
    "added": (intervals.added, lambda a, b: a + b),
    "multiplied": (intervals.multiplied, lambda a, b: a * b),
}


@pytest.mark.parametrize("name", TWO)
@given(data=st.data())
def test_an_interval_operation_holds_every_result(name: str, data: st.DataObject) -> None:
    on_intervals, on_numbers = TWO[name]
    (a, b), (x, y) = data.draw(inputs(2))
    assert held(on_numbers(x, y), on_intervals(a, b)), f"{x}, {y} in {a}, {b}: {on_intervals(a, b)}"


@given(data=st.data())
def test_a_negated_interval_holds_the_negative(data: st.DataObject) -> None:
    (a,), (x,) = data.draw(inputs(1))
    assert -x in intervals.negated(a)
    assert intervals.negated(intervals.negated(a)) == a


@given(data=st.data())
def test_an_inverted_interval_holds_the_inverse(data: st.DataObject) -> None:
    (a,), (x,) = data.draw(inputs(1))
    assume(abs(x) > 1e-300)
    assert held(1 / x, intervals.inverted(a))


def test_the_ranges_of_what_a_float_cannot_hold_are_found() -> None:
    assert intervals.inverted(Interval(0, 0, low_open=True)).positive  # exp(-1000)
    assert intervals.power(Interval(0, 400), Interval(1, 4000)).high == math.inf


@given(data=st.data())
def test_a_hull_holds_both_and_a_meet_what_is_in_both(data: st.DataObject) -> None:
    (a, b), (x, y) = data.draw(inputs(2))
    hull = intervals.hull(a, b)
    assert x in hull and y in hull
    if x in b:
        assert x in intervals.meet(a, b)
    if y not in a and x in b:
        assert y not in intervals.meet(a, b)


@pytest.mark.parametrize("function", [math.exp, math.tanh, math.atan, lambda x: max(x, 0.0), lambda x: 2 * x + 1])
@given(data=st.data())
def test_a_monotone_image_holds_the_images(function: Callable[[float], float], data: st.DataObject) -> None:
    (a,), (x,) = data.draw(inputs(1))
    assert held(function(x), intervals.monotone_image(function, a))


# --- reductions, forms, observables -------------------------------------------------------------------------


@pytest.mark.parametrize("name", REDUCTIONS)
@given(data=st.data())
def test_a_reduction_lies_in_its_declared_range(name: str, data: st.DataObject) -> None:
    within = data.draw(ranges())
    values = [points(data.draw, within) for _ in range(data.draw(st.integers(1, 5)))]
    x = torch.tensor(values, dtype=torch.float64)
    found = {
        "sum": lambda: x.sum(),
        "mean": lambda: x.mean(),
        "std": lambda: x.std(correction=0),
        "sample_std": lambda: x.std(correction=1),
        "max": lambda: x.max(),
        "min": lambda: x.min(),
        "quantile": lambda: x.quantile(0.3),
    }[name]()
    assume(bool(torch.isfinite(found)))
    assert held(float(found), REDUCTIONS[name].range(within)), f"{name} of {values} in {within}"


@pytest.mark.parametrize("name", [n for n, row in REDUCTIONS.items() if row.slope == "+"])
@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=5), place=st.integers(0, 4), more=st.floats(0, 3))
def test_a_rising_reduction_rises_in_every_value(name: str, values: list[float], place: int, more: float) -> None:
    def reduced(numbers: list[float]) -> float:
        index, there = torch.arange(len(numbers))[None], torch.ones(1, len(numbers), dtype=torch.bool)
        q = [torch.tensor(0.3, dtype=torch.float64)] if name == "quantile" else []
        return float(reductions.reduced(name, torch.tensor(numbers, dtype=torch.float64), index, there, q))

    moved = list(values)
    moved[place % len(values)] += more
    assert reduced(moved) >= reduced(values) - 1e-12


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("mean", [math.inf, math.inf], math.inf),
        ("mean", [math.inf, 1.0], math.inf),
        ("mean", [1.0, math.inf], math.inf),
        ("mean", [-math.inf, 1.0, -math.inf], -math.inf),
        ("mean", [math.inf, -math.inf], math.nan),
        ("std", [math.inf, math.inf], 0.0),
        ("sample_std", [-math.inf, -math.inf], 0.0),
        ("std", [math.inf, 1.0], math.nan),
        ("quantile", [math.inf, math.inf, math.inf], math.inf),
        ("quantile", [1.0, 2.0, math.inf], 2.0),
        ("quantile", [math.inf, 1.0], math.inf),
    ],
)
def test_infinities_are_values(name: Reduction, values: list[float], expected: float) -> None:
    """Whatever their order; the tests' own reading of the language says the same."""
    more = [torch.tensor(0.5, dtype=torch.float64)] if name == "quantile" else []
    for order in itertools.permutations(values):
        index, there = torch.arange(len(order))[None], torch.ones(1, len(order), dtype=torch.bool)
        found = float(reductions.reduced(name, torch.tensor(order, dtype=torch.float64), index, there, more))
        assert found == pytest.approx(expected, nan_ok=True)
        with np.errstate(invalid="ignore"):
            read = float(reduce_values(name, [np.float64(value) for value in order], 0.5))
        assert read == pytest.approx(expected, nan_ok=True)


@given(data=st.data(), g=st.floats(0, 1))
def test_what_is_to_go_and_what_is_terminal_lie_in_their_declared_ranges(data: st.DataObject, g: float) -> None:
    within = data.draw(ranges())
    values = [points(data.draw, within) for _ in range(3)]
    to_go = [sum(g ** (k - t) * values[k] for k in range(t, 3)) for t in range(3)]
    assert all(held(x, FORMS["to_go"].range(within)) for x in to_go)
    terminal = FORMS["terminal"].range(within)
    assert 0.0 in terminal and values[0] in terminal


def test_no_word_of_the_language_means_two_things() -> None:
    words = [*NAMED, *FORMS, *OBSERVABLES]
    assert len(words) == len(set(words))
    assert set(NAMED) & set(REDUCTIONS) == {"min", "max"}
    assert set(BINARY) == {"+", "-", "*", "/", "^", "<", "<=", ">", ">=", "==", "!=", "and", "or"}


def test_the_table_has_every_word_that_the_page_lists() -> None:
    page = "exp log log1p expm1 sqrt abs sign sigmoid logsigmoid softplus tanh relu min max clip"
    assert set(NAMED) == set(page.split())
    assert set(REDUCTIONS) == {"sum", "mean", "std", "sample_std", "max", "min", "quantile"}
    assert set(FORMS) == {"opposite", "chosen", "rejected", "own", "greedy", "mismatched", "terminal", "to_go", "sg"}
    observed = "logp logp_old logp_sampler logp_ref entropy position length group_size label demonstration"
    assert set(OBSERVABLES) == set(observed.split())
