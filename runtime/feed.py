"""Where the sequences of every step come from: rows of one or several files, completions of them, and of the past."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from grolang.runtime.examples import Example, Together, key, positions
from grolang.runtime.rollout import Draw, Sampler, offline_draw
from grolang.runtime.scoring import Scoring
from grolang.runtime.sequences import Sample, Step

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: its multiples fill the circle evenly
PLACES = 1 << 16  # places of the order that are looked at together


@dataclass(frozen=True)
class Mixture(Together):
    """Rows of several files in one endless order, a function of the seed alone.

    File i gives a share weight_i / Σ weights of any stretch of the order, to within a few rows; within each file every
    epoch is a new permutation.
    """

    weights: tuple[float, ...]
    counted: dict[int, tuple[int, Any]] = field(default_factory=dict, compare=False, repr=False)

    def draw(self, seed: int, start: int, size: int) -> list[Example]:
        """The rows at `size` places of the order from `start` on."""
        if len(self.parts) == 1:
            return self.parts[0].take(positions(seed, len(self.parts[0]), start, size))
        files = self._files(seed, start, size)
        counts = self._counts(seed, start)
        rows = []
        for file, part in enumerate(self.parts):
            own = positions(key(seed, "file", file), len(part), counts[file], int((files == file).sum()))
            rows.append(iter(part.take(own)))
        return [next(rows[file]) for file in files]

    def _files(self, seed: int, start: int, size: int) -> np.ndarray[Any, Any]:
        """The file of each place: where a multiple of the golden ratio falls on a circle that the weights divide."""
        places = np.arange(start, start + size, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(key(seed, "mixture"))
        bounds = np.cumsum(np.array(self.weights) / sum(self.weights))[:-1]
        found: np.ndarray[Any, Any] = np.searchsorted(bounds, places.astype(np.float64) / 2.0**64, side="right")
        return found

    def _counts(self, seed: int, end: int) -> list[int]:
        """How many of the places before `end` are each file's, counted on from where that was asked last."""
        begin, counts = self.counted.get(seed, (0, np.zeros(len(self.parts), dtype=np.int64)))
        if begin > end:
            begin, counts = 0, np.zeros(len(self.parts), dtype=np.int64)
        for start in range(begin, end, PLACES):
            files = self._files(seed, start, min(PLACES, end - start))
            counts = counts + np.bincount(files, minlength=len(self.parts))
        self.counted[seed] = end, counts
        return [int(count) for count in counts]


FLAT = {
    "prompt": torch.int64,
    "completion": torch.int64,
    "logp_sampler": torch.float64,
    "logp_old": torch.float64,
}
PLAIN = ("group", "label", "demonstration", "finished", "scores", "greedy_scores")
"""The fields of a sample that is kept: those that are lists of numbers, and the others."""


@dataclass
class Past:
    """Groups of completions that were drawn before, with the log-probs that they were drawn with.

    `size` of them are kept, the last ones; `count` of these join every step, chosen by the seed and the step. Without
    `old` no log-probs are kept, since the method reads none.
    """

    count: int
    size: int
    seed: int
    old: bool = True
    groups: list[list[Sample]] = field(default_factory=list)

    def draw(self, number: int, first: int) -> list[Sample]:
        """Groups for draw `number`, under the group ids from `first` on."""
        generator = torch.Generator().manual_seed(key(self.seed, "past", number))
        chosen = sorted(torch.randperm(len(self.groups), generator=generator)[: self.count].tolist())
        return [replace(one, group=first + at) for at, row in enumerate(chosen) for one in self.groups[row]]

    def remember(self, step: Step) -> None:
        """Keep the groups of a step that were drawn for it; it knows the log-probs of the policy that drew them."""
        old = step.batch.logp_old
        assert old is not None
        fresh: dict[int, list[Sample]] = {}
        for sample, values in zip(step.samples, old.tolist(), strict=True):
            if not sample.replayed:
                drawn = tuple(values[: len(sample.completion)]) if self.old and not sample.demonstration else ()
                fresh.setdefault(sample.group, []).append(replace(sample, replayed=True, logp_old=drawn))
        self.groups = [*self.groups, *fresh.values()][-self.size :]

    def save(self, folder: Path) -> None:
        """As two files of a checkpoint, numbers to the last bit."""
        every = [sample for group in self.groups for sample in group]
        flat = {
            name: torch.tensor([value for sample in every for value in getattr(sample, name)], dtype=kind)
            for name, kind in FLAT.items()
        }
        save_file(flat, str(folder / "past.safetensors"))
        rest = {name: [getattr(sample, name) for sample in every] for name in PLAIN}
        lengths = {name: [len(getattr(sample, name)) for sample in every] for name in FLAT}
        text = {"groups": [len(group) for group in self.groups], "lengths": lengths, **rest}
        (folder / "past.json").write_text(json.dumps(text), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """What `save` wrote; a checkpoint of a run without a past leaves it empty."""
        if not (folder / "past.json").is_file():
            return
        text = json.loads((folder / "past.json").read_text(encoding="utf-8"))
        flat = load_file(folder / "past.safetensors")
        columns: dict[str, Any] = {name: text[name] for name in PLAIN}
        for name in FLAT:
            kind = list if name in ("prompt", "completion") else tuple
            columns[name] = [kind(part.tolist()) for part in torch.split(flat[name], text["lengths"][name])]
        rows = zip(*columns.values(), strict=True)
        every = iter([Sample(**dict(zip(columns, row, strict=True)), replayed=True) for row in rows])
        self.groups = [[next(every) for _ in range(count)] for count in text["groups"]][-self.size :]


@dataclass
class Feed:
    """The sequences of every draw: a function of the seed, the number of the draw, the policy and the past."""

    rows: Mixture
    scoring: Scoring
    sampler: Sampler | None  # where completions are drawn
    batch: int
    seed: int
    past: Past | None = None

    def draw(self, number: int) -> Draw:
        """The sequences of draw `number`; none where no row could be scored."""
        examples = self.rows.draw(self.seed, number * self.batch, self.batch)
        epoch = (number + 1) * self.batch / len(self.rows)
        if self.sampler is None:
            found = offline_draw(examples, self.rows.kind, self.scoring)
            return Draw(found.samples, {**found.figures, "epoch": epoch})
        found = self.sampler.draw(examples, number)
        figures = {**found.figures, "epoch": epoch}
        if self.past is None or not found.samples:
            return Draw(found.samples, figures)
        again = self.past.draw(number, len(examples))
        return Draw([*found.samples, *again], figures | {"replayed": float(len({one.group for one in again}))})

    def remember(self, step: Step) -> None:
        """To be called after the first update of a draw."""
        if self.past is not None:
            self.past.remember(step)
