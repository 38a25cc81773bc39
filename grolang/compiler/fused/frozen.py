"""A head that is not trained: ∇logp in the hidden states comes with the forward pass, for any c."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grolang.language.diagnostics import GroError

from .exact import exact, opaque
from .head import Head
from .rows import Rows
from .sweep import BUDGET, Sums, Sweep, row_chunks


@exact
def directions(
    hidden: Tensor, head: Head, targets: Tensor, *, entropy: bool = False, budget: int = BUDGET
) -> tuple[Rows, Tensor]:
    """(logp …, G): G_i = ∂logp_i/∂h_i [N, D] = W[y_i] − Σ_v p_iv W_v (times gain and slope): 4NDV.

    The gradient of −Σ c·logp in hidden is −c ⊙ G, whatever c depends on: no logits are kept, none recomputed.
    G is fp32 (fp64 for fp64 inputs).
    """
    chunks = row_chunks(hidden, head, budget)
    sweep = Sweep(hidden, head, targets, chunks, entropy=entropy)
    found = torch.zeros(hidden.shape, dtype=sweep.precise.sums, device=hidden.device)
    for rows in chunks:
        sweep.read(rows)
        sweep.add(rows, -torch.ones_like(sweep.logp[rows]), found, Sums(None, None))
    return Rows(sweep.logp, sweep.lse, sweep.entropy), found


@opaque
def frozen_logps(
    hidden: Tensor, head: Head, targets: Tensor, *, entropy: bool = False, budget: int = BUDGET
) -> tuple[Tensor, Tensor | None]:
    """(logp [N] differentiable in hidden, entropy [N] or None), for a head that is not trained.

    The backward pass of logp is one product g ⊙ G, at any scope of g. Without autograd it is `logps`: 2NDV.
    Raises GroError where the head asks for gradients, since they could not be formed.
    """
    if head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad):
        raise GroError.plain(
            "frozen_logps forms no gradient for the head, and this head asks for one",
            help="freeze it with requires_grad_(False), or use single_pass, factored_pass or surrogate",
        )
    logp, found = _FrozenLogps.apply(hidden, head, targets, entropy, budget)  # type: ignore[no-untyped-call]
    return logp, found


class _FrozenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, targets: Tensor, entropy: bool, budget: int
    ) -> tuple[Tensor, Tensor | None]:
        rows, found = directions(hidden, head, targets, entropy=entropy, budget=budget)
        ctx.save_for_backward(found)
        ctx.dtype = hidden.dtype
        if rows.entropy is not None:
            ctx.mark_non_differentiable(rows.entropy)
        return rows.logp, rows.entropy

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor | None) -> tuple[Tensor, None, None, None, None]:
        refuse_second_order()
        (found,) = ctx.saved_tensors
        return (found * upstream.unsqueeze(1)).to(ctx.dtype), None, None, None, None


def refuse_second_order() -> None:
    """To be called in a backward pass: autograd records one only to differentiate it again."""
    if torch.is_grad_enabled():
        raise GroError.plain(
            "the fused log-probs have no second derivative: their gradient is not itself differentiable",
            help="call backward without create_graph=True, or take plain logits for second-order work",
        )
