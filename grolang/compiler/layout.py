"""Who belongs to whom: tokens to sequences, sequences to groups, all to the batch.

Values live without padding: [N] valid tokens, [R] rows that are not padding, [G] groups. So no masked slot ever
takes part in arithmetic, and whatever stands there, NaN included, cannot reach a result.

A comparison is an ordered pair of sequences of one group; it belongs to the first of them. There are Σ K (K - 1).
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from grolang.language.scopes import Scope


class Layout:
    """The memberships of one mask. `rows` are the rows of the batch that are in use."""

    def __init__(self, mask: Tensor, group: Tensor | None, rows: Tensor) -> None:
        self.mask = mask[rows]
        self.rows = rows
        self._group = None if group is None else group[rows]
        self._children: dict[tuple[Scope, Scope, bool], tuple[Tensor, Tensor]] = {}

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Row and slot of each valid token, sequence after sequence."""
        row, slot = self.mask.nonzero(as_tuple=True)
        return row, slot

    @cached_property
    def position(self) -> Tensor:
        """How many completion tokens of its sequence stand before each token."""
        return (self.mask.long().cumsum(1) - 1)[self.places]

    @cached_property
    def lengths(self) -> Tensor:
        """[R]: completion tokens of each row."""
        return self.mask.sum(1)

    @cached_property
    def last(self) -> Tensor:
        """Whether each token is the last of its completion."""
        return self.position == self.lengths[self.places[0]] - 1

    @cached_property
    def groups(self) -> tuple[Tensor, Tensor]:
        """The ids of the groups, sorted, and the index of each row's group among them."""
        assert self._group is not None
        ids, index = torch.unique(self._group, return_inverse=True)
        return ids, index

    @cached_property
    def comparisons(self) -> tuple[Tensor, Tensor]:
        """The two rows of each comparison, ordered by the first and then the second."""
        mates, there = self._others(Scope.SEQUENCE)
        own = torch.arange(mates.shape[0], device=mates.device)[:, None].expand_as(mates)
        return own[there], mates[there]

    @cached_property
    def swapped(self) -> Tensor:
        """The index of each comparison the other way round."""
        own, other = self.comparisons
        return torch.argsort(other * self.size(Scope.SEQUENCE) + own)

    def size(self, scope: Scope) -> int:
        """How many values a tensor of this scope has."""
        if scope is Scope.COMPARISON:
            return self.comparisons[0].numel()
        if scope is Scope.TOKEN:
            return self.places[0].numel()
        if scope is Scope.SEQUENCE:
            return self.rows.numel()
        return self.groups[0].numel() if scope is Scope.GROUP else 1

    def parent(self, child: Scope, parent: Scope) -> Tensor:
        """The index of each child's parent."""
        if parent <= Scope.BATCH:
            return torch.zeros(self.size(child), dtype=torch.long, device=self.mask.device)
        if child in (Scope.TOKEN, Scope.COMPARISON):
            row = self.places[0] if child is Scope.TOKEN else self.comparisons[0]
            return row if parent is Scope.SEQUENCE else self.groups[1][row]
        return self.groups[1]

    def children(self, child: Scope, parent: Scope, others: bool = False) -> tuple[Tensor, Tensor]:
        """The children of each parent: indices [P, W] and which of them are there.

        With `others`, parents are sequences and their children those of the rest of their group, or, of comparisons,
        their own.
        """
        key = (child, parent, others)
        if key not in self._children:
            if others and child is not Scope.COMPARISON:
                self._children[key] = self._others(child)
            else:
                self._children[key] = self._table(self.parent(child, parent), self.size(parent))
        return self._children[key]

    def _table(self, parent: Tensor, parents: int) -> tuple[Tensor, Tensor]:
        count = torch.bincount(parent, minlength=parents)
        width = int(count.max()) if parents and parent.numel() else 0
        order = torch.argsort(parent, stable=True)
        start = count.cumsum(0) - count
        rank = torch.arange(parent.numel(), device=parent.device) - start[parent[order]]
        index = parent.new_zeros(parents, width)
        index[parent[order], rank] = order
        there = torch.arange(width, device=parent.device) < count[:, None]
        return index, there

    def _others(self, child: Scope) -> tuple[Tensor, Tensor]:
        members, there = self.children(Scope.SEQUENCE, Scope.GROUP)
        mates, present = members[self.groups[1]], there[self.groups[1]]  # [R, K]
        present = present & (mates != torch.arange(mates.shape[0], device=mates.device)[:, None])
        if child is Scope.TOKEN:
            tokens, of_token = self.children(Scope.TOKEN, Scope.SEQUENCE)
            present = (present[:, :, None] & of_token[mates]).flatten(1)
            mates = tokens[mates].flatten(1)
        return mates, present


def whole_pairs(layout: Layout, label: Tensor) -> Tensor:
    """Whether each group is a pair [G]: one sequence with label +1 and one with label -1."""
    index, there = layout.children(Scope.SEQUENCE, Scope.GROUP)
    return (there.sum(1) == 2) & ((there & (label[index] > 0)).sum(1) == 1)


def pair_rows(layout: Layout, label: Tensor, op: str) -> Tensor:
    """The row of each pair's chosen or rejected response [G], or of each row's opposite [R]."""
    index, _ = layout.children(Scope.SEQUENCE, Scope.GROUP)
    good = label[index] > 0
    chosen = index.gather(1, good.long().argmax(1, keepdim=True))[:, 0]
    rejected = index.gather(1, (~good).long().argmax(1, keepdim=True))[:, 0]
    if op != "opposite":
        return chosen if op == "chosen" else rejected
    group = layout.groups[1]
    return torch.where(label > 0, rejected[group], chosen[group])
