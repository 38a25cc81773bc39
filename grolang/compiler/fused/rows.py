"""Row work on one tile of logits [n, v], in place: softmax, log-probs, entropy, the error of each logit.

The tile comes in base 2: z / ln 2, whose exp2 takes a CPU half the time of exp. It is left unnormalised, as
e = exp(z − max z): 1 / Σe goes into the coefficients, which saves a pass, and max z and Σe are kept apart, since their
log-sum loses the digits of the smaller one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LN2 = math.log(2)

BLOCKS = 8
"""Temporaries of row work are at most a tile divided by this."""

IN_CACHE = 2 * 2**20
"""Bytes of a block that several passes go over, on a CPU: in its cores' caches, half the time of passes over a tile."""


class Rows(NamedTuple):
    """What a pass leaves per row, all [n]: target's log-prob, log Σ exp(logits), entropy if asked."""

    logp: Tensor
    lse: Tensor
    entropy: Tensor | None


class Spread(NamedTuple):
    """What one tile leaves per row, all [n]: target's log-prob, max z / ln 2, Σe, entropy if asked."""

    logp: Tensor
    top: Tensor
    total: Tensor
    entropy: Tensor | None


def exponentials(tile: Tensor, targets: Tensor, entropy: bool) -> Spread:
    """tile: z / ln 2 → e = exp(z − max z).

    log p_y = z_y − max z − log Σe, exact however small p_y is (its own softmax may underflow to 0), and
    the entropy −Σ p log p = log Σe − Σ e·(z − max z) / Σe, with 0·log 0 = 0.
    """
    own = tile.gather(1, targets.unsqueeze(1)).squeeze(1)
    top, total, moment = torch.empty_like(own), torch.empty_like(own), torch.empty_like(own)
    blocks = row_blocks(tile, len(tile))
    room = torch.empty_like(tile[blocks[0]]) if entropy and blocks else None
    for rows in blocks:
        block = tile[rows]
        torch.amax(block, 1, out=top[rows])
        block.sub_(top[rows].unsqueeze(1))
        if room is None:
            torch.sum(block.exp2_(), 1, out=total[rows])
            continue
        e = torch.exp2(block, out=room[: len(block)])
        torch.sum(e, 1, out=total[rows])
        torch.sum(block.clamp_min_(torch.finfo(block.dtype).min).mul_(e), 1, out=moment[rows])
        block.copy_(e)
    log_total = total.log()
    spread = log_total - LN2 * moment / total if entropy else None
    return Spread(LN2 * (own - top) - log_total, top, total, spread)


def errors(tile: Tensor, targets: Tensor, own: Tensor, total: Tensor, slope: Tensor | None, start: int = 0) -> Tensor:
    """tile: e = total·p → total·(p − e_y)·slope, the gradient of −log p_y in the logits (before the head's gain).

    The tile holds the columns from `start`; `own` [n] is log p_y. Each row writes one place of its own, so
    the one-hot part needs no atomic add and no second product, and p_y − 1 = expm1(log p_y) keeps its digits
    where p_y is nearly 1.
    """
    place = targets - start
    inside = (place >= 0) & (place < tile.shape[1])
    place = place.clamp(0, tile.shape[1] - 1).unsqueeze(1)
    missing = (torch.expm1(own) * total).unsqueeze(1)
    tile.scatter_(1, place, torch.where(inside.unsqueeze(1), missing, tile.gather(1, place)))
    return tile if slope is None else tile.mul_(slope)


def taken(tile: Tensor, targets: Tensor, start: int = 0) -> Tensor:
    """The targets' own errors [n], with zeros left in their places; 0 where the tile does not hold the target."""
    place = targets - start
    inside = (place >= 0) & (place < tile.shape[1])
    place = place.clamp(0, tile.shape[1] - 1).unsqueeze(1)
    found = torch.where(inside.unsqueeze(1), tile.gather(1, place), 0)
    tile.scatter_add_(1, place, -found)
    return found.squeeze(1)


def narrowed(tile: Tensor, dtype: torch.dtype) -> Tensor:
    """The tile in a dtype of half its bytes, in its own memory: each row takes the front half of its place."""
    halves = tile.view(dtype)[:, : tile.shape[1]]
    for rows in row_blocks(tile, len(tile)):
        halves[rows] = tile[rows].to(dtype)
    return halves


def compact(live: Tensor, tile: Tensor) -> Tensor:
    """Move the rows of the tile where live [n] is true to its front; return the index of each row there.

    Only holes are filled, from behind: no second tile, and nothing moves where all rows are live.
    """
    order = live.nonzero().squeeze(1)
    if len(order) == len(live):
        return order
    holes = (~live[: len(order)]).nonzero().squeeze(1)
    if len(holes) == 0:
        return order
    movers = order[order >= len(order)]
    for some in row_blocks(tile, len(holes)):
        tile.index_copy_(0, holes[some], tile.index_select(0, movers[some]))
    order = torch.arange(len(order), device=live.device)
    order[holes] = movers
    return order


def row_blocks(tile: Tensor, count: int) -> list[slice]:
    """0..count, a few rows of the tile at a time: an eighth of them; on a CPU no more than its caches hold."""
    step = max(1, -(-len(tile) // BLOCKS))
    if tile.device.type == "cpu":
        step = min(step, max(1, IN_CACHE // max(1, tile.shape[1] * tile.itemsize)))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]
