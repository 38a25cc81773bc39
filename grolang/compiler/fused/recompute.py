"""Gradients for coefficients that are known: logits are recomputed, in tiles of the vocabulary.

Against chunks of rows: each slice of the head's gradient is one product over all live rows, written once, so
no [V, D] accumulator exists beside the gradient, and only dH [N, D] is summed over tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .exact import exact
from .head import Head, hidden_gradient, logits
from .products import multiply, precision, spans
from .rows import LN2, errors
from .sweep import BUDGET, Gradients, Sums, add_bias, bytes_per_logit, check, stored, weighted, zero_sums


@exact
def gradients(
    hidden: Tensor, head: Head, targets: Tensor, coefficients: Tensor, lse: Tensor, *, budget: int = BUDGET
) -> Gradients:
    """The gradients of −Σ c·logp in hidden [N, D], weight and bias, for any coefficients c [N]: 6NDV.

    dH_i = −c_i Σ_v (1[v = y_i] − p_iv) ∂z_iv/∂h_i, likewise dW and db; p = exp(z − lse), with lse [N] from
    `forward` on the same states. Rows with c = 0 are dropped first and cost nothing. 4NDV where the head is
    frozen.
    """
    check(hidden, head, targets)
    precise = precision(hidden, head.weight)
    live = coefficients.nonzero().squeeze(1)
    c = coefficients[live].to(precise.sums)
    states = hidden[live]
    d_live = torch.zeros(states.shape, dtype=precise.sums, device=hidden.device)
    d_weight = _empty_gradient(head.weight)
    d_bias = zero_sums(head, precise.sums).bias
    scaled = weighted(states, c, precise) if d_weight is not None else None
    for columns, tile in _tiles(
        states, head, targets[live], c, lse[live], d_live, d_bias, _space(states, head, budget)
    ):
        if d_weight is None or scaled is None:
            continue
        part = d_weight[columns]
        if part.dtype == precise.sums:
            multiply(part, tile.T, scaled, alpha=head.gain)
        else:
            part.copy_(multiply(part.new_empty(part.shape, dtype=precise.sums), tile.T, scaled, alpha=head.gain))
    d_hidden = torch.zeros(hidden.shape, dtype=stored(hidden.dtype), device=hidden.device)
    d_hidden[live] = d_live.mul_(c.unsqueeze(1)).to(d_hidden.dtype)
    if d_bias is not None and head.bias is not None:
        d_bias = d_bias.to(stored(head.bias.dtype))
    return Gradients(d_hidden, d_weight, d_bias)


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
    """`gradients` of one unit, added to `sums`; d_hidden [n, D], zeros on entry, receives its states' part.

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


def _space(hidden: Tensor, head: Head, budget: int) -> tuple[Tensor, Tensor | None]:
    """Room for the widest tile of all rows of hidden that the budget holds, one column at least."""
    precise = precision(hidden, head.weight)
    width = min(head.vocabulary, max(1, budget // (max(1, len(hidden)) * bytes_per_logit(head, precise))))
    tile = hidden.new_empty(len(hidden) * width, dtype=precise.sums)
    return tile, None if head.softcap is None else torch.empty_like(tile)


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
        space = _space(hidden, head, 0)
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


def _empty_gradient(weight: Tensor) -> Tensor | None:
    if not weight.requires_grad:
        return None
    return torch.zeros(weight.shape, dtype=stored(weight.dtype), device=weight.device)
