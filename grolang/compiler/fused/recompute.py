"""Gradients for coefficients that are known: logits are recomputed, in tiles of the vocabulary.

Against chunks of rows: each slice of the head's gradient is one product over all live rows, added once, and only
dH [N, D] is summed over tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .head import Head, hidden_gradient, logits
from .products import multiply, precision, spans
from .rows import LN2, errors
from .sweep import Sums, add_bias, weighted


def add_recomputed(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    coefficients: Tensor,
    lse: Tensor,
    d_hidden: Tensor,
    sums: Sums,
    space: tuple[Tensor, Tensor | None],
) -> None:
    """Add the gradients of −Σ c·logp over these rows to `sums`; d_hidden [n, D], zeros on entry, receives theirs.

    p = exp(z − lse), with lse [n] from their log-probs. Rows with c = 0 are dropped first and cost nothing.

    `space` is the tile (and slopes) of the sweep that called, whatever their shape.
    """
    precise = precision(hidden, head.weight)
    live = coefficients.nonzero().squeeze(1)
    c, states = coefficients[live], hidden[live]
    d_live = torch.zeros(states.shape, dtype=precise.sums, device=hidden.device)
    scaled = weighted(states, c, precise)
    for columns, tile in _tiles(states, head, targets[live], c, lse[live], d_live, sums.bias, space):
        if sums.weight is not None:
            multiply(sums.weight[columns], tile.T, scaled, alpha=head.gain, beta=1.0)
    d_hidden[live] = d_live.mul_(c.unsqueeze(1))


def _tiles(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    c: Tensor,
    lse: Tensor,
    d_hidden: Tensor,
    d_bias: Tensor | None,
    space: tuple[Tensor, Tensor | None],
) -> Iterator[tuple[slice, Tensor]]:
    """Each slice of the vocabulary with its tile of errors [N, v] as an operand; one tile lives at a time.

    Adds to d_hidden [N, D] what c still has to multiply, and the bias's part to d_bias [V].
    """
    if len(hidden) == 0:
        return
    precise = precision(hidden, head.weight)
    states = hidden.to(precise.operands)
    base2 = replace(head, temperature=head.temperature * LN2)  # exp2 costs a CPU a quarter of exp
    log2_sum = (lse / LN2).unsqueeze(1)
    if space[0].numel() < len(hidden):  # fewer logits than one column
        tile = torch.empty_like(lse)
        space = tile, None if head.softcap is None else torch.empty_like(tile)
    buffer = space[0].view(-1)
    slopes = None if space[1] is None else space[1].view(-1)
    for columns in spans(head.vocabulary, buffer.numel() // len(hidden)):
        shape = len(hidden), columns.stop - columns.start
        tile = buffer[: shape[0] * shape[1]].view(shape)
        slope = None if slopes is None else slopes[: tile.numel()].view(shape)
        log2_p = logits(base2, states, tile, slope, columns).sub_(log2_sum)
        place = (targets - columns.start).clamp(0, shape[1] - 1).unsqueeze(1)
        own = log2_p.gather(1, place).squeeze(1) * LN2
        tile = errors(log2_p.exp2_(), targets, own, slope, columns.start)
        add_bias(tile, c, head, None if d_bias is None else d_bias[columns])
        operand = tile.to(precise.operands)
        hidden_gradient(head, operand, d_hidden, columns, beta=1.0)
        yield columns, operand
