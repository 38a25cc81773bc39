"""Held-out rows before, during and after: scores where completions can be scored, else log-probs and preferences."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from grolang.language.diagnostics import GroError
from grolang.runtime.examples import Example, Ids, Together, key
from grolang.runtime.figures import Figures
from grolang.runtime.metrics import completion_figures, kl, preference_figures
from grolang.runtime.rollout import Sampler, offline_draw
from grolang.runtime.scoring import Scoring
from grolang.runtime.sequences import mask_of
from grolang.runtime.settings import RunSettings
from grolang.runtime.step import Engine


@dataclass(frozen=True)
class Completion:
    """One completion of a held-out prompt; `number` counts those sampled for it from 0, None is the greedy one."""

    example: Example
    number: int | None
    ids: Ids
    finished: bool
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """The figures of an evaluation, and the completions that they are of."""

    figures: Figures
    completions: tuple[Completion, ...] = ()


@dataclass(frozen=True)
class HeldOut:
    """What to measure. `prompts` are completed and scored by `sampler`; `rows` of `kind` are evaluated as data."""

    prompts: Together | None = None
    sampler: Sampler | None = None
    rows: Together | None = None
    scoring: Scoring | None = None
    batch: int = 32
    samples: int = 1

    def measure(self, engine: Engine) -> Measured:
        """The figures of the model as it is now, the same in every process.

        The same completions are drawn each time but for what the model learned. Training does not notice: no
        generator moves.
        """
        with untouched_generators():
            found: Figures = {}
            completions: tuple[Completion, ...] = ()
            if self.rows is not None and self.scoring is not None:
                found = _of_rows(engine, self.rows, self.scoring, self.batch)
            if self.prompts is not None and self.sampler is not None:
                completions = _completed(self.prompts, self.sampler, self.samples)
                found = _of_completions(engine, completions) | found | _entropies(engine, completions)
        return Measured(broadcast_object_list([found])[0], completions)


@contextmanager
def untouched_generators() -> Iterator[None]:
    """The states of Python's, numpy's and torch's random generators are afterwards what they were before."""
    own, numpys = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(numpys)


def _completed(prompts: Together, sampler: Sampler, samples: int) -> tuple[Completion, ...]:
    """Each prompt's sampled completions and its greedy one, scored."""
    examples = prompts.take(range(len(prompts)))
    drawn = [(at, number) for at in range(len(examples)) for number in range(samples)]
    keys = [key(sampler.seed, "held out", *((at, number) if number else (at,))) for at, number in drawn]
    found = sampler.complete([examples[at].prompt for at, _ in drawn], keys)
    found += sampler.complete([example.prompt for example in examples], None)
    places = [*drawn, *((at, None) for at in range(len(examples)))]
    records = [examples[at].record for at, _ in places]
    texts = [sampler.text(record, one.ids) for record, one in zip(records, found, strict=True)]
    scored = sampler.scoring(records, texts, [one.ids for one in found])
    return tuple(
        Completion(examples[at], number, one.ids, one.finished, marks.scores)
        for (at, number), one, marks in zip(places, found, scored, strict=True)
    )


def _of_completions(engine: Engine, completions: Sequence[Completion]) -> Figures:
    """Scores, lengths and variety."""
    sampled = [one for one in completions if one.number is not None]
    greedy = [one for one in completions if one.number is None]
    found: Figures = {}
    for name in completions[0].scores:
        count = len(sampled) // len(greedy)
        groups = [[one.scores[name] for one in sampled[at : at + count]] for at in range(0, len(sampled), count)]
        found[f"{name}/sampled"] = _mean([_mean(group) for group in groups])
        found[f"{name}/greedy"] = _mean([one.scores[name] for one in greedy])
        for k in sorted({count, *(2**power for power in range(1, count.bit_length()))} - {1}):
            found[f"{name}/pass@{k}"] = _mean([expected_best(group, k) for group in groups])
    lengths = completion_figures([one.ids for one in sampled], [one.finished for one in sampled])
    found |= {name: lengths[name] for name in ("completions/mean_length", "completions/clipped_ratio")}
    return found | {f"distinct-{n}": distinct([one.ids for one in sampled], n) for n in (1, 2)}


