"""The sequences of a step, and what is known of them before it is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from grolang import Batch, Evaluation
from grolang.compiler.forming import FILLER
from grolang.runtime.examples import Ids

Pair = tuple[Ids, Ids]
"""A prompt and a completion."""


def mask_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """[S, T] bool: the first lengths[s] slots of row s, T the greatest of them."""
    count = torch.tensor(lengths, device=device)[:, None]
    return torch.arange(max(lengths), device=device)[None] < count


@dataclass(frozen=True)
class Sample:
    """One sequence of a step: a prompt, a completion, and what is known of them beside log-probs."""

    prompt: Ids
    completion: Ids
    group: int
    label: float = 0.0
    demonstration: float = 0.0
    finished: bool = True
    logp_sampler: tuple[float, ...] = ()
    logp_old: tuple[float, ...] = ()  # of the policy that drew it, where that is not the one of this step
    replayed: bool = False  # whether it was drawn for an earlier step
    scores: Mapping[str, float] = field(default_factory=dict)
    greedy_scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """The sequences of a step and what does not change while it is optimized.

    `batch` holds it all but the current log-probs; its `logp_old` is None until the first update has found it.
    """

    samples: tuple[Sample, ...]
    batch: Batch
    dead: tuple[bool, ...] = ()  # sequences that cannot matter: no model is run on them
    crossed: tuple[Pair, ...] = ()  # prompt i with completion (i+1) mod m, where the method asks for it

    @property
    def pairs(self) -> list[Pair]:
        return [(sample.prompt, sample.completion) for sample in self.samples]

    @property
    def groups(self) -> list[int]:
        return [sample.group for sample in self.samples]

    @property
    def alive(self) -> list[int]:
        return [row for row in range(len(self.samples)) if not (self.dead and self.dead[row])]

    def filled(self, values: Tensor, filler: float = FILLER) -> Tensor:
        """Values [S, T] with a filler in the rows that were not run."""
        if not any(self.dead):
            return values
        return values.masked_fill(torch.tensor(self.dead, device=values.device)[:, None], filler)

    def shown(self, batch: Batch, evaluation: Evaluation) -> tuple[Batch, Evaluation]:
        """Both with NaN where a model was not run."""
        if not any(self.dead):
            return batch, evaluation
        found = {name: getattr(batch, name) for name in ("logp", "logp_old", "logp_ref", "entropy")}
        parts = {
            name: part if name in ("reward", "advantage", "upsilon") else self.filled(part, torch.nan)
            for name, part in evaluation.parts.items()
        }
        batch = batch.replace(**{k: self.filled(v, torch.nan) for k, v in found.items() if v is not None})
        return batch, replace(evaluation, parts=parts)

    def remembering(self, seen: Batch) -> Step:
        """The step with these log-probs as those of the policy that it started from, if it has none yet."""
        batch, crossed = self.batch, self.batch.mismatched
        if batch.logp_old is None:
            batch = batch.replace(logp_old=seen.logp)
        if crossed is not None and crossed.logp_old is None and seen.mismatched is not None:
            batch = batch.replace(mismatched=crossed.replace(logp_old=seen.mismatched.logp))
        return replace(self, batch=batch)
