"""Row work on one tile of logits [n, v], in place: softmax, log-probs, entropy, the error of each logit."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LN2 = math.log(2)

BLOCKS = 8
"""Temporaries of row work are at most a tile divided by this."""

IN_CACHE = 512 * 2**10
"""Bytes of a block that several passes go over, on a CPU: within a core's cache, 2.5 times as fast."""


LONG = 2**15
"""Logits of a row beyond which the sum in a CPU's softmax of 32 bits, a few long chains, is off by more than 5e-6."""


class Rows(NamedTuple):
    """What a forward pass leaves per row, all [n]: target's log-prob, log Σ exp(logits), entropy if asked."""

    logp: Tensor
    lse: Tensor
    entropy: Tensor | None


def log_probabilities(tile: Tensor, targets: Tensor) -> Rows:
    """The cheapest pass over logits where no gradient follows; the tile is used up."""
    if _summed_in_chains(tile):
        return probabilities(tile, targets)
    own = _pick(tile, targets)
    torch.log_softmax(tile, 1, out=tile)
    logp = _pick(tile, targets)
    return Rows(logp, own - logp, None)


def probabilities(tile: Tensor, targets: Tensor) -> Rows:
    """tile: logits → probabilities.

    log p_y = (z_y − max z) − log Σ exp(z − max z), and the last sum is 1 / max p: exact however small p_y is
    (its own softmax may underflow to 0), at the price of two reads instead of a pass of exp.
    """
    own = _pick(tile, targets)
    top = tile.amax(1)
    torch.softmax(tile, 1, out=tile)
    if _summed_in_chains(tile):
        tile.div_(tile.sum(1, keepdim=True))  # a sum in pairs
    minus_log_sum = tile.amax(1).log_()
    return Rows(own - top + minus_log_sum, top - minus_log_sum, None)


def with_entropy(tile: Tensor, targets: Tensor) -> Rows:
    """tile: logits → probabilities, and the entropy −Σ p log p of each row; 0·log 0 = 0."""
    own = _pick(tile, targets)
    torch.log_softmax(tile, 1, out=tile)
    logp = _pick(tile, targets)
    entropy, excess = torch.empty_like(logp), torch.zeros_like(logp)
    chains = _summed_in_chains(tile)
    step = max(1, -(-len(tile) // BLOCKS))
    if tile.device.type == "cpu":
        step = min(step, max(1, IN_CACHE // (tile.shape[1] * tile.itemsize)))
    for start in range(0, len(tile), step):
        block = tile[start : start + step]
        p = (block / LN2).exp2_()  # a quarter of the time of exp on a CPU
        if chains:
            total = p.sum(1, keepdim=True)
            p.div_(total)
            excess[start : start + step] = total.squeeze(1).log_()
        entropy[start : start + step] = -block.clamp_min_(torch.finfo(block.dtype).min).mul_(p).sum(1)
        block.copy_(p)
    return Rows(logp - excess, own - logp + excess, entropy + excess)


def errors(tile: Tensor, targets: Tensor, own: Tensor, slope: Tensor | None, start: int = 0) -> Tensor:
    """tile: probabilities → (p − e_y)·slope, the gradient of −log p_y in the logits (before the head's gain).

    The tile holds the columns from `start`; `own` [n] is log p_y. Each row writes one place of its own, so
    the one-hot part needs no atomic add and no second product, and p_y − 1 = expm1(log p_y) keeps its digits
    where p_y is nearly 1.
    """
    place = targets - start
    inside = (place >= 0) & (place < tile.shape[1])
    place = place.clamp(0, tile.shape[1] - 1).unsqueeze(1)
    tile.scatter_(1, place, torch.where(inside.unsqueeze(1), torch.expm1(own).unsqueeze(1), tile.gather(1, place)))
    return tile if slope is None else tile.mul_(slope)


def compact(live: Tensor, *tiles: Tensor) -> Tensor:
    """Move the rows of each tile where live [n] is true to its front; return the index of each row there.

    Only holes are filled, from behind: no second tile, and nothing moves where all rows are live.
    """
    order = live.nonzero().squeeze(1)
    if len(order) == len(live):
        return order
    holes = (~live[: len(order)]).nonzero().squeeze(1)
    if len(holes) == 0:
        return order
    movers = order[order >= len(order)]
    step = -(-len(live) // BLOCKS)
    for tile in tiles:
        for at in range(0, len(holes), step):
            tile.index_copy_(0, holes[at : at + step], tile.index_select(0, movers[at : at + step]))
    order = torch.arange(len(order), device=live.device)
    order[holes] = movers
    return order


def _summed_in_chains(tile: Tensor) -> bool:
    return tile.device.type == "cpu" and tile.dtype == torch.float32 and tile.shape[1] > LONG


def _pick(tile: Tensor, targets: Tensor) -> Tensor:
    return tile.gather(1, targets.unsqueeze(1)).squeeze(1)
