"""The figures of a step, under the names that TRL gives them, and the file that keeps them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from grolang import Batch, Evaluation
from grolang.runtime.examples import Ids
from grolang.runtime.figures import Figures
from grolang.runtime.record import write_text, writing
from grolang.runtime.sequences import Sample


def step_figures(
    samples: Sequence[Sample], batch: Batch, evaluation: Evaluation, *, drawn: bool, old: bool = False
) -> Figures:
    """What one evaluation of the whole step says; every mean names its axis in the code below.

    `drawn`: the completions come from the policy; `old`: the method uses `logp_old`. Sequences that were not run have
    NaN where a model would speak: figures of log-probs, entropies and ω are those of the rest.
    """
    mask, logp = batch.mask, batch.logp
    assert logp is not None
    ran = mask & ~logp.isnan()
    own = _own(samples, batch, drawn=drawn)
    found = {"loss": float(evaluation.loss)}
    if batch.label is not None and evaluation.implicit_reward is not None:
        found |= preference_figures(evaluation.implicit_reward, batch)
    if batch.label is not None and not drawn:
        rows = ran.any(1)
        found |= _by_label("logps", torch.where(ran, logp, 0).sum(1)[rows], batch.label[rows])
    if drawn:
        if "reward" in evaluation.parts:  # a method may give its advantage alone
            found |= _reward_figures(evaluation.parts["reward"], own, batch)
        own_samples = [sample for sample in samples if not (sample.demonstration or sample.replayed)]
        found |= completion_figures([one.completion for one in own_samples], [one.finished for one in own_samples])
    for name, values in batch.scores.items():
        rows = own.any(1)
        found[f"rewards/{name}/mean"] = float(values[rows].mean())
        found[f"rewards/{name}/std"] = float(values[rows].std(correction=0))
    found["dead_ratio"] = float((~ran[mask.any(1)].any(1)).double().mean())
    if drawn:  # estimates only where the policy itself drew the tokens
        found |= _drift_figures(batch, own & ran)
    if drawn and old:
        found |= clip_figures(evaluation, own)
    if batch.entropy is not None and ran.any():
        found["entropy"] = float(batch.entropy[own & ran if (own & ran).any() else ran].mean())
    found |= _factor_figures(evaluation, mask)
    found["num_tokens"] = sum(len(sample.prompt) + len(sample.completion) for sample in samples)
    return found | {f"report/{name}": value for name, value in evaluation.reports.items()}


def _own(samples: Sequence[Sample], batch: Batch, *, drawn: bool) -> Tensor:
    """[S, T] bool: the tokens of this step's own completions, neither replayed nor, among drawn ones, shown."""
    own = batch.mask & ~torch.tensor([sample.replayed for sample in samples], device=batch.mask.device)[:, None]
    return own & (batch.demonstration == 0)[:, None] if drawn and batch.demonstration is not None else own


def _drift_figures(batch: Batch, told: Tensor) -> Figures:
    """How far the policy is from its reference and from what drew, over the tokens `told` [S, T] bool."""
    found: Figures = {}
    assert batch.logp is not None
    if batch.logp_ref is not None and told.any():
        found["kl"] = kl(batch.logp[told], batch.logp_ref[told])
    if batch.logp_sampler is not None and batch.logp_old is not None and told.any():
        gap = (batch.logp_old - batch.logp_sampler)[told].abs()
        found["sampling/sampling_logp_difference/mean"] = float(gap.mean())
        found["sampling/sampling_logp_difference/max"] = float(gap.max())
    return found


def _factor_figures(evaluation: Evaluation, mask: Tensor) -> Figures:
    """Means over tokens of ω, υ and c, of their absolute values, and the share that is exactly 0."""
    found: Figures = {}
    parts = {"omega": evaluation.parts["omega"], "upsilon": evaluation.parts["upsilon"]}
    for name, part in (parts | {"coefficient": evaluation.coefficients}).items():
        values = part[mask & ~part.isnan()]
        if values.numel():
            found[f"{name}/mean"] = float(values.mean())
            found[f"{name}/abs_mean"] = float(values.abs().mean())
            found[f"{name}/zeros"] = float((values == 0).double().mean())
    return found


