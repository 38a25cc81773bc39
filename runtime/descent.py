"""From a gradient to a step of the optimizer: its rate, its norm, its scale. What is not finite moves nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from grolang.compiler.blame import NotFinite
from grolang.runtime.settings import RunSettings
from grolang.runtime.sharding import gathered

FIRST, GROWTH = 2.0**16, 2000


@dataclass
class Scale:
    """The factor in front of a gradient that passes through fp16, so that its small parts do not vanish.

    Micikevicius et al. (2018), Section 3.2: halved where the gradient overflows, a step that is then left out, and
    doubled after GROWTH steps in a row that did not. A power of two, which rounds nothing.
    """

    value: float = FIRST
    good: int = 0

    def moved(self, finite: bool) -> None:
        """After a step: whether its gradient was finite."""
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good == GROWTH:
            self.value, self.good = 2 * self.value, 0


@dataclass
class Descent:
    """AdamW on the parameters that are trained, by the settings. `scale` is there where gradients are fp16."""

    named: dict[str, nn.Parameter]
    settings: RunSettings
    scale: Scale | None = None
    optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        decay = self.settings.weight_decay
        self.optimizer = torch.optim.AdamW(self.named.values(), lr=self.settings.lr, weight_decay=decay)

    @classmethod
    def of(cls, model: nn.Module, settings: RunSettings) -> Descent:
        """Of what a model has to train."""
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        return cls(named, settings, Scale() if settings.precision == "fp16" else None)

    def __call__(self, taken: int) -> float | None:
        """The step after `taken` others, with the gradient that the parameters have; its norm before clipping.

        None where an fp16 gradient has overflowed: the step is left out and the scale halved. Any other gradient that
        is not finite is an error, and so is one that overflows without a scale.
        """
        self.rate(taken)
        gradients = [parameter.grad for parameter in self.named.values() if parameter.grad is not None]
        if self.scale is not None:
            for gradient in gradients:
                gradient.div_(self.scale.value)
        total = torch.nn.utils.get_total_norm(gradients)
        total = gathered(total)
        norm = float(total)
        if self.scale is not None:
            self.scale.moved(math.isfinite(norm))
        if math.isfinite(norm):
            torch.nn.utils.clip_grads_with_norm_(self.named.values(), self.settings.max_grad_norm, total)
            self.optimizer.step()
        error = None if math.isfinite(norm) or (self.scale and self.scale.value >= 1) else self._not_finite(norm)
        self.optimizer.zero_grad()
        if error is not None:
            raise error
        return norm if math.isfinite(norm) else None

    def rate(self, taken: int) -> None:
        """Set the rate of the step after `taken` others."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, taken)

    def state(self) -> dict[str, Any]:
        """The optimizer's, by number of the parameter; every process has to ask."""
        return self.optimizer.state_dict()

    def _not_finite(self, norm: float) -> NotFinite:
        """Which parameter's gradient it is; where the model itself is not finite, that."""
        for what, tensors in (
            ("the weights", {name: parameter.data for name, parameter in self.named.items()}),
            ("the gradient", {name: parameter.grad for name, parameter in self.named.items()}),
        ):
            for name, tensor in tensors.items():
                own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                if own is not None and not bool(torch.isfinite(own).all()):
                    message = f"{what} of {name}: not finite"
                    return NotFinite.plain(message, help="lower --lr, or look for extreme scores", code="E902")
        return NotFinite.plain(f"the gradient's norm is {norm:g}", help="look for extreme scores", code="E902")


def learning_rate(settings: RunSettings, step: int) -> float:
    """The rate of a step counted from 0: a linear rise over the warm-up, then the schedule. No state to save."""
    warmup = settings.warmup
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    part = (step - warmup) / max(1, settings.steps - warmup)
    shape = {"constant": 1.0, "linear": 1.0 - part, "cosine": 0.5 + 0.5 * math.cos(math.pi * part)}
    return settings.lr * shape[settings.schedule]
