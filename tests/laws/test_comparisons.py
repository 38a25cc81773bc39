"""`own(x)`, by hand: what a sequence is held against, ties, the order of rows, and the methods that rest on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import grolang
from grolang.compiler.method import from_source
from grolang.language.source import Source

HEAD = "method mine\ndata prompts\nscore q\n"
GROUP = torch.tensor([7, 3, 7, 7, 3])


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


Q = tensor(1, 5, 2, 2, 4)  # group 7: 1, 2, 2; group 3: 5, 4


def batch(q: Tensor = Q, group: Tensor = GROUP) -> grolang.Batch:
    """A token per row, log-probs -0.1, -0.2, … in the order of the rows."""
    rows = q.numel()
    logp = -torch.arange(1, rows + 1, dtype=torch.float64)[:, None] / 10
    mask = torch.ones(rows, 1, dtype=torch.bool)
    return grolang.Batch(mask=mask, group=group, logp=logp, logp_ref=logp * 2, logp_old=logp, scores={"q": q})


def per_row(expression: str, of: grolang.Batch | None = None) -> list[float]:
    """A sequence value, read off as the coefficient of each row's one token."""
    text = f"{HEAD}advantage = {expression}\naggregate = sum over batch\n"
    found = from_source(Source("mine.gro", text)).coefficients(of or batch())
    return [float(value) for value in found[:, 0]]


@pytest.mark.parametrize(
    ("expression", "values"),
    [
        ("mean(own(q) - q over others)", [-1, 1, 0.5, 0.5, -1]),
        ("sum(own(q) over others)", [2, 5, 4, 4, 4]),
        ("sum(q over others)", [4, 4, 3, 3, 5]),
        ("1 + sum(q > own(q) over others)", [3, 1, 1, 1, 2]),
        ("mean(own(q) > q over others)", [0, 1, 0.5, 0.5, 0]),
        ("max(own(q) * q over others)", [2, 20, 4, 4, 20]),
        ("std(own(q) - q over others)", [0, 0, 0.5, 0.5, 0]),
        ("quantile(own(q) - q, 1 over others)", [-1, 1, 1, 1, -1]),
        ("sum(own(mean(q over others)) over others)", [4, 4, 3, 3, 5]),
        ("sum(mean(own(q) - q over others) over others)", [1, -1, -0.5, -0.5, 1]),
        ("sum(max(q over group) - own(q) over others)", [2, 0, 0, 0, 1]),
    ],
)
def test_a_sequence_is_held_against_the_others_of_its_group(expression: str, values: list[float]) -> None:
    assert per_row(expression) == pytest.approx(values)


def test_the_order_of_the_rows_does_not_matter() -> None:
    order = torch.tensor([4, 2, 0, 1, 3])
    expression = "sum((own(q) > q) * (q + 1) over others) + min(own(q) - q over others)"
    moved = per_row(expression, batch(Q[order], GROUP[order]))
    assert moved == [per_row(expression)[place] for place in order.tolist()]


def test_a_gradient_flows_through_both_sides() -> None:
    text = f"{HEAD}reward = 0\naggregate = sum over batch\n"
    text += "penalty = sum((own(q) > q) * (own(sum(logp over tokens)) - sum(logp over tokens)) ^ 2 over others)\n"
    given = batch()
    assert given.logp is not None
    logp = given.logp[:, 0].clone().requires_grad_()
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j and GROUP[i] == GROUP[j] and Q[i] > Q[j]]
    torch.stack([(logp[i] - logp[j]) ** 2 for i, j in pairs]).sum().backward()
    assert logp.grad is not None
    found = from_source(Source("mine.gro", text)).coefficients(given)
    torch.testing.assert_close(found[:, 0], -logp.grad)


def test_a_group_of_one_has_no_rivals() -> None:
    with pytest.raises(grolang.GroError, match="E903"):
        per_row("mean(own(q) - q over others)", batch(Q, torch.tensor([7, 3, 7, 7, 1])))


def pairs(seed: int) -> grolang.Batch:
    """Preference pairs whose rows also carry the score that says which is which."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.tensor([1, -1, -1, 1, -1, 1], dtype=torch.float64)
    logp, ref = (-torch.rand(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)
    return grolang.Batch(
        mask=mask, group=torch.tensor([0, 0, 1, 1, 2, 2]), label=label, logp=logp, logp_ref=ref, logp_old=logp,
        scores={"correct": label},
    )  # fmt: skip


def test_online_dpo_on_two_completions_is_dpo() -> None:
    given = pairs(0)
    torch.testing.assert_close(grolang.load("online_dpo").coefficients(given), grolang.load("dpo").coefficients(given))


def test_gro_against_one_rival_is_dpo_up_to_a_factor() -> None:
    given, beta = pairs(1), 0.1
    ours, dpo = grolang.load("gro_rival", beta=beta).coefficients(given), grolang.load("dpo").coefficients(given)
    torch.testing.assert_close(ours, dpo * 2 / beta)


def test_online_dpo_shares_among_ties_and_skips_what_lies_between() -> None:
    q = tensor(1, 0, 1, 0.5, 0.5, 0.5)
    given = batch(q, torch.tensor([0, 0, 0, 0, 1, 1]))
    found = grolang.load("online_dpo").coefficients(given.replace(scores={"correct": q}))[:, 0]
    assert found[3:].tolist() == [0, 0, 0]
    assert float(found[0] + found[2] + found[1]) == pytest.approx(0, abs=1e-15)
    assert found[0] > 0 and found[2] > 0


def test_the_hellinger_distance_is_estimated_without_bias() -> None:
    """Over one token of five: the mean of `gro_hellinger`'s measure is Σ (√π - √π_ref)², to the last bits."""
    torch.manual_seed(0)
    policy, reference = (torch.randn(5, dtype=torch.float64).log_softmax(0) for _ in range(2))
    given = grolang.Batch(
        mask=torch.ones(5, 1, dtype=torch.bool), group=torch.zeros(5, dtype=torch.long), logp=policy[:, None],
        logp_ref=reference[:, None], scores={"correct": torch.zeros(5, dtype=torch.float64)},
    )  # fmt: skip
    method = grolang.load("gro_hellinger")
    run = method.evaluate(given)
    distances = (1 - ((reference - policy) / 2).exp()) ** 2
    assert run.reports["hellinger"] == pytest.approx(float((distances / 2).sqrt().mean()))
    exact = ((policy / 2).exp() - (reference / 2).exp()).square().sum()
    torch.testing.assert_close((policy.exp() * distances).sum(), exact)


@pytest.mark.parametrize("name", ["online_dpo", "rrhf", "gro_rival"])
def test_the_fused_module_gives_the_same_gradient(name: str) -> None:
    torch.manual_seed(0)
    method, given = grolang.load(name), pairs(2)
    hidden, head = torch.randn(6, 3, 4, dtype=torch.float64), torch.randn(8, 4, dtype=torch.float64)
    targets = torch.randint(8, (6, 3))
    logits = (hidden @ head.T).requires_grad_()
    logp = logits.log_softmax(2).gather(2, targets[:, :, None])[:, :, 0]
    coefficients = method.coefficients(given.replace(logp=logp.detach()))
    (-coefficients * logp).sum().backward()
    hidden.requires_grad_()
    grolang.compile(method)(hidden, head, targets, given.replace(logp=None)).backward()
    assert hidden.grad is not None and logits.grad is not None
    torch.testing.assert_close(hidden.grad, logits.grad @ head)