def preference_figures(reward: Tensor, batch: Batch) -> Figures:
    """TRL's rewards/chosen, rejected, margins and accuracies from implicit rewards [S].

    Where groups are pairs the accuracy is that of pairs; else the share of completions on their label's side of 0.
    A tie counts half: a policy that is its reference prefers nothing.
    """
    label = batch.label
    assert label is not None
    found = _by_label("rewards", reward, label)
    chosen, rejected = reward[label > 0], reward[label < 0]
    paired = len(chosen) == len(rejected) and batch.group is not None
    if paired and bool((batch.group[label > 0] == batch.group[label < 0]).all()):  # type: ignore[index]
        found["rewards/accuracies"] = _share_above(chosen - rejected)
    else:
        found["rewards/accuracies"] = _share_above(reward * label)
    if len(chosen) and len(rejected):
        found["rewards/margins"] = float(chosen.mean() - rejected.mean())
    return found


def _share_above(values: Tensor) -> float:
    """Share of values above 0, those at 0 counted half."""
    return float(((values > 0).double() + 0.5 * (values == 0).double()).mean())


def _by_label(name: str, values: Tensor, label: Tensor) -> Figures:
    sides = {"chosen": values[label > 0], "rejected": values[label < 0]}
    return {f"{name}/{side}": float(some.mean()) for side, some in sides.items() if len(some)}


def _reward_figures(reward: Tensor, own: Tensor, batch: Batch) -> Figures:
    """`reward` is the mean over drawn completions, `reward_std` the mean over groups of the spread within."""
    rows = own.any(1)
    rewards = ((reward * own).sum(1) / own.sum(1).clamp(min=1))[rows]
    assert batch.group is not None
    groups = batch.group[rows]
    spread = torch.stack([rewards[groups == group].std(correction=0) for group in torch.unique(groups)])
    zero = float((spread == 0).double().mean())
    return {"reward": float(rewards.mean()), "reward_std": float(spread.mean()), "frac_reward_zero_std": zero}


def kl(logp: Tensor, reference: Tensor) -> float:
    """Mean over tokens [N] of exp(d) − d − 1, d = reference − logp: an estimate of the divergence, never negative.

    Unbiased for KL(policy, reference) where the policy drew the tokens (Schulman's k3).
    """
    gap = reference - logp
    return float((torch.exp(gap) - gap - 1).mean())


def clip_figures(evaluation: Evaluation, own: Tensor) -> Figures:
    """TRL's clip_ratio: shares of the tokens [S, T] whose ω is 0, by the sign of their advantage.

    A clipped surrogate has no gradient where the ratio has left its range in the advantage's direction; there, and
    only there, ω is 0.
    """
    still, advantage = evaluation.parts["omega"][own] == 0, evaluation.parts["advantage"][own]
    low, high = float((still & (advantage < 0)).double().mean()), float((still & (advantage > 0)).double().mean())
    return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low + high}


def completion_figures(completions: Sequence[Ids], finished: Sequence[bool]) -> Figures:
    """Lengths in tokens of drawn completions; clipped are those that ran into the limit."""
    lengths = [len(ids) for ids in completions]
    ended = [length for length, done in zip(lengths, finished, strict=True) if done]
    found = {f"completions/{name}_length": value for name, value in _spread(lengths).items()}
    found["completions/clipped_ratio"] = 1 - len(ended) / len(lengths)
    return found | {f"completions/{name}_terminated_length": value for name, value in _spread(ended).items()}


def _spread(lengths: Sequence[int]) -> Figures:
    return {"mean": sum(lengths) / len(lengths), "min": min(lengths), "max": max(lengths)} if lengths else {}


class MetricsFile:
    """One JSON object a line, one line a step. A resumed run drops the lines of steps that it takes again."""

    def __init__(self, path: Path, after: int) -> None:
        kept = []
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= after]
        self.kept: list[Figures] = [_finite(json.loads(line)) for line in kept]
        write_text(path, "".join(f"{line}\n" for line in kept))
        with writing(path):
            self.path, self.file = path, path.open("a", encoding="utf-8")

    def write(self, figures: Figures) -> None:
        """Append a line that is on the disk when this returns to the loop."""
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        with writing(self.path):
            self.file.write(json.dumps(finite) + "\n")
            self.file.flush()

    def flush(self) -> None:
        """Force the lines to the disk."""
        with writing(self.path):
            os.fsync(self.file.fileno())

    def close(self) -> None:
        with writing(self.path), self.file:
            self.flush()


def _finite(line: dict[str, float | None]) -> Figures:
    """A line without what was not finite when it was written."""
    return {name: value for name, value in line.items() if value is not None}


def _step_of(line: str) -> float:
    """The step of a line; a line that was cut short belongs to no step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
