"""Held-out rows before and after: accuracy where completions can be scored, else log-probs and preferences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from grolang.runtime.examples import Example, Examples, key
from grolang.runtime.metrics import Figures, preference_figures
from grolang.runtime.rollout import Sampler, offline_samples
from grolang.runtime.scores import Scorer
from grolang.runtime.step import Engine


@dataclass(frozen=True)
class HeldOut:
    """What to measure. `prompts` are completed and scored by `sampler`; `rows` of `kind` are evaluated as data."""

    prompts: Examples | None = None
    sampler: Sampler | None = None
    rows: Examples | None = None
    scorers: tuple[Scorer, ...] = ()
    batch: int = 32

    def measure(self, engine: Engine) -> Figures:
        """The figures of the model as it is now. The same completions are drawn each time but for what it learned."""
        found: Figures = {}
        if self.prompts is not None and self.sampler is not None:
            found |= _accuracy(self.prompts, self.sampler)
        if self.rows is not None:
            found |= _loss(engine, self.rows, self.scorers, self.batch)
        return found


def _accuracy(prompts: Examples, sampler: Sampler) -> Figures:
    """Mean over prompts of each score of one sampled and of the greedy completion."""
    examples = prompts.take(range(len(prompts)))
    keys = [key(sampler.seed, "held out", at) for at in range(len(examples))]
    found: Figures = {}
    for way, chosen in (("sampled", keys), ("greedy", None)):
        ids = [one.ids for one in sampler.complete([example.prompt for example in examples], chosen)]
        records = [example.record for example in examples]
        texts = [sampler.text(record, one) for record, one in zip(records, ids, strict=True)]
        scores = sampler.score(records, texts, ids)
        for name in scores[0]:
            found[f"{name}, {way}"] = sum(score[name] for score in scores) / len(scores)
    return found


def _loss(engine: Engine, rows: Examples, scorers: Sequence[Scorer], size: int) -> Figures:
    """Means over held-out rows, batch by batch. The method's own loss is not among them.

    Its value is that of a surrogate, −Σ c·logp, whose gradient means something and whose height does not.
    """
    totals: dict[str, tuple[float, float]] = {}
    for start in range(0, len(rows), size):
        some = rows.take(range(start, min(start + size, len(rows))))
        for name, (value, weight) in _batch_sums(engine, some, rows.kind, scorers).items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = before[0] + value, before[1] + weight
    found = {name: value / weight for name, (value, weight) in totals.items()}
    if {"chosen", "rejected"} <= set(found):
        found["margin"] = found.pop("chosen") - found.pop("rejected")
    return {name: value for name, value in found.items() if name not in ("chosen", "rejected")}


@torch.no_grad()
def _batch_sums(
    engine: Engine, examples: Sequence[Example], kind: str, scorers: Sequence[Scorer]
) -> dict[str, tuple[float, float]]:
    """Sums and counts: of nats over tokens, of implicit rewards and of won pairs over rows."""
    step = engine.prepare(offline_samples(examples, kind, scorers))
    batch = engine.current(step)
    reward = engine.method.evaluate(batch).implicit_reward
    assert batch.logp is not None and batch.label is not None
    found: dict[str, tuple[float, float]] = {}
    for side, rows in (("completions", batch.label == 0), ("good", batch.label > 0), ("bad", batch.label < 0)):
        tokens = batch.mask & rows[:, None]
        if tokens.any():
            found[f"nats per token, {side}"] = -float(batch.logp[tokens].sum()), float(tokens.sum())
    if reward is not None:
        figures = preference_figures(reward, batch)
        found["preference accuracy"] = figures["rewards/accuracies"] * len(examples), float(len(examples))
        for side, rows in (("chosen", batch.label > 0), ("rejected", batch.label < 0)):
            if rows.any():
                found[side] = float(reward[rows].sum()), float(rows.sum())
    return found