def expected_best(values: Sequence[float], k: int) -> float:
    """The expected maximum of k of n values drawn without replacement, Σᵢ v₍ᵢ₎ C(i−1, k−1) / C(n, k).

    With values of 0 and 1 it is pass@k (Chen et al., 2021, Eq. 1), 1 − C(n−c, k) / C(n, k) with c of them 1: the
    unbiased estimate from n samples of the chance that one of k is right.
    """
    ranked = sorted(values)
    return sum(value * math.comb(at, k - 1) for at, value in enumerate(ranked)) / math.comb(len(ranked), k)


def distinct(texts: Sequence[Ids], n: int) -> float:
    """Different n-grams / n-grams of all texts together (Li et al., 2016); 0 where there is none."""
    grams = [tuple(ids[at : at + n]) for ids in texts for at in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _entropies(engine: Engine, completions: Sequence[Completion]) -> Figures:
    """Entropy of the policy, and its divergence from the reference, over the tokens that it drew itself."""
    sampled = [one for one in completions if one.number is not None]
    pairs = [(one.example.prompt, one.ids) for one in sampled]
    mask = mask_of([len(ids) for _, ids in pairs], engine.device)
    logp, entropy = engine.log_probs(engine.policy, pairs, mask, entropy=True)
    assert entropy is not None
    found = {"entropy": float(entropy[mask].mean())}
    if engine.reference is not None:
        found["kl"] = kl(logp[mask], engine.log_probs(engine.reference, pairs, mask)[0][mask])
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _of_rows(engine: Engine, rows: Together, scoring: Scoring, size: int) -> Figures:
    """Means over held-out rows, batch by batch. The method's own loss is not among them.

    Its value is that of a surrogate, −Σ c·logp, whose gradient means something and whose height does not.
    """
    totals: dict[str, tuple[float, float]] = {}
    parts = math.ceil(len(rows) / max(2, size))  # of one size: none is a single row, which has no other to compare with
    for part in range(parts):
        some = rows.take(range(part * len(rows) // parts, (part + 1) * len(rows) // parts))
        for name, (value, weight) in _batch_sums(engine, some, rows.kind, scoring).items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = before[0] + value, before[1] + weight
    found = {name: value / weight for name, (value, weight) in totals.items()}
    if {"rewards/chosen", "rewards/rejected"} <= set(found):
        found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
    return found


@torch.no_grad()
def _batch_sums(
    engine: Engine, examples: Sequence[Example], kind: str, scoring: Scoring
) -> dict[str, tuple[float, float]]:
    """Sums and counts: of nats and entropies over tokens, of implicit rewards and of won pairs over rows."""
    step = engine.prepare(offline_draw(examples, kind, scoring, whole=True).samples)
    batch = engine.current(step, entropy=True)
    reward = engine.method.evaluate(batch).implicit_reward
    label, entropy = batch.label, batch.entropy
    assert batch.logp is not None and label is not None and entropy is not None
    found: dict[str, tuple[float, float]] = {}
    if reward is not None:
        figures = preference_figures(reward, batch)
        found["rewards/accuracies"] = figures["rewards/accuracies"] * len(examples), float(len(examples))
        for side, rows in (("chosen", label > 0), ("rejected", label < 0)):
            if rows.any():
                found[f"rewards/{side}"] = float(reward[rows].sum()), float(rows.sum())
    for side, rows in (("completions", label == 0), ("chosen", label > 0), ("rejected", label < 0)):
        tokens = batch.mask & rows[:, None]
        if tokens.any():
            found[f"nll/{side}"] = -float(batch.logp[tokens].sum()), float(tokens.sum())
    found["entropy"] = float(entropy[batch.mask].sum()), float(batch.mask.sum())
    return found


def check_evaluation(settings: RunSettings, figures: Figures) -> None:
    """Raise GroError where settings ask for a figure, or an evaluation, that there is none of."""
    name = settings.eval_metric
    if settings.eval_every and not figures:
        raise GroError.plain("--eval-every: no row is held out", help="give --eval-data, or --eval-rows 1 or more")
    if name is not None and name not in figures:
        known = ", ".join(figures) or "none: no row is held out"
        raise GroError.plain(f"--eval-metric {name}: no such held-out figure", help=f"name one of {known}")
