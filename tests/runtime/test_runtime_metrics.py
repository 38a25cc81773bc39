"""The figures of a step against TRL's formulas, written out here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import grolang
from grolang.runtime.metrics import completion_figures, kl, step_figures
from grolang.runtime.sequences import Sample


def test_clip_ratios_are_trls() -> None:
    torch.manual_seed(0)
    method = grolang.load("grpo", epsilon=0.2)
    mask = torch.arange(7) < torch.tensor([7, 3, 5, 1, 6, 2])[:, None]
    logp, old = -torch.rand(2, 6, 7)
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    score = torch.rand(6)
    batch = grolang.Batch(mask=mask, group=group, logp=logp, logp_old=old, logp_ref=old, scores={"correct": score})
    samples = [Sample([1], [1] * int(row.sum()), int(at)) for row, at in zip(mask, group, strict=True)]
    found = step_figures(samples, batch, method.evaluate(batch), drawn=True, old=True)
    ratio = torch.exp(logp - old)
    advantage = (score - torch.stack([score[group == at].mean() for at in group]))[:, None]
    low, high = (ratio < 0.8) & (advantage < 0), (ratio > 1.2) & (advantage > 0)
    for name, clipped in (("low_mean", low), ("high_mean", high), ("region_mean", low | high)):
        assert found[f"clip_ratio/{name}"] == pytest.approx(float(clipped[mask].double().mean()))
    assert found["clip_ratio/low_mean"] > 0 and found["clip_ratio/high_mean"] > 0
    assert found["kl"] == pytest.approx(float((torch.exp(old - logp) - (old - logp) - 1)[mask].mean()))
    assert found["num_tokens"] == int(mask.sum()) + 6
    assert "clip_ratio/low_mean" not in step_figures(samples, batch, method.evaluate(batch), drawn=True)


def test_the_divergence_is_zero_from_itself_and_positive_from_another() -> None:
    logp = -torch.rand(50)
    assert kl(logp, logp) == 0 and kl(logp, logp + 0.1) > 0 and kl(logp, logp - 0.1) > 0


def test_lengths_of_completions_that_ended_and_of_those_that_did_not() -> None:
    found = completion_figures([[1], [1, 2], [1, 2, 3]], [True, True, False])
    assert found == {
        "completions/mean_length": 2, "completions/min_length": 1, "completions/max_length": 3,
        "completions/clipped_ratio": pytest.approx(1 / 3), "completions/mean_terminated_length": 1.5,
        "completions/min_terminated_length": 1, "completions/max_terminated_length": 2,
    }  # fmt: skip
    assert "completions/mean_terminated_length" not in completion_figures([[1]], [False])


def test_a_method_that_gives_its_advantage_alone_has_no_figures_of_a_reward(tmp_path: Path) -> None:
    path = tmp_path / "distilled.gro"
    path.write_text("method distilled\ndata prompts\nadvantage = logp_ref - logp\naggregate = mean over batch\n")
    method = grolang.load(path)
    mask = torch.ones(2, 3, dtype=torch.bool)
    batch = grolang.Batch(mask=mask, group=torch.arange(2), logp=-torch.rand(2, 3), logp_ref=-torch.rand(2, 3))
    samples = [Sample([1], [1, 1, 1], at) for at in range(2)]
    found = step_figures(samples, batch, method.evaluate(batch), drawn=True)
    assert found["completions/mean_length"] == 3 and found["kl"] > 0
    assert not {"reward", "reward_std", "frac_reward_zero_std"} & set(found)
