"""`grolang.testing.assert_gradient`: losses as people write them, held against methods."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import grolang
from grolang.testing import assert_gradient


def dpo(batch: grolang.Batch, beta: float = 0.1) -> Tensor:
    """As in most repositories: chosen and rejected are looked for, and the pairs averaged."""
    assert batch.logp is not None and batch.logp_ref is not None and batch.label is not None and batch.group is not None
    ratio = ((batch.logp - batch.logp_ref) * batch.mask).sum(1)
    good, bad = (ratio[batch.label == side][batch.group[batch.label == side].argsort()] for side in (1, -1))
    return -logsigmoid(beta * (good - bad)).mean()


def grpo(batch: grolang.Batch, epsilon: float = 0.2, divisor: float = 1e-8) -> Tensor:
    assert batch.logp is not None and batch.logp_old is not None and batch.group is not None
    score = batch.scores["correct"]
    advantage = torch.zeros_like(score)
    for group in batch.group.unique():
        own = score[batch.group == group]
        advantage[batch.group == group] = (own - own.mean()) / (own.std(correction=0) + divisor)
    ratio = torch.exp(batch.logp - batch.logp_old)
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    each = -torch.minimum(ratio * advantage[:, None], clipped * advantage[:, None])
    return ((each * batch.mask).sum(1) / batch.mask.sum(1)).mean()


def test_losses_that_are_right() -> None:
    assert_gradient(dpo, "dpo", examples=10)
    assert_gradient(dpo, grolang.load("dpo"), examples=10, holes=True)
    assert_gradient(grpo, grolang.load("grpo", beta=0), examples=10)


@pytest.mark.parametrize(
    ("loss", "method"),
    [
        (lambda batch: dpo(batch, beta=0.2), "dpo"),
        (lambda batch: dpo(batch) * 2, "dpo"),
        (lambda batch: dpo(batch) * torch.nan, "dpo"),
        (lambda batch: dpo(batch).detach(), "dpo"),
        (lambda batch: grpo(batch, divisor=1e-2), grolang.load("grpo", beta=0)),
        (lambda batch: grpo(batch, epsilon=0.3), grolang.load("grpo", beta=0)),
    ],
)
def test_losses_that_are_wrong(
    monkeypatch: pytest.MonkeyPatch, loss: Callable[[grolang.Batch], Tensor], method: grolang.Method | str
) -> None:
    monkeypatch.setattr("grolang.laws.claims.SHRINKING", -1.0)
    with pytest.raises(
        AssertionError, match=r"(?s)is not that of (dpo|grpo)\nleft is .*row 0, group 0.*row 1.*right"
    ) as found:
        assert_gradient(loss, method, examples=40)
    assert "row 2" not in str(found.value)  # two completions show it


def test_padding_is_drawn_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grolang.laws.claims.SHRINKING", -1.0)
    with pytest.raises(AssertionError, match="is not that of grpo"):  # 0 / 0 in a row without tokens
        assert_gradient(grpo, grolang.load("grpo", beta=0), examples=100, padding=True)


def test_what_a_loss_raises_is_not_hidden() -> None:
    def broken(batch: grolang.Batch) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        assert_gradient(broken, "dpo")


def test_a_counterexample_keeps_the_shape_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions at the left of their rows, and groups of four: the loss reads them so."""
    monkeypatch.setattr("grolang.laws.claims.SHRINKING", -1.0)
    shapes: list[tuple[Tensor, Tensor]] = []

    def twice(batch: grolang.Batch) -> Tensor:
        assert batch.logp is not None and batch.group is not None
        shapes.append((batch.mask, torch.unique(batch.group, return_counts=True)[1]))
        reward = batch.scores["correct"].view(-1, 4)[torch.unique(batch.group, return_inverse=True)[1], 0]
        rows = [row[: int(mask.sum())].mean() for row, mask in zip(batch.logp, batch.mask)]
        return -2 * (reward * torch.stack(rows)).mean()

    with pytest.raises(AssertionError, match="is not that of rloo"):
        assert_gradient(twice, "rloo", smallest_group=4, largest_group=4, examples=20)
    assert all((mask.int().diff(dim=1) <= 0).all() and (sizes == 4).all() for mask, sizes in shapes)


def test_a_loss_that_pushes_slots_without_a_token_is_told() -> None:
    def unmasked(batch: grolang.Batch) -> Tensor:
        assert batch.logp is not None
        return -batch.logp.sum() / batch.mask.sum()

    method = grolang.load("sft")
    with pytest.raises(AssertionError, match=r"where the mask is off \(row \d+, slot \d+\).*multiply by `batch.mask`"):
        assert_gradient(unmasked, method, examples=20)
    assert_gradient(lambda batch: unmasked(batch.replace(logp=batch.logp * batch.mask)), method, examples=5)


@pytest.mark.parametrize(("made", "said"), [(lambda x: x, r"shape \[\d+\]"), (lambda x: 1.5, "a float")])
def test_a_loss_that_is_no_scalar_is_told(made: Callable[[Tensor], object], said: str) -> None:
    with pytest.raises(AssertionError, match=rf"a tensor without axes .*; this one is .*{said}"):
        assert_gradient(lambda batch: made(dpo(batch)[None]), "dpo", examples=5)  # type: ignore[arg-type,return-value]  # wrong on purpose
