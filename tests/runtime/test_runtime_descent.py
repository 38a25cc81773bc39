"""A step of the optimizer: its rate by the schedule, its gradient's norm, and nothing moved by what is not finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from grolang.compiler.blame import NotFinite
from grolang.runtime.descent import GROWTH, Descent, Scale, learning_rate
from grolang.runtime.settings import RunSettings


def test_the_rate_rises_over_the_warm_up_and_falls_by_the_schedule() -> None:
    settings = RunSettings(method="m", output="o", batch=1, lr=8.0, warmup=4, steps=12, schedule="linear")
    assert [learning_rate(settings, step) for step in range(4)] == [2.0, 4.0, 6.0, 8.0]
    assert [learning_rate(settings, step) for step in (4, 6, 8, 11)] == [8.0, 6.0, 4.0, 1.0]
    cosine = settings.model_copy(update={"schedule": "cosine"})
    assert [learning_rate(cosine, step) for step in (4, 8, 12)] == pytest.approx([8.0, 4.0, 0.0])
    constant = settings.model_copy(update={"schedule": "constant", "warmup": 0})
    assert {learning_rate(constant, step) for step in range(12)} == {8.0}


def descent(gradient: list[float], **settings: Any) -> Descent:
    parameter = nn.Parameter(torch.zeros(len(gradient)))
    parameter.grad = torch.tensor(gradient)
    flags: dict[str, Any] = {
        "method": "m",
        "output": "o",
        "batch": 1,
        "lr": 0.5,
        "warmup": 0,
        "steps": 10,
        "schedule": "constant",
        "weight_decay": 0.0,
        **settings,
    }
    return Descent({"weight": parameter}, RunSettings(**flags))


def test_a_step_moves_by_the_clipped_gradient_and_gives_the_norm_before() -> None:
    made = descent([3.0, 4.0], max_grad_norm=1.0)
    made.optimizer = torch.optim.SGD(made.named.values())  # type: ignore[assignment]  # Adam would hide the length
    assert made(0) == 5.0
    torch.testing.assert_close(made.named["weight"].data, torch.tensor([-0.3, -0.4]))
    assert made.named["weight"].grad is None


def test_a_gradient_that_is_not_finite_moves_nothing_and_is_named() -> None:
    made = descent([1.0, float("inf")])
    with pytest.raises(NotFinite, match="the gradient of weight: not finite"):
        made(0)
    assert not made.named["weight"].data.any()


def test_the_scale_of_fp16_gradients_is_taken_out_halved_and_doubled() -> None:
    made = descent([6.0, 8.0], max_grad_norm=100.0)
    made.scale = Scale(2.0)
    assert made(0) == 5.0
    made.named["weight"].grad = torch.tensor([float("inf"), 1.0])
    before = made.named["weight"].data.clone()
    assert made(1) is None and made.scale.value == 1.0
    assert torch.equal(made.named["weight"].data, before)
    for _ in range(GROWTH):
        made.scale.moved(True)
    assert made.scale.value == 2.0
