"""How the sequences of a step are dealt to processes and micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """The micro-batches of this process, each the ascending numbers of its sequences; () is a turn without any."""

    parts: tuple[tuple[int, ...], ...]
    whole_groups: bool
    whole_step: bool

    def knows(self, scope: str) -> bool:
        """Whether each micro-batch holds whole units of `scope`."""
        return {"batch": self.whole_step, "group": self.whole_groups}.get(scope, True)


def split(
    groups: Sequence[int], lengths: Sequence[int], micro_batch: int, processes: int = 1, process: int = 0
) -> Split:
    """Deal sequences, given by group id (a group's stand together) and tokens, to processes and micro-batches.

    Groups stay whole where they fit in a micro-batch, and sequences of like length come together, against
    padding. Every process gets as many turns.
    """
    units: list[list[int]] = []
    for row, group in enumerate(groups):
        if row and groups[row - 1] == group:
            units[-1].append(row)
        else:
            units.append([row])
    whole = all(len(unit) <= micro_batch for unit in units)
    if not whole:
        units = [unit[at : at + micro_batch] for unit in units for at in range(0, len(unit), micro_batch)]
    units.sort(key=lambda unit: max(lengths[row] for row in unit))
    shares = [units[p::processes] for p in range(processes)]
    packed = [_pack(share, micro_batch) for share in shares]
    turns = max(len(parts) for parts in packed)
    own = packed[process] + [()] * (turns - len(packed[process]))
    return Split(tuple(own), whole, processes == 1 and turns == 1)


def _pack(units: list[list[int]], size: int) -> list[tuple[int, ...]]:
    parts: list[list[int]] = []
    for unit in units:
        if parts and len(parts[-1]) + len(unit) <= size:
            parts[-1] += unit
        else:
            parts.append(list(unit))
    return [tuple(sorted(part)) for part in parts]
