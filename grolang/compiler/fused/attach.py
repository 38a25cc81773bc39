"""Where the engine meets autograd: a scalar whose gradients are formed already, one that forms them later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grolang.language.diagnostics import GroError

from .exact import opaque
from .forward import forward
from .frozen import refuse_second_order
from .head import Head
from .recompute import gradients
from .rows import Rows
from .sweep import BUDGET


@opaque
def attach(value: Tensor, inputs: Sequence[Tensor | None], grads: Sequence[Tensor | None]) -> Tensor:
    """`value` as a scalar whose gradient in inputs[k] is grads[k]; None on either side has none.

    The backward pass multiplies them by the upstream gradient in place, gives them in the inputs' dtypes and
    lets them go: the gradients are consumed, and a second backward pass, or a second derivative, raises
    GroError.
    """
    return torch.as_tensor(_Attached.apply(value.detach(), list(grads), *inputs))  # type: ignore[no-untyped-call]


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


@opaque
def surrogate(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    coefficients: Tensor,
    *,
    known: Rows | None = None,
    budget: int = BUDGET,
) -> Tensor:
    """−Σ c·logp [scalar], with gradients in hidden, weight and bias of −Σ c ∇logp: c [N] is held fixed.

    The backward pass recomputes the logits (6NDV); rows with c = 0 cost nothing in either direction. The
    forward pass takes 2NDV, or nothing where `known` holds the result of `forward` on the same hidden
    states: then log-probs, coefficients and gradients together take 8NDV, at any scope of c. Where c is
    known before any log-prob, `single_pass` and `attach` take 6NDV. The value is fp32 (fp64 for fp64 inputs).
    """
    return torch.as_tensor(
        _Surrogate.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, head, targets, coefficients.detach(), known, budget
        )
    )


class _Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        targets: Tensor,
        coefficients: Tensor,
        known: Rows | None,
        budget: int,
    ) -> Tensor:
        live = coefficients.nonzero().squeeze(1)
        if known is None:
            found = forward(hidden[live], head, targets[live], budget=budget)
            logp, lse = (
                found.logp,
                hidden.new_zeros(len(hidden), dtype=found.lse.dtype).index_copy_(0, live, found.lse),
            )
        else:
            logp, lse = known.logp[live], known.lse
        ctx.save_for_backward(hidden, weight, bias, targets, coefficients, lse)
        ctx.head, ctx.budget = (head.scale, head.softcap, head.temperature), budget
        return -(coefficients[live].to(logp.dtype) * logp).sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        hidden, weight, bias, targets, coefficients, lse = ctx.saved_tensors
        head = Head(weight, bias, *ctx.head)
        found = gradients(hidden, head, targets, coefficients.to(lse.dtype) * upstream, lse, budget=ctx.budget)
        inputs = zip(found, (hidden, weight, bias), strict=True)
        given = (None if one is None or grad is None else grad.to(one.dtype) for grad, one in inputs)
        return (*given, None, None, None, None, None)
