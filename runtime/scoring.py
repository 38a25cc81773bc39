"""Scores of a step's completions: each process its share, all of them the results, and what is left where some fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from grolang.runtime.data import Record
from grolang.runtime.examples import Ids
from grolang.runtime.processes import of_all, share
from grolang.runtime.scores import Scored, Scorer, score


@dataclass(frozen=True)
class Scoring:
    """The scores of a method, given by several processes together."""

    scorers: tuple[Scorer, ...]
    accelerator: Accelerator
    say: Callable[[str], None] = field(default=print, compare=False)
    columns: tuple[str, ...] = ()  # of all files that rows come from

    def __call__(self, records: Sequence[Record], texts: Sequence[Any], ids: Sequence[Ids]) -> list[Scored]:
        """Every score of every completion."""
        own = share(self.accelerator, len(records))
        every = of_all(self.accelerator, lambda: score(self.scorers, records[own], texts[own], ids[own], self.columns))
        if faults := [fault for _, some in every for fault in some]:
            self.say(f"scores that failed: {len(faults)}; {faults[0]}")
        return [one for found, _ in every for one in found]

    def skipped(self, groups: Sequence[int], scored: Sequence[Scored]) -> set[int]:
        """The groups that `--on-score-error skip` leaves out: one of their completions has no score."""
        if not any(scorer.patience.on_error == "skip" for scorer in self.scorers):
            return set()
        return {group for group, one in zip(groups, scored, strict=True) if one.failed}


def counts(scored: Sequence[Scored]) -> dict[str, float]:
    """How many completions each score failed on, and to how many it did not apply, where there are any."""
    failed = Counter(name for one in scored for name in one.failed)
    absent = Counter(name for one in scored for name in one.absent)
    found = {f"rewards/{name}/failed": float(count) for name, count in failed.items()}
    return found | {f"rewards/{name}/none": float(count) for name, count in absent.items()}
