"""A counterexample made smaller by plain steps, as many as it takes on any machine: groups, rows and tokens are left
out, then numbers become the simplest that still tell the two sides apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from grolang.compiler.batch import BY_SCORE, PER_TOKEN, Batch

#: the simplest numbers first, for log-probs (an entropy has the other sign) and for scores
LOGPS = (-0.125, -0.25, -0.5, -1.0, -2.0)
SCORES = (0.0, 1.0, -1.0, 0.5, 0.25)

#: batches that are looked at; a counterexample of the largest size takes a few hundred
TRIALS = 2000


def smaller(batch: Batch, fails: Callable[[Batch], bool], reads: frozenset[str], *, pairs: bool, group: int) -> Batch:
    """A batch on which `fails` still holds, with fewer groups, rows (without `pairs`) and tokens.

    A group keeps `group` rows, and a completion that stands at the left of its row stands there still.
    """
    left = TRIALS
    batch, found = _take(batch, batch.mask.any(1)), batch
    batch = batch if fails(batch) else found  # without padding, where that has no say
    for steps in (_fewer(pairs, group), lambda batch: _simpler(batch, reads)):
        going = True
        while going:
            going = False
            for candidate in steps(batch):
                left -= 1
                if left < 0:
                    return _numbered(batch)
                if fails(candidate):
                    batch, going = candidate, True
                    break
    return _numbered(batch)


def _numbered(batch: Batch) -> Batch:
    """Groups counted from 0."""
    assert batch.group is not None
    return batch.replace(group=torch.unique(batch.group, return_inverse=True)[1])


def _fewer(pairs: bool, smallest: int) -> Callable[[Batch], Iterator[Batch]]:
    def steps(batch: Batch) -> Iterator[Batch]:
        rows, slots = batch.mask.shape
        assert batch.group is not None
        for group in torch.unique(batch.group).tolist():
            if bool((batch.group != group).any()):
                yield _take(batch, batch.group != group)
        for row in range(0 if pairs else rows):
            if rows > 1 and int((batch.group == batch.group[row]).sum()) > smallest:
                yield _take(batch, torch.arange(rows) != row)
        for row in range(rows):
            for slot in range(slots):
                if batch.mask[row, slot] and int(batch.mask[row].sum()) > 1:
                    yield _without(batch, row, slot)

    return steps


def _without(batch: Batch, row: int, slot: int) -> Batch:
    """A batch without one token: those behind it move up, which leaves no hole."""
    order = [other for other in range(batch.mask.shape[1]) if other != slot] + [slot]
    changed: dict[str, Tensor] = {}
    for name in ("mask", *PER_TOKEN):
        if (tensor := getattr(batch, name)) is not None:
            changed[name] = tensor.clone()
            changed[name][row] = tensor[row, order]
    changed["mask"][row, -1] = False
    return batch.replace(**changed)


def _simpler(batch: Batch, reads: frozenset[str]) -> Iterator[Batch]:
    for name in PER_TOKEN:
        tensor = getattr(batch, name)
        if tensor is not None and name in reads:
            values = [-value for value in LOGPS] if name == "entropy" else LOGPS
            for place in batch.mask.nonzero().tolist():
                for value in _before(values, float(tensor[tuple(place)])):
                    yield batch.replace(**{name: _set(tensor, tuple(place), value)})
    for field in BY_SCORE:
        scores: Mapping[str, Tensor] = getattr(batch, field)
        for name, tensor in scores.items():
            for row in range(len(tensor)):
                for value in _before(SCORES, float(tensor[row])):
                    yield batch.replace(**{field: {**scores, name: _set(tensor, (row,), value)}})


def _before(values: tuple[float, ...] | list[float], now: float) -> Iterator[float]:
    """The numbers that are simpler than the one that is there."""
    for value in values:
        if value == now:
            return
        yield value


def _set(tensor: Tensor, place: tuple[int, ...], value: float) -> Tensor:
    changed = tensor.clone()
    changed[place] = value
    return changed


def _take(batch: Batch, kept: Tensor) -> Batch:
    """Some rows of a batch."""
    return Batch.of({name: tensor[kept] for name, tensor in batch.flat().items()})
