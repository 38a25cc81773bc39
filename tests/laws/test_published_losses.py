"""Losses of newer papers, in PyTorch from their formulas, held against the built-in files; `distill` is after one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import grolang
from grolang.testing import assert_gradient


def sums(batch: grolang.Batch, name: str = "logp") -> Tensor:
    return (getattr(batch, name) * batch.mask).sum(1)


def topr(batch: grolang.Batch) -> Tensor:
    """Le Roux et al. (2025): −sg(clamp(π/µ, 0, 1) if R < 0 else 1) · R · log π."""
    reward = 2 * batch.scores["correct"] - 1
    taper = torch.exp(sums(batch) - sums(batch, "logp_old")).clamp(0, 1)
    return -(torch.where(reward < 0, taper, 1).detach() * reward * sums(batch)).mean()


def simper(batch: grolang.Batch) -> Tensor:
    """Xiao et al. (2025): exp of the mean log-prob of the rejected response, less that of the chosen one."""
    assert batch.label is not None
    average = sums(batch) / batch.mask.sum(1)
    return torch.exp(average[batch.label < 0]).mean() - torch.exp(average[batch.label > 0]).mean()


def surrogate(batch: grolang.Batch, advantage: Tensor, low: float, high: float) -> Tensor:
    assert batch.logp is not None and batch.logp_old is not None
    ratio = torch.exp(batch.logp - batch.logp_old)
    return torch.minimum(ratio * advantage[:, None], ratio.clamp(1 - low, 1 + high) * advantage[:, None])


def spread_over_groups(batch: grolang.Batch, centre: Callable[[Tensor], Tensor]) -> Tensor:
    assert batch.group is not None
    reward = batch.scores["correct"]
    advantage = torch.zeros_like(reward)
    for group in torch.unique(batch.group):
        own = reward[batch.group == group]
        if own.std(correction=0) > 0:
            advantage[batch.group == group] = (own - centre(own)) / own.std(correction=0)
    return advantage


def icepop(batch: grolang.Batch) -> Tensor:
    """Ling team (2025): M(k) = k where 0.5 ≤ k ≤ 5, else 0, with k = π_train(θ_old) / π_infer(θ_old)."""
    assert batch.logp_old is not None and batch.logp_sampler is not None
    k = torch.exp(batch.logp_old - batch.logp_sampler)
    kept = torch.where((k >= 0.5) & (k <= 5), k, 0)
    loss = -kept * surrogate(batch, spread_over_groups(batch, torch.mean), 0.2, 0.2)
    return ((loss * batch.mask).sum(1) / batch.mask.sum(1)).mean()


def high_entropy(batch: grolang.Batch) -> Tensor:
    """Wang et al. (2025): DAPO's loss where the entropy is in the batch's top fifth."""
    assert batch.entropy is not None
    threshold = torch.quantile(batch.entropy[batch.mask], 0.8)
    loss = (batch.entropy >= threshold) * -surrogate(batch, spread_over_groups(batch, torch.mean), 0.2, 0.28)
    return loss[batch.mask].mean()


def qae(batch: grolang.Batch) -> Tensor:
    """Wu et al. (2025): DAPO's loss with inf{r : F(r) ≥ 0.4} of the group for its mean."""
    advantage = spread_over_groups(batch, lambda own: own.sort().values[math.ceil(0.4 * len(own)) - 1])
    return -surrogate(batch, advantage, 0.2, 0.28)[batch.mask].mean()


def distill(batch: grolang.Batch) -> Tensor:
    """After Agarwal et al. (2023), one token: −sg(ratio, at most our 5) · (log π_teacher − log π_old) · log π."""
    assert batch.logp is not None and batch.logp_old is not None and batch.logp_ref is not None
    ratio = torch.exp(batch.logp - batch.logp_old).clamp(max=5).detach()
    return -(ratio * (batch.logp_ref - batch.logp_old) * batch.logp)[batch.mask].mean()


def lipo(batch: grolang.Batch) -> Tensor:
    """Liu et al. (2024), LiPO-λ: Σ_{ψ_i > ψ_j} Δ_ij · −log σ(s_i − s_j), ranks from the policy's scores s."""
    assert batch.group is not None
    psi, score = batch.scores["correct"], 0.1 * (sums(batch) - sums(batch, "logp_ref"))
    total, groups = score.sum() * 0, torch.unique(batch.group).tolist()
    for group in groups:
        rows = [row for row in range(len(psi)) if batch.group[row] == group]
        place = {
            row: 1 + sum((score[other], psi[other]) > (score[row], psi[row]) for other in rows if other != row)
            for row in rows
        }
        for i in rows:
            for j in rows:
                if psi[i] > psi[j]:
                    swapped = abs(1 / math.log(1 + place[i]) - 1 / math.log(1 + place[j]))
                    total = total - (2 ** psi[i] - 2 ** psi[j]) * swapped * logsigmoid(score[i] - score[j])
    return total / len(groups)


def luffy(batch: grolang.Batch) -> Tensor:
    """Yan et al. (2025): f(π) · A for a demonstration's tokens, f(x) = x / (x + 0.1); PPO's clip for the others."""
    assert batch.logp is not None and batch.group is not None and batch.demonstration is not None
    given = batch.demonstration > 0
    reward = torch.where(given, 1, batch.scores["correct"])
    total, groups = batch.logp.sum() * 0, torch.unique(batch.group).tolist()
    for group in groups:
        own = batch.group == group
        advantage = (reward - reward[own].mean()) * own
        shaped = batch.logp.exp() / (batch.logp.exp() + 0.1) * advantage[:, None]
        gain = torch.where(given[:, None], shaped, surrogate(batch, advantage, 0.2, 0.2))
        total = total - gain[batch.mask & own[:, None]].mean()
    return total / len(groups)


def chi_po(batch: grolang.Batch) -> Tensor:
    """Huang et al. (2024), Algorithm 1: −log σ(clip(β φ(chosen) − β φ(rejected))), φ = e^u + u of the log-ratio u."""
    assert batch.label is not None and batch.group is not None
    u = sums(batch) - sums(batch, "logp_ref")
    link = 0.05 * (torch.exp(u.clamp(-88, 20)) + u)
    chosen, rejected = (
        torch.stack(
            [link[(batch.group == group) & (batch.label == side)].squeeze() for group in torch.unique(batch.group)]
        )
        for side in (1, -1)
    )
    return -logsigmoid((chosen - rejected).clamp(-20, 20)).mean()


def spo(batch: grolang.Batch) -> Tensor:
    """Xie et al. (2024): r · A − |A| / (2ε) · (r − 1)², the batch's mean reward for a baseline."""
    assert batch.logp is not None and batch.logp_old is not None
    ratio = torch.exp(batch.logp - batch.logp_old)
    advantage = (batch.scores["correct"] - batch.scores["correct"].mean())[:, None]
    return -(ratio * advantage - advantage.abs() / (2 * 0.2) * (ratio - 1) ** 2)[batch.mask].mean()


@pytest.mark.parametrize(
    ("loss", "params"),
    [
        (topr, {}),
        (simper, {}),
        (icepop, {"beta": 0.0}),
        (high_entropy, {}),
        (qae, {}),
        (distill, {}),
        (lipo, {}),
        (luffy, {}),
        (chi_po, {}),
        (spo, {}),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_the_file_has_the_gradient_of_the_published_loss(
    loss: Callable[[grolang.Batch], Tensor], params: dict[str, float]
) -> None:
    assert_gradient(loss, grolang.load(loss.__name__, **params), examples=25)
