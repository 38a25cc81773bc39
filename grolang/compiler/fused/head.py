"""The head of a language model: hidden states to logits, and the chain rule back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grolang.language.diagnostics import GroError

from .products import blocks, multiply, spans

ALL = slice(None)

FEW, CHAIN = 4, 2**12
"""A CPU's product of fewer rows adds up all words in one chain, with 2^18 of them off by 5e-5: so many are let."""


@dataclass(frozen=True)
class Head:
    """logits = softcap·tanh((h Wᵀ + b)·scale / softcap) / temperature, or uncapped
    (h Wᵀ + b)·scale / temperature.

    weight [V, D] and bias [V] receive gradients exactly when they require them. `scale` is Cohere's logit
    multiplier, `softcap` Gemma's final cap, `temperature` the sampler's.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        weight, bias = self.weight, self.bias
        if weight.dim() != 2:
            raise GroError.plain(f"expected the head's weight as [V, D], found {list(weight.shape)}")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise GroError.plain(f"expected the head's bias as [{len(weight)}], found {list(bias.shape)}")
        if self.temperature <= 0:
            raise GroError.plain(f"expected a temperature above 0, found {self.temperature}")
        if self.softcap is not None and self.softcap <= 0:
            raise GroError.plain(f"expected a softcap above 0, found {self.softcap}", help="leave it out for no cap")

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    @property
    def gain(self) -> float:
        """Derivative of a logit in h·Wᵥ + bᵥ where the cap is not felt."""
        return self.scale / self.temperature


def project(head: Head, hidden: Tensor, out: Tensor, columns: slice = ALL, *, alpha: float = 1.0) -> Tensor:
    """Fill out [n, v] with α·h·W[columns]: what `logits` and the kernels begin with."""
    for block, weight in blocks(head.weight, columns, hidden.dtype):
        multiply(out[:, block], hidden, weight.T, alpha=alpha)
    return out


def logits(head: Head, hidden: Tensor, out: Tensor, slope: Tensor | None = None, columns: slice = ALL) -> Tensor:
    """Fill out [n, v] with the logits of hidden [n, D] in `columns`, in out's dtype.

    `slope` [n, v], given exactly where the head has a softcap, receives 1 − tanh²: a logit's derivative in
    h·Wᵥ + bᵥ is gain · slope.
    """
    alpha = head.gain if head.softcap is None else head.scale / head.softcap
    project(head, hidden, out, columns, alpha=alpha)
    if head.bias is not None:
        out.add_(head.bias[columns].to(out.dtype), alpha=alpha)
    if head.softcap is not None:
        out.tanh_()
        if slope is not None:
            torch.mul(out, out, out=slope)
            slope.neg_().add_(1)
        out.mul_(head.softcap / head.temperature)
    return out


def hidden_gradient(head: Head, errors: Tensor, out: Tensor, columns: slice = ALL, *, beta: float = 0.0) -> Tensor:
    """out = beta·out + gain · errors·W[columns]: errors [n, v], out [n, D].

    errors are the gradient in the logits times the slope of `logits`, or that in bf16: then errors·W may be rounded.
    """
    few = out.device.type == "cpu" and len(errors) < FEW and errors.dtype == out.dtype
    for index, (block, weight) in enumerate(blocks(head.weight, columns, errors.dtype)):
        found, once = errors[:, block], beta if index == 0 else 1.0
        if few and len(weight) > CHAIN:
            parts = [found[:, part] @ weight[part] for part in spans(len(weight), CHAIN)]
            out = (out.mul_(once) if once else out.zero_()).add_(torch.stack(parts).sum(0), alpha=head.gain)
        else:
            multiply(out, found, weight, alpha=head.gain, beta=once, rounded=True)
    return out
