"""Gradients for coefficients that are known: logits are recomputed, in tiles of the vocabulary.

Against chunks of rows: each slice of the head's gradient is one product over all live rows, added once, and only
dH [N, D] is summed over tiles.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .head import hidden_gradient, logits, products
from .launch import write_errors
from .products import multiply, spans
from .rows import LN2, errors
from .sweep import Sums, Sweep, add_bias, weighted, widened


def add_recomputed(sweep: Sweep, rows: slice, coefficients: Tensor, d_hidden: Tensor, sums: Sums) -> None:
    """Add the gradients of −Σ c·logp over `rows` to `sums`; d_hidden [n, D], zeros on entry, receives theirs.

    The sweep knows the rows' lse already, and its tile is used up. Rows with c = 0 are dropped first and cost nothing.
    """
    precise, head = sweep.precise, sweep.head
    live = coefficients.nonzero().squeeze(1)
    if len(live) == 0:
        return
    c, places = coefficients[live], live + rows.start
    hidden, targets, lse = sweep.hidden[places], sweep.targets[places], sweep.lse[places]
    states, scaled = hidden.to(precise.operands), weighted(hidden, c, precise)
    d_live = torch.zeros(hidden.shape, dtype=precise.sums, device=hidden.device)
    for columns in spans(head.vocabulary, max(1, sweep.tile.numel() // len(live))):
        shape = len(live), columns.stop - columns.start
        tile = shaped(sweep.tile, shape)
        found = tile if sweep.errors is sweep.tile else shaped(sweep.errors, shape)
        slope = None if sweep.slope is None else shaped(sweep.slope, shape)
        if sweep.kernel is not None:
            products(head, states, tile, columns)
            write_errors(head, tile, found, targets, lse, columns.start)
        else:
            base2 = replace(head, temperature=head.temperature * LN2)  # exp2 costs a CPU a quarter of exp
            log2_p = logits(base2, states, tile, slope, columns).sub_((lse / LN2).unsqueeze(1))
            place = (targets - columns.start).clamp(0, shape[1] - 1).unsqueeze(1)
            own = log2_p.gather(1, place).squeeze(1) * LN2
            errors(log2_p.exp2_(), targets, own, slope, columns.start)
        if sums.bias is not None:
            add_bias(widened(found, tile), c, head, sums.bias[columns])
        operand = found.to(precise.operands)
        hidden_gradient(head, operand, d_live, columns, beta=1.0)
        if sums.weight is not None:
            multiply(sums.weight[columns], operand.T, scaled, alpha=head.gain, beta=1.0)
    d_hidden[live] = d_live.mul_(c.unsqueeze(1))


def shaped(buffer: Tensor, shape: tuple[int, int]) -> Tensor:
    """The start of a buffer as [n, v]; another one where it holds fewer numbers than one column."""
    size = shape[0] * shape[1]
    return (buffer.view(-1)[:size] if size <= buffer.numel() else buffer.new_empty(size)).view(shape)
