"""Reductions over the children of each parent, their adjoints, and discounted sums along a completion.

`index` and `there` [P, W] are the children of each parent and which of them are there (`Layout.children`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from grolang.compiler.layout import Layout


def reduced(function: str, x: Tensor, index: Tensor, there: Tensor, more: Iterable[Tensor] = ()) -> Tensor:
    """[P]: the function over the children of each parent."""
    if index.shape[1] == 0:
        return x.new_zeros(index.shape[0]) if function == "sum" else x.new_full((index.shape[0],), torch.nan)
    values, count = x[index], there.sum(1).to(x.dtype)
    match function:
        case "sum":
            return torch.where(there, values, 0).sum(1)
        case "mean":
            return _mean(values, there, count)
        case "std" | "sample_std":
            distance = torch.where(there, values - _mean(values, there, count)[:, None], 0)
            distance = torch.where(_alike(values, there)[:, None], 0, distance)  # infinities, too
            return torch.sqrt(distance.square().sum(1) / (count if function == "std" else count - 1))
        case "max":
            return torch.where(there, values, -torch.inf).amax(1)
        case "min":
            return torch.where(there, values, torch.inf).amin(1)
        case "quantile":
            _, low, high, share = _neighbours(values, there, count, next(iter(more)))
            unknown = (there & values.isnan()).any(1)  # sorting hides what is not a number behind what is
            between = torch.where(low.isinf(), low * (1 - share) + high * share, low + (high - low) * share)
            return torch.where(unknown, torch.nan, torch.where(share > 0, between, low))
        case _:
            raise AssertionError(f"bug in grolang: no reduction `{function}`")


def _alike(values: Tensor, there: Tensor) -> Tensor:
    """[P]: whether the children of a parent have one value."""
    first = values.gather(1, there.long().argmax(1, keepdim=True))
    return (~there | (values == first)).all(1)


def _mean(values: Tensor, there: Tensor, count: Tensor) -> Tensor:
    """Around the first value if that is finite, so that the mean of equal values is that value to the last bit."""
    first = values.gather(1, there.long().argmax(1, keepdim=True))
    first = torch.where(first.isinf(), 0, first)
    return first[:, 0] + torch.where(there, values - first, 0).sum(1) / count


def _neighbours(values: Tensor, there: Tensor, count: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Order, the two neighbours of the q-quantile, and how far it lies between them."""
    order = torch.where(there, values, torch.inf).argsort(dim=1, stable=True)
    place = q * (count - 1)
    floor = place.floor()
    at = floor.long().clamp(min=0)[:, None]
    above = torch.minimum(at + 1, (count.long() - 1).clamp(min=0)[:, None])
    columns = torch.cat([order.gather(1, at), order.gather(1, above)], 1)
    low, high = values.gather(1, columns).unbind(1)
    return columns, low, high, place - floor


def unreduced(
    function: str,
    x: Tensor,
    out: Tensor,
    adjoint: Tensor,
    index: Tensor,
    there: Tensor,
    more: Iterable[Tensor] = (),
) -> Tensor:
    """[n]: each child's share of the adjoint, summed over the parents that it belongs to."""
    values, count = x[index], there.sum(1).to(x.dtype)[:, None]
    out, adjoint = out.reshape(-1, 1), adjoint.reshape(-1, 1)
    match function:
        case "sum":
            share = adjoint.expand_as(values)
        case "mean":
            share = (adjoint / count).expand_as(values)
        case "std" | "sample_std":
            distance = values - _mean(values, there, count[:, 0])[:, None]
            divisor = out * (count if function == "std" else count - 1)
            still = (out == 0) | (adjoint == 0)  # a kink, where 0 is a subgradient; a branch that is not taken
            share = torch.where(still, 0, adjoint * distance / divisor)
        case "max" | "min":
            best = there & (values == out)
            share = torch.where(best, adjoint / best.sum(1, keepdim=True), 0)
        case "quantile":
            columns, _, _, part = _neighbours(values, there, count[:, 0], next(iter(more)))
            share = torch.zeros_like(values)
            share.scatter_add_(1, columns[:, :1], adjoint * (1 - part)[:, None])
            share.scatter_add_(1, columns[:, 1:], adjoint * part[:, None])
        case _:
            raise AssertionError(f"bug in grolang: no reduction `{function}`")
    # accumulate=True sums in a fixed order on every device
    return torch.zeros_like(x).index_put((index[there],), share[there], accumulate=True)


def discounted(x: Tensor, g: Tensor, layout: Layout, *, backward: bool) -> Tensor:
    """Σ_{k>=t} g^(k-t) x_k along each completion (`backward`: over k <= t), in log2(T) doublings."""
    row, position = layout.places[0], layout.position
    width = int(layout.lengths.max()) if layout.lengths.numel() else 0
    table = x.new_zeros(layout.rows.numel(), width)
    table[row, position] = x
    reach, power = 1, g
    while reach < width:
        pad = (reach, 0) if backward else (0, reach)
        rest = table[:, :-reach] if backward else table[:, reach:]
        table = table + power * F.pad(rest, pad)
        reach, power = 2 * reach, power * power
    return table[row, position]
