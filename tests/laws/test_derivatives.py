"""The derivative of each reduction and form, as a penalty's coefficients, against torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import grolang
from grolang.compiler.method import from_source
from grolang.language.source import Source

STEPS = torch.arange(3, dtype=torch.float64)
CHOSEN, REJECTED = [0, 3], [1, 2]  # rows of the two pairs


def to_go(x: Tensor, g: float) -> Tensor:
    return torch.stack([(x[:, t:] * g ** STEPS[: 3 - t]).sum(1) for t in range(3)], 1)


#: a penalty of batch scope, and the same of log-probs [4, 3]
PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean(mean(logp ^ 2 over tokens) over batch)": lambda x: (x**2).mean(1).mean(),
    "sum(logp ^ 2 over batch)": lambda x: (x**2).sum(),
    "mean(sum(logp ^ 2 over tokens) * exp(mean(logp over batch)) over batch)": lambda x: (
        (x**2).sum(1) * x.mean().exp()
    ).mean(),
    "std(logp over batch)": lambda x: x.std(correction=0),
    "sample_std(logp over batch)": lambda x: x.std(correction=1),
    "mean(sample_std(logp over tokens) over batch)": lambda x: x.std(1, correction=1).mean(),
    "quantile(logp, 0.3 over batch)": lambda x: x.flatten().quantile(0.3),
    "max(logp over batch)": lambda x: x.max(),
    "mean(chosen(sum(logp ^ 2 over tokens)) - 2 * rejected(sum(logp over tokens)) over batch)": lambda x: (
        (x[CHOSEN] ** 2).sum(1).mean() - 2 * x[REJECTED].sum(1).mean()
    ),
    "mean(opposite(sum(logp ^ 2 over tokens)) * (label + 2) over batch)": lambda x: (
        (3 * (x[REJECTED] ** 2).sum() + (x[CHOSEN] ** 2).sum()) / 4
    ),
    "mean(to_go(logp ^ 2, 0.5) * position over batch)": lambda x: (to_go(x**2, 0.5) * STEPS).mean(),
    "mean(terminal(sum(logp ^ 2 over tokens)) * logp over batch)": lambda x: ((x**2).sum(1) * x[:, 2]).sum() / 12,
    "mean(sg(logp) * logp over batch)": lambda x: (x.detach() * x).mean(),
    "mean(sum(logp over tokens) * mean(sum(logp over tokens) over others) over batch)": lambda x: (
        2 * (x[0].sum() * x[1].sum() + x[2].sum() * x[3].sum()) / 4
    ),
}


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_penalty_is_descended_along_its_gradient(penalty: str) -> None:
    text = f"method m\ndata preference\nreward = 0\npenalty = {penalty}\n"
    generator = torch.Generator().manual_seed(0)
    logp = (-torch.rand(4, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    batch = grolang.Batch(
        mask=torch.ones(4, 3, dtype=torch.bool),
        group=torch.tensor([0, 0, 1, 1]),
        label=torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64),
        logp=logp.detach(),
    )
    torch.autograd.backward(PENALTIES[penalty](logp))
    assert logp.grad is not None
    torch.testing.assert_close(from_source(Source("m.gro", text)).coefficients(batch), -logp.grad)
