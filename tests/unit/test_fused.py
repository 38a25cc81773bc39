"""Every pass of the fused log-probs against plain logits in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from grolang.compiler.fused import (
    Gradients,
    Head,
    attach,
    factored_pass,
    forward,
    logps,
    products,
    single_pass,
)
from grolang.language.diagnostics import GroError

torch.set_num_threads(1)

N, D, V = 23, 8, 37
ONE_ROW, FEW_ROWS, ALL_ROWS = 1, 4 * V * 5 + 3, 2**20
BUDGETS = [ONE_ROW, FEW_ROWS, ALL_ROWS]
UNIT = torch.tensor([0] * 3 + [2] * 11 + [3] * 1 + [5] * 4 + [6] * 4)

HEADS: dict[str, dict[str, float]] = {
    "plain": {},
    "scaled": {"scale": 0.3, "temperature": 0.7},
    "capped": {"scale": 1.7, "softcap": 3.0, "temperature": 1.3},
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 3e-3}


@dataclass(frozen=True)
class Case:
    hidden: Tensor
    head: Head
    targets: Tensor
    c: Tensor

    def to(self, dtype: torch.dtype) -> Case:
        """The same numbers, rounded to dtype first, as leaves that ask for gradients."""

        def leaf(one: Tensor) -> Tensor:
            return one.detach().to(dtype).requires_grad_(one.requires_grad)

        bias = None if self.head.bias is None else leaf(self.head.bias)
        return replace(
            self, hidden=leaf(self.hidden), head=replace(self.head, weight=leaf(self.head.weight), bias=bias)
        )


def case(kind: str = "plain", dtype: torch.dtype = torch.float64, *, bias: bool = True, rows: int = N) -> Case:
    """Peaked logits (standard deviation about 5), ragged coefficients with zeros, targets that repeat."""
    torch.manual_seed(7)
    hidden = (torch.randn(N, D, dtype=torch.float64) * 2).to(dtype).requires_grad_()
    weight = torch.randn(V, D, dtype=torch.float64).to(dtype).requires_grad_()
    b = torch.randn(V, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    targets = torch.randint(V // 4, (N,))
    targets[5] = V - 1
    c = torch.randn(N, dtype=torch.float64)
    c[[0, 4, 5, 6, 14, 22]] = 0
    head = Head(weight, b, **HEADS[kind])
    return Case(hidden.detach()[:rows].requires_grad_(), head, targets[:rows], c[:rows])


def plain(one: Case, c: Tensor | None = None) -> tuple[Tensor, Tensor, Gradients]:
    """(logp, entropy, gradients of −Σ c·logp) by autograd through float64 logits of the rounded numbers."""
    one = one.to(torch.float64)
    head = one.head
    raw = one.hidden @ head.weight.T
    if head.bias is not None:
        raw = raw + head.bias
    raw = raw * head.scale
    if head.softcap is not None:
        raw = head.softcap * torch.tanh(raw / head.softcap)
    log_p = (raw / head.temperature).log_softmax(1)
    logp = log_p.gather(1, one.targets[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(1)
    loss = -((one.c if c is None else c).double() * logp).sum()
    wanted = [one.hidden, head.weight] + ([] if head.bias is None else [head.bias])
    found = torch.autograd.grad(loss, wanted)
    return (
        logp.detach(),
        entropy.detach(),
        Gradients(found[0], found[1], found[2] if len(found) > 2 else None),
    )


def assert_near(found: Tensor | None, expected: Tensor | None, tolerance: float) -> None:
    """Frobenius norm of the difference, relative to the expected."""
    assert found is not None and expected is not None
    assert found.shape == expected.shape
    error = float((found.double() - expected).norm())
    assert error <= tolerance * max(float(expected.norm()), 1e-9), f"{error} against {float(expected.norm())}"


def assert_gradients(found: Gradients, expected: Gradients, tolerance: float) -> None:
    assert_near(found.hidden, expected.hidden, tolerance)
    assert_near(found.weight, expected.weight, tolerance)
    if expected.bias is None:
        assert found.bias is None
    else:
        assert_near(found.bias, expected.bias, tolerance)


def by_single_pass(one: Case, budget: int) -> Gradients:
    return single_pass(one.hidden, one.head, one.targets, lambda rows, *_: one.c[rows], budget=budget).gradients


def by_attaching(one: Case, budget: int) -> Gradients:
    inputs = one.hidden, one.head.weight, one.head.bias
    value = torch.tensor(3.0)
    return differentiated(attach(value, inputs, by_single_pass(one, budget)), one)


def by_units(one: Case, budget: int) -> Gradients:
    """c = s·w with s = 2, −1, … per unit: the coefficients of the case divided by s are the weights."""
    s = torch.tensor([2.0, 0, -1, 0.5, 0, 4, -3], dtype=torch.float64)[UNIT[: len(one.hidden)]]
    return factored_pass(
        one.hidden, one.head, one.targets, one.c / s, UNIT[: len(s)], lambda rows, *_: s[rows], budget=budget
    ).gradients


def by_parts(one: Case, budget: int) -> Gradients:
    """The same with two units, whose parts are the units of before."""
    part = UNIT[: len(one.hidden)]
    s = torch.tensor([2.0, 0, -1, 0.5, 0, 4, -3], dtype=torch.float64)[part]
    unit, w = (part > 2).long(), one.c / s
    return factored_pass(
        one.hidden, one.head, one.targets, w, unit, lambda rows, *_: s[rows], part=part, budget=budget
    ).gradients


def by_units_not_factored(one: Case, budget: int) -> Gradients:
    return free(one, budget, UNIT[: len(one.c)], 2**20)


def by_recomputing(one: Case, budget: int) -> Gradients:
    return free(one, budget, torch.zeros(len(one.c)), 0)


def by_keeping_a_part(one: Case, budget: int) -> Gradients:
    return free(one, budget, torch.zeros(len(one.c)), 11 * V * one.hidden.dtype.itemsize)


def free(one: Case, budget: int, unit: Tensor, keep: int) -> Gradients:
    def c(rows: slice, *_: object) -> Tensor:
        return one.c[rows]

    return factored_pass(one.hidden, one.head, one.targets, None, unit, c, budget=budget, keep=keep).gradients


def differentiated(loss: Tensor, one: Case) -> Gradients:
    wanted = [one.hidden, one.head.weight] + ([] if one.head.bias is None else [one.head.bias])
    found = torch.autograd.grad(loss, wanted)
    return Gradients(found[0], found[1], found[2] if len(found) > 2 else None)


Way = Callable[[Case, int], Gradients]
WAYS: list[Way] = [
    by_single_pass,
    by_attaching,
    by_units,
    by_parts,
    by_units_not_factored,
    by_recomputing,
    by_keeping_a_part,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_pass_gives_the_gradients_of_plain_logits(way: Way, budget: int, kind: str, dtype: torch.dtype) -> None:
    one = case(kind, dtype)
    assert_gradients(way(one, budget), plain(one)[2], TOLERANCE[dtype])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_keep_fp32_logits_and_sums(way: Way, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "CONVERTED_BYTES", 10 * D * 4)
    one = case(dtype=dtype)
    found = way(one, FEW_ROWS)
    assert_gradients(found, plain(one)[2], TOLERANCE[dtype])
    given = way is by_attaching
    assert found.hidden.dtype == (dtype if given or dtype == torch.bfloat16 else torch.float32)
    rows = forward(one.hidden, one.head, one.targets)
    assert rows.logp.dtype == torch.float32
    assert_near(rows.logp, plain(one)[0], 5e-6)


@pytest.fixture(params=[True, False], ids=["rounded", "widened"])
def products_of_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CPU with units for bf16 takes, and what another takes: both run on either."""
    if request.param and not products.has_onednn():
        pytest.skip("this torch has no oneDNN to ask")
    monkeypatch.setattr(products, "cpu_multiplies_bf16", lambda: request.param)
    monkeypatch.setattr(products, "CONVERTED_BYTES", 10 * D * 4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_bf16_on_either_kind_of_cpu(way: Way, kind: str, budget: int, products_of_bf16: None) -> None:
    one = case(kind, torch.bfloat16)
    assert_gradients(way(one, budget), plain(one)[2], TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("way", [by_single_pass, by_recomputing])
@pytest.mark.parametrize("sure", [False, True])
def test_bf16_chunks_that_cancel_and_targets_that_are_nearly_sure(
    way: Way, sure: bool, products_of_bf16: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight chunks, coefficients of any size and sign; p_y − 1 of sure targets would not outlive a rounding of p."""
    torch.manual_seed(1)
    hidden, weight = (torch.randn(*size).bfloat16() for size in ((256, 32), (700, 32)))
    targets = torch.randint(700, (256,))
    if sure:
        hidden = (weight[targets].float() * 0.45).bfloat16()
    c = torch.randn(256) * 10.0 ** torch.randint(-6, 1, (256,))
    one = Case(hidden.requires_grad_(), Head(weight.requires_grad_()), targets, c)
    assert_gradients(way(one, 32 * 4 * 700), plain(one)[2], TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("exact", [False, True])
def test_fp32_by_either_library(way: Way, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if exact and not products.onednn_is_exact():
        pytest.skip("this CPU takes the other library")
    monkeypatch.setattr(products, "onednn_is_exact", lambda: exact)
    one = case("scaled", torch.float32)
    assert_gradients(way(one, FEW_ROWS), plain(one)[2], TOLERANCE[torch.float32])


@pytest.mark.parametrize("way", WAYS)
def test_hidden_states_and_head_of_two_dtypes(way: Way) -> None:
    one = case(dtype=torch.bfloat16)
    one = replace(one, head=replace(one.head, weight=one.head.weight.detach().float().requires_grad_()))
    found = way(one, FEW_ROWS)
    assert found.weight is not None and found.weight.dtype == torch.float32
    assert_near(found.weight, plain(one)[2].weight, 5e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_head_without_bias(way: Way) -> None:
    one = case(bias=False)
    assert_gradients(way(one, FEW_ROWS), plain(one)[2], 1e-12)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log_probs_and_entropy(budget: int, kind: str, dtype: torch.dtype) -> None:
    one = case(kind, dtype)
    logp, entropy, _ = plain(one)
    found, found_entropy = logps(one.hidden, one.head, one.targets, entropy=True, budget=budget)
    assert_near(found, logp, TOLERANCE[dtype])
    assert_near(found_entropy, entropy, TOLERANCE[dtype])
    without, none = logps(one.hidden, one.head, one.targets, budget=budget)
    assert_near(without, logp, TOLERANCE[dtype])
    assert none is None and not without.requires_grad


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_coefficient_of_the_rows_own_log_prob_and_entropy(budget: int) -> None:
    one = case("capped")
    logp, entropy, _ = plain(one)

    def coefficient(rows: slice, own: Tensor, spread: Tensor | None) -> Tensor:
        assert spread is not None
        return one.c[rows] * own.exp() * spread

    found = single_pass(one.hidden, one.head, one.targets, coefficient, entropy=True, budget=budget)
    expected = one.c * logp.exp() * entropy
    assert_near(found.coefficients, expected, 1e-12)
    assert_near(found.rows.logp, logp, 1e-12)
    assert_gradients(found.gradients, plain(one, expected)[2], 1e-12)


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_scale_of_the_units_log_probs(budget: int, factored: bool) -> None:
    """s = tanh(Σ w·logp over the unit), and 0 for one unit; the largest unit exceeds two of the budgets."""
    one = case("capped")
    w = one.c

    def scale(rows: slice, logp: Tensor, _: Tensor | None = None) -> Tensor:
        unit = UNIT[rows]
        total = torch.zeros(7, dtype=logp.dtype).index_add_(0, unit, w[rows] * logp)
        s = total.tanh()
        s[5] = 0
        return s[unit] if factored else s[unit] * w[rows]

    found = factored_pass(one.hidden, one.head, one.targets, w if factored else None, UNIT, scale, budget=budget)
    expected = scale(slice(0, N), plain(one)[0]) * (w if factored else 1)
    assert_near(found.coefficients, expected, 1e-12)
    assert_gradients(found.gradients, plain(one, expected)[2], 1e-12)


@pytest.mark.parametrize("keep", [0, 5 * V * 8, ALL_ROWS])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("budget", BUDGETS)
def test_coefficients_of_a_units_entropies(budget: int, factored: bool, trained: bool, keep: int) -> None:
    one = case("capped")
    logp, entropy, _ = plain(one)

    def scale(rows: slice, own: Tensor, spread: Tensor | None) -> Tensor:
        assert spread is not None
        total = torch.zeros(7, dtype=own.dtype).index_add_(0, UNIT[rows], own.exp() + spread)
        return total[UNIT[rows]] * (1 if factored else one.c[rows])

    expected = scale(slice(0, N), logp, entropy) * (one.c if factored else 1)
    gradients = plain(one, expected)[2]
    head = one.head
    if not trained:
        assert head.bias is not None
        head = replace(head, weight=head.weight.detach(), bias=head.bias.detach())
    weights = one.c if factored else None
    found = factored_pass(one.hidden, head, one.targets, weights, UNIT, scale, entropy=True, budget=budget, keep=keep)
    assert_near(found.coefficients, expected, 1e-12)
    assert_near(found.rows.entropy, entropy, 1e-12)
    assert_near(found.gradients.hidden, gradients.hidden, 1e-12)
    if trained:
        assert_gradients(found.gradients, gradients, 1e-12)


def test_a_large_unit_whose_scale_is_0_changes_nothing() -> None:
    one = case()
    zero = factored_pass(
        one.hidden,
        one.head,
        one.targets,
        one.c,
        UNIT,
        lambda rows, *_: torch.zeros(len(UNIT[rows])),
        budget=ONE_ROW,
    )
    assert all(g is not None and g.count_nonzero() == 0 for g in zero.gradients)


def test_a_scale_that_varies_within_a_large_unit_is_refused() -> None:
    one = case()
    with pytest.raises(GroError, match="does not factor"):
        factored_pass(one.hidden, one.head, one.targets, one.c, UNIT, lambda rows, logp, _: logp, budget=ONE_ROW)


def test_a_unit_longer_than_the_vocabulary_under_a_budget_of_one_row() -> None:
    one = case("capped", bias=False)
    head = replace(one.head, weight=one.head.weight[:3].detach().requires_grad_())
    one = replace(one, head=head, targets=one.targets % 3)
    found = factored_pass(one.hidden, head, one.targets, None, torch.zeros(N), lambda *_: one.c, budget=ONE_ROW, keep=0)
    assert_gradients(found.gradients, plain(one)[2], 1e-12)


def test_a_scale_that_is_not_a_number_is_passed_on() -> None:
    one = case()
    found = factored_pass(
        one.hidden, one.head, one.targets, one.c, UNIT, lambda rows, logp, _: logp * torch.nan, budget=ONE_ROW
    )
    assert torch.equal(found.coefficients.isnan(), one.c != 0)
    assert torch.equal(found.gradients.hidden.isnan().any(1), one.c != 0)


def test_units_whose_rows_do_not_stand_together_are_refused() -> None:
    one = case(rows=3)
    with pytest.raises(GroError, match="stand together"):
        factored_pass(one.hidden, one.head, one.targets, one.c, torch.tensor([0, 1, 0]), lambda rows, logp, _: logp)


@pytest.mark.parametrize("way", WAYS)
def test_no_rows_give_zero_gradients(way: Way) -> None:
    found = way(case(rows=0), ALL_ROWS)
    assert found.hidden.shape == (0, D)
    assert found.weight is not None and found.weight.shape == (V, D) and found.weight.count_nonzero() == 0
    logp, entropy = logps(case(rows=0).hidden, case().head, case(rows=0).targets, entropy=True)
    assert logp.shape == (0,) and entropy is not None and entropy.shape == (0,)


@pytest.mark.parametrize("way", WAYS)
def test_all_coefficients_zero(way: Way) -> None:
    one = replace(case(), c=torch.zeros(N, dtype=torch.float64))
    assert all(g is not None and g.count_nonzero() == 0 for g in way(one, FEW_ROWS))


@pytest.mark.parametrize("way", [way for way in WAYS if way is not by_attaching])
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_frozen_head_forms_no_gradient(way: Way, budget: int) -> None:
    one = case("capped")
    expected = plain(one)[2].hidden
    assert one.head.bias is not None
    one.head.weight.requires_grad_(False)
    one.head.bias.requires_grad_(False)
    found = way(one, budget)
    assert found.weight is None and found.bias is None
    assert_near(found.hidden, expected, 1e-12)


def test_attached_gradients_are_multiplied_by_the_upstream_gradient_and_given_once() -> None:
    one = case()
    loss = attach(torch.tensor(2.0), (one.hidden, one.head.weight, one.head.bias), by_single_pass(one, ALL_ROWS))
    assert loss == 2
    torch.autograd.backward(loss / 4, retain_graph=True)
    expected = plain(one)[2].weight
    assert expected is not None
    assert_near(one.head.weight.grad, expected / 4, 1e-12)
    with pytest.raises(GroError, match="handed out already"):
        torch.autograd.backward(loss)


def test_an_fp16_gradient_below_its_range_survives_a_loss_scaler() -> None:
    one = case(dtype=torch.float16)
    one = replace(one, c=one.c * 1e-9)
    loss = attach(torch.tensor(0.0), (one.hidden, one.head.weight, one.head.bias), by_single_pass(one, ALL_ROWS))
    found = differentiated(loss * 1e9, one)
    assert_near(found.weight, plain(one, one.c * 1e9)[2].weight, 3e-3)


def test_a_second_derivative_is_refused() -> None:
    one = case()
    loss = attach(torch.tensor(0.0), (one.hidden, None, None), by_single_pass(one, ALL_ROWS))
    with pytest.raises(GroError, match="second derivative"):
        torch.autograd.grad(loss, [one.hidden], create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("way", WAYS)
def test_large_logits_and_tiny_probabilities_stay_exact(way: Way, dtype: torch.dtype) -> None:
    """Logits of ±1e4 (rows 0, 1), log-probs of −60 and of −200, where a softmax in fp32 is 0 (rows 2, 3)."""
    bias = torch.zeros(V, dtype=dtype)
    weight = torch.zeros(V, D, dtype=dtype)
    weight[:4, 0] = torch.tensor([1.0, -1.0, 0.0, -0.5], dtype=dtype)
    hidden = torch.zeros(4, D, dtype=dtype)
    hidden[:, 0] = torch.tensor([1e4, -1e4, 60.0, 200.0], dtype=dtype)
    head = Head(weight.requires_grad_(), bias.requires_grad_())
    one = Case(hidden.requires_grad_(), head, torch.tensor([0, 0, 2, 2]), torch.ones(4, dtype=torch.float64))
    logp, entropy, expected = plain(one)
    assert logp[1] < -1e4 and logp[2] < -59 and logp[3] < -199
    for asked in (False, True):
        found, found_entropy = logps(one.hidden, one.head, one.targets, entropy=asked)
        assert_near(found, logp, TOLERANCE[dtype])
    assert_near(found_entropy, entropy, TOLERANCE[dtype])
    in_one_pass = single_pass(one.hidden, one.head, one.targets, lambda rows, *_: one.c[rows])
    assert_near(in_one_pass.rows.logp, logp, TOLERANCE[dtype])
    assert_gradients(
        way(one, ALL_ROWS) if way not in (by_units, by_parts) else by_recomputing(one, ONE_ROW),
        expected,
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("entropy", [False, True])
def test_the_sum_of_a_long_row_keeps_its_digits(entropy: bool) -> None:
    """Peaked logits of 2^18 words: a CPU's softmax adds them up in chains, and is off by some 1e-5."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(8, 32), 5 * torch.randn(2**18, 32) / 32**0.5
    one = Case(hidden.requires_grad_(), Head(weight.requires_grad_()), torch.arange(8), torch.randn(8))
    logp, spread, expected = plain(one)
    found = single_pass(one.hidden, one.head, one.targets, lambda rows, *_: one.c[rows], entropy=entropy)
    assert_gradients(found.gradients, expected, 2e-6)
    alone, _ = logps(one.hidden, one.head, one.targets, entropy=entropy)
    for some in (found.rows.logp, alone):
        assert float((some.double() - logp).abs().max()) < 1e-5
    if entropy:
        assert_near(found.rows.entropy, spread, 1e-6)


@pytest.mark.parametrize("way", [by_single_pass, by_units, by_keeping_a_part, by_recomputing])
def test_a_few_rows_of_a_large_vocabulary_keep_their_digits(way: Way) -> None:
    """Two rows to a tile: a CPU's product of so few adds up in one chain, and is off by some 4e-5."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(8, 32), 5 * torch.randn(2**18, 32) / 32**0.5
    one = Case(hidden.requires_grad_(), Head(weight.requires_grad_()), torch.arange(8), torch.randn(8))
    assert_gradients(way(one, 2 * 4 * 2**18), plain(one)[2], 5e-6)


def test_tokens_masked_by_a_bias_of_minus_infinity_have_no_part() -> None:
    one = case()
    assert one.head.bias is not None
    with torch.no_grad():
        one.head.bias[-5:] = -torch.inf
    one.targets[5] = 0
    found = single_pass(one.hidden, one.head, one.targets, lambda rows, *_: one.c[rows], entropy=True)
    _, _, expected = plain(one)
    assert_gradients(found.gradients, expected, 1e-12)
    assert found.rows.entropy is not None and bool(found.rows.entropy.isfinite().all())


@pytest.mark.parametrize("way", WAYS)
def test_two_runs_agree_to_the_last_bit(way: Way) -> None:
    first, second = (way(case(dtype=torch.float32), FEW_ROWS) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a is not None and b is not None and torch.equal(a, b)


@pytest.mark.parametrize("way", [by_single_pass, by_recomputing])
def test_autocast_does_not_round_the_logits(way: Way) -> None:
    one = case(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = way(one, FEW_ROWS)
    assert_gradients(found, plain(one)[2], 5e-6)


def test_shapes_that_do_not_fit_are_refused() -> None:
    one = case()
    with pytest.raises(GroError, match="hidden states"):
        logps(one.hidden[:, :-1], one.head, one.targets)
    with pytest.raises(GroError, match="targets"):
        logps(one.hidden, one.head, one.targets[:-1])
    with pytest.raises(GroError, match="temperature"):
        Head(one.head.weight, temperature=0)
    with pytest.raises(GroError, match="softcap"):
        Head(one.head.weight, softcap=0.0)
    with pytest.raises(GroError, match="bias"):
        Head(one.head.weight, one.hidden[0])
