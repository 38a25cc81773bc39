"""Gradients for coefficients that are known: logits are recomputed, in tiles of the vocabulary.

Against chunks of rows: each slice of the head's gradient is one product over all live rows, added once, and only
dH [N, D] is summed over tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .head import hidden_gradient, logits, project
from .launch import write_errors
from .products import multiply, spans
from .rows import errors, taken
from .sweep import Sums, Sweep, add_bias, add_own, as_operand, gap, weighted, widened


def add_recomputed(sweep: Sweep, rows: slice, coefficients: Tensor, d_hidden: Tensor, sums: Sums) -> None:
    """Add the gradients of −Σ c·logp over `rows` to `sums`; d_hidden [n, D], zeros on entry, receives theirs.

    The sweep has read the rows already, and its tile is used up. Rows with c = 0 are dropped first and cost nothing.
    """
    precise, head = sweep.precise, sweep.head
    live = coefficients.nonzero().squeeze(1)
    if len(live) == 0:
        return
    places = live + rows.start
    c, top, total = coefficients[live] / sweep.total[places], sweep.top[places], sweep.total[places]
    hidden, targets, logp, lse = (one[places] for one in (sweep.hidden, sweep.targets, sweep.logp, sweep.lse))
    states, scaled = hidden.to(precise.operands), weighted(hidden, c, precise)
    d_live = torch.zeros(hidden.shape, dtype=precise.sums, device=hidden.device)
    own = torch.zeros_like(c)
    for columns in spans(head.vocabulary, sweep.tile.numel() // len(live) - gap(sweep.tile, 0)):
        shape = len(live), columns.stop - columns.start
        tile = shaped(sweep.tile, shape)
        found = tile if sweep.errors is sweep.tile else shaped(sweep.errors, shape)
        slope = None if sweep.slope is None else shaped(sweep.slope, shape)
        if sweep.kernel is not None:
            project(head, states, tile, columns)
            write_errors(head, tile, found, targets, lse, columns.start)
        else:
            e = logits(sweep.base2, states, tile, slope, columns).sub_(top.unsqueeze(1)).exp2_()
            errors(e, targets, logp, total, slope, columns.start)
        if sums.bias is not None:
            add_bias(widened(found, tile), c, head, sums.bias[columns])
        if sweep.rounded:
            own += taken(found, targets, columns.start)
        operand = as_operand(found, precise)
        hidden_gradient(head, operand, d_live, columns, beta=1.0)
        if sums.weight is not None:
            multiply(sums.weight[columns], operand.T, scaled, alpha=head.gain, beta=1.0, rounded=True)
    if sweep.rounded:
        add_own(head, own, hidden, targets, c, d_live, sums.weight)
    d_hidden[live] = d_live.mul_(c.unsqueeze(1))


def shaped(buffer: Tensor, shape: tuple[int, int]) -> Tensor:
    """The start of a buffer as [n, v]; another one where it holds fewer numbers than one column."""
    stride = shape[1] + gap(buffer, shape[1])
    if shape[0] * stride > buffer.numel():
        return buffer.new_empty(shape)
    return buffer.as_strided(shape, (stride, 1))
