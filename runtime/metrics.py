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
from grolang.language.diagnostics import GroError
from grolang.runtime.step import Sample

Figures = dict[str, float]


def step_figures(samples: Sequence[Sample], batch: Batch, evaluation: Evaluation, *, drawn: bool) -> Figures:
    """What one evaluation of the whole step says; every mean names its axis in the code below."""
    mask, logp = batch.mask, batch.logp
    assert logp is not None
    found = {"loss": float(evaluation.loss)}
    own = mask & (batch.demonstration == 0)[:, None] if drawn and batch.demonstration is not None else mask
    if batch.label is not None and evaluation.implicit_reward is not None:
        found |= preference_figures(evaluation.implicit_reward, batch)
    if batch.label is not None and not drawn:
        totals = (logp * mask).sum(1)
        found |= _by_label("logps", totals, batch.label)
    if drawn:
        found |= _reward_figures(evaluation.parts["reward"], own, batch)
        found |= completion_figures([sample for sample in samples if not sample.demonstration])
    for name, values in batch.scores.items():
        rows = own.any(1)
        found[f"rewards/{name}/mean"] = float(values[rows].mean())
        found[f"rewards/{name}/std"] = float(values[rows].std(correction=0))
    if drawn and batch.logp_ref is not None:  # an estimate only where the policy itself drew the tokens
        ratio = (batch.logp_ref - logp)[own]
        found["kl"] = float((torch.exp(ratio) - ratio - 1).mean())
    if batch.entropy is not None:
        found["entropy"] = float(batch.entropy[own if own.any() else mask].mean())
    tokens = {"omega": evaluation.parts["omega"], "upsilon": evaluation.parts["upsilon"]}
    tokens["coefficient"] = evaluation.coefficients
    for name, part in tokens.items():
        values = part[mask]
        found[f"{name}/mean"] = float(values.mean())
        found[f"{name}/abs_mean"] = float(values.abs().mean())
        found[f"{name}/zeros"] = float((values == 0).double().mean())
    found["num_tokens"] = int(mask.sum())
    return found | {f"report/{name}": value for name, value in evaluation.reports.items()}


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


def completion_figures(samples: Sequence[Sample]) -> Figures:
    """Lengths in tokens of drawn completions; clipped are those that ran into the limit."""
    lengths = [len(sample.completion) for sample in samples]
    ended = [len(sample.completion) for sample in samples if sample.finished]
    found = {
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": 1 - len(ended) / len(lengths),
    }
    return found | ({"completions/mean_terminated_length": sum(ended) / len(ended)} if ended else {})


class MetricsFile:
    """One JSON object a line, one line a step. A resumed run drops the lines of steps that it takes again."""

    def __init__(self, path: Path, after: int) -> None:
        kept = []
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= after]
        try:
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            self.file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise GroError.plain(f"cannot write {path}: {error.strerror}") from error

    def write(self, figures: Figures) -> None:
        """Append a line that is on the disk when this returns to the loop."""
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        try:
            self.file.write(json.dumps(finite) + "\n")
            self.file.flush()
        except OSError as error:
            raise GroError.plain(f"cannot write {self.file.name}: {error.strerror}") from error

    def flush(self) -> None:
        """Force the lines to the disk."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise GroError.plain(f"cannot write {self.file.name}: {error.strerror}") from error

    def close(self) -> None:
        self.flush()
        self.file.close()


def _step_of(line: str) -> float:
    """The step of a line; a line that was cut short belongs to no step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
