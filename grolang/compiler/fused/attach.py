"""Where the engine meets autograd: a scalar whose gradients are formed already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grolang.language.diagnostics import GroError

from .exact import opaque


@opaque
def attach(value: Tensor, inputs: Sequence[Tensor | None], grads: Sequence[Tensor | None]) -> Tensor:
    """`value` as a scalar whose gradient in inputs[k] is grads[k]; None on either side has none.

    The backward pass multiplies them by the upstream gradient in place, gives them in the inputs' dtypes and
    lets them go: the gradients are consumed, and a second backward pass, or a second derivative, raises
    GroError.
    """
    return torch.as_tensor(_Attached.apply(value.detach(), list(grads), *inputs))  # type: ignore[no-untyped-call]  # torch has no type for it


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: list[Tensor | None], *inputs: Tensor | None) -> Tensor:
        ctx.grads = grads
        ctx.dtypes = [None if one is None else one.dtype for one in inputs]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        if ctx.grads is None:
            raise GroError.plain(
                "these gradients were formed in the forward pass and have been handed out already",
                help="run the forward pass again before a second backward pass",
            )
        # Autograd takes a buffer over without a copy only if nobody else holds it.
        grads, ctx.grads = ctx.grads, None
        given: list[Tensor | None] = [None, None]
        for dtype, needed in zip(ctx.dtypes, ctx.needs_input_grad[2:], strict=True):
            grad = grads.pop(0)
            given.append(grad.mul_(upstream).to(dtype) if needed and grad is not None else None)
            del grad
        return tuple(given)


def refuse_second_order() -> None:
    """To be called in a backward pass: autograd records one only to differentiate it again."""
    if torch.is_grad_enabled():
        raise GroError.plain(
            "the fused log-probs have no second derivative: their gradient is not itself differentiable",
            help="call backward without create_graph=True, or take plain logits for second-order work",
        )
