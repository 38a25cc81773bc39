"""The names of what a run measures: one row each with unit and meaning, which the manual and the reports show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Figures = dict[str, float]


@dataclass(frozen=True)
class Figure:
    """One figure or a few of a kind. SCORE, NAME and K stand for any; `better` is "higher", "lower" or ""."""

    names: tuple[str, ...]
    unit: str
    when: str
    meaning: str
    better: str = ""


DRAWN = "completions are drawn"
REWARDED = "completions are drawn, and the method has a reward"
LABELS = "labels, and a measure of the method's own"

METRICS = (
    Figure(("step",), "", "always", "counted from 1"),
    Figure(("loss",), "", "always", "−Σ c·logp + penalty, c without its share: the gradient counts, not the value"),
    Figure(("grad_norm",), "", "always", "before clipping"),
    Figure(("learning_rate",), "", "always", "of this step"),
    Figure(("epoch",), "", "always", "rows drawn / rows"),
    Figure(("skipped",), "steps", "a step can be left out", "left out so far; such a line ends here"),
    Figure(("loss_scale",), "", "`--precision fp16`", "the factor that the gradient carried"),
    Figure(("seconds",), "s", "always", "this step took, drawing and scoring included"),
    Figure(("num_tokens",), "tokens", "always", "of prompts and completions, so far"),
    Figure(("omega/mean", "omega/abs_mean", "omega/zeros"), "", "always", "ω over all tokens; share that is exactly 0"),
    Figure(("upsilon/mean", "upsilon/abs_mean", "upsilon/zeros"), "", "always", "υ(advantage), the same"),
    Figure(("coefficient/mean", "coefficient/abs_mean", "coefficient/zeros"), "", "always", "c, the same"),
    Figure(("dead_ratio",), "share", "always", "of sequences that cannot matter and were not run through a model"),
    Figure(("report/NAME",), "", "the method has reports", "each report: its mean over the step"),
    Figure(("kl",), "nats", "drawn, with a reference", "mean over tokens of exp(d) − d − 1, d = logp_ref − logp"),
    Figure(("entropy",), "nats", "drawn, or the method uses it", "mean over tokens"),
    Figure(("rewards/SCORE/mean", "rewards/SCORE/std"), "", "the method has scores", "over completions"),
    Figure(("rewards/SCORE/failed",), "", "`--on-score-error` zero or skip", "completions on which it failed, if any"),
    Figure(("rewards/SCORE/none",), "", "the function gives None", "completions to which it does not apply, if any"),
    Figure(
        ("rewards/chosen", "rewards/rejected", "rewards/margins"),
        "",
        LABELS,
        "mean implicit reward alpha · label · measure of either side; their difference",
    ),
    Figure(
        ("rewards/accuracies",), "share", LABELS, "of pairs in the right order, else of rewards on their label's side"
    ),
    Figure(("logps/chosen", "logps/rejected"), "nats", "rows with labels", "mean over completions of Σ logp"),
    Figure(("replayed",), "groups", "`--replay`", "of earlier steps; they count in no figure of drawn completions"),
    Figure(("reward",), "", REWARDED, "mean over completions"),
    Figure(("reward_std",), "", REWARDED, "mean over groups of the spread within (the population's)"),
    Figure(("frac_reward_zero_std",), "share", REWARDED, "of groups without spread"),
    Figure(
        ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"),
        "share",
        "drawn, and the method uses logp_old",
        "tokens whose ω is 0 with a negative advantage, with a positive one, either",
    ),
    Figure(
        ("completions/mean_length", "completions/min_length", "completions/max_length"),
        "tokens",
        DRAWN,
        "end token included",
    ),
    Figure(("completions/clipped_ratio",), "share", DRAWN, "of completions that ran into `--max-completion`"),
    Figure(
        tuple(f"completions/{name}_terminated_length" for name in ("mean", "min", "max")),
        "tokens",
        "some completion ended",
        "of those",
    ),
    Figure(
        ("sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max"),
        "nats",
        "the method uses logp_sampler",
        "|logp_old − logp_sampler| over tokens",
    ),
)
"""What a line of metrics.jsonl holds, under TRL's names where the quantity is TRL's."""

HELD_OUT = (
    Figure(("SCORE/sampled",), "", "prompts", "mean over prompts, of sampled completions", "higher"),
    Figure(("SCORE/greedy",), "", "prompts", "the same of the greedy completion", "higher"),
    Figure(
        ("SCORE/pass@K",),
        "",
        "`--eval-samples` 2 or more",
        "mean over prompts of the expected best of K completions; for a score of 0 and 1 the chance that one is right",
        "higher",
    ),
    Figure(("completions/mean_length",), "tokens", "prompts", "of sampled completions"),
    Figure(("completions/clipped_ratio",), "share", "prompts", "of those that ran into `--max-completion`", "lower"),
    Figure(("distinct-1", "distinct-2"), "share", "prompts", "different n-grams of tokens among all of them"),
    Figure(("entropy",), "nats", "always", "mean over tokens, of sampled completions or else of the rows"),
    Figure(("kl",), "nats", "prompts, with a reference", "as in training, on sampled completions", "lower"),
    Figure(("rewards/accuracies",), "share", f"rows with {LABELS}", "as in training", "higher"),
    Figure(("rewards/margins",), "", f"rows with {LABELS}", "as in training", "higher"),
    Figure(("rewards/chosen", "rewards/rejected"), "", f"rows with {LABELS}", "as in training"),
    Figure(("nll/completions", "nll/chosen", "nll/rejected"), "nats", "rows", "mean over tokens of −logp", "lower"),
)
"""What a line of evaluations.jsonl holds."""


def better(name: str) -> str:
    """Whether more or less of a held-out figure is better: "higher", "lower", or "" where neither is."""
    for row in HELD_OUT:
        for known in row.names:
            prefix, _, last = known.rpartition("/")
            if name == known or (prefix == "SCORE" and _like(name, last)):
                return row.better
    return ""


def _like(name: str, last: str) -> bool:
    end = name.rpartition("/")[2]
    return end == last or (last == "pass@K" and end.startswith("pass@"))


def key_metric(names: Iterable[str]) -> str | None:
    """The figure that says most of a model, among these: the first sampled score, else preferences, else nats."""
    there = list(names)
    sampled = [name for name in there if name.endswith("/sampled")]
    fixed = ("rewards/accuracies", "nll/completions", "nll/chosen")
    return next((name for name in (*sampled, *fixed) if name in there), None)


def gain(name: str, old: float, new: float) -> bool:
    """Whether the new value of a held-out figure is better than the old one."""
    return new < old if better(name) == "lower" else new > old


@dataclass(frozen=True)
class Best:
    """The best of some evaluations by one figure, and how many came after it."""

    name: str
    step: int
    value: float
    since: int


def best(evaluations: Iterable[Mapping[str, float]], name: str) -> Best | None:
    """The best evaluation, the first of equals; None where none has a (finite) value of the figure."""
    found: Best | None = None
    for line in evaluations:
        if line.get(name) is None:
            continue
        if found is None or gain(name, found.value, line[name]):
            found = Best(name, int(line["step"]), line[name], 0)
        else:
            found = Best(name, found.step, found.value, found.since + 1)
    return found
