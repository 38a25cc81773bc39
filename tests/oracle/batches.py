"""Hypothesis strategies that draw plain batches for each data kind of LANGUAGE.md §3.

What a failing example should shrink in (sizes of groups, lengths and layouts of completions, padding
rows, how rewards and policies relate) are integers and choices drawn through Hypothesis; the numbers come
from numpy's Generator under a drawn seed, so that a batch is quick to draw. At most 12 rows and 7 token
slots.

Every batch has: ragged masks (padded left, right or both sides, or with holes; one token or more per
sequence), up to two padding rows, prompt ids in no order, rows shuffled, log-probs from −1e-6 to −60, and
something that must not be read wherever the mask is off (see `Off`).

Two numbers that ought to differ differ by enough (log-probs are −1e-6 exactly, or at or below −1e-3;
rewards are equal or at least a tenth apart, except in mode "real"), so that dividing by a std near 0 does
not eat a tolerance of 1e-9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from hypothesis import strategies as st

from .gradients import Batch, Bools, Floats, Ints

MAX_ROWS = 12
MAX_TOKENS = 7
LARGEST_LOGP = -1e-6
SMALLEST_LOGP = -60.0

Off = Literal["zero", "garbage", "nan"]
"""What stands where the mask is off and on padding rows: 0, finite numbers that would show, or nan."""

Kind = Literal["preference", "unpaired", "prompts", "demonstrations"]

KINDS: dict[str, Kind] = {
    "reinforce": "prompts",
    "rloo": "prompts",
    "grpo": "prompts",
    "remax": "prompts",
    "reinforce_pp": "prompts",
    "gro": "prompts",
    "dpo": "preference",
    "cpl": "preference",
    "kto": "unpaired",
    "awr": "unpaired",
    "sft": "demonstrations",
}
"""The data kind of each method."""

REWARDS = ("binary", "equal", "equal in groups", "tenths", "real")
"""0 or 1; one number that is no binary fraction; the same per group; multiples of 0.1; normal."""

POLICIES = ("same", "near", "far", "mixed")
"""A second policy's log-probs to a first's: equal, within a clip's reach, independent, each by token."""

LABELS = ("mixed", "all good", "all bad")


@st.composite
def preference_batches(draw: st.DrawFn, *, off: Off = "garbage") -> Batch:
    """Pairs: two sequences for each prompt, exactly one labelled +1 and one −1."""
    pairs = draw(st.integers(1, 5), label="pairs")
    sizes, padding = [2] * pairs, draw(st.integers(0, 2), label="padding rows")
    mask, group, rng = _structure(draw, sizes, padding)
    label = rng.choice([-1.0, 1.0], size=len(group))
    for prompt in set(_of_sequences(group, mask)):
        first, second = np.flatnonzero((group == prompt) & mask.any(axis=1))
        label[second] = -label[first]
    batch = _policies(draw, rng, mask, group, off)
    batch["label"] = label
    return batch


@st.composite
def unpaired_batches(draw: st.DrawFn, *, off: Off = "garbage") -> Batch:
    """Labelled completions, one for each prompt, with the mismatched completions that KTO compares them with.

    Row i's mismatched completion is that of the next sequence: its mask is the next sequence's mask.
    """
    count = draw(st.integers(1, 10), label="sequences")
    padding = draw(st.integers(0, 2), label="padding rows")
    mask, group, rng = _structure(draw, [1] * count, padding)
    labels = draw(st.sampled_from(LABELS), label="labels")
    label = {
        "mixed": rng.choice([-1.0, 1.0], size=len(group)),
        "all good": np.full(len(group), 1.0),
        "all bad": np.full(len(group), -1.0),
    }[labels]
    batch = _policies(draw, rng, mask, group, off)
    batch["label"] = label
    sequences = np.flatnonzero(mask.any(axis=1))
    other = np.zeros_like(mask)
    other[sequences] = mask[np.roll(sequences, -1)]
    logp = _logp(rng, mask.shape)
    relation = draw(st.sampled_from(POLICIES), label="mismatched: reference against policy")
    batch["mismatched"] = {
        "mask": other,
        "logp": _cover(rng, logp, other, off),
        "logp_ref": _cover(rng, _related(rng, logp, relation), other, off),
    }
    return batch


@st.composite
def prompts_batches(
    draw: st.DrawFn,
    *,
    min_group: int = 1,
    max_group: int = 8,
    scores: tuple[str, ...] = ("correct",),
    off: Off = "garbage",
) -> Batch:
    """Completions drawn for prompts, `min_group` to `max_group` (at most 8) each, and their scores."""
    padding = draw(st.integers(0, 2), label="padding rows")
    sizes: list[int] = []
    wished = draw(st.lists(st.integers(min_group, max_group), min_size=1, max_size=5), label="group sizes")
    for size in wished:
        if sum(sizes) + size <= MAX_ROWS - padding:
            sizes.append(size)
    mask, group, rng = _structure(draw, sizes, padding)
    batch = _policies(draw, rng, mask, group, off)
    batch["scores"], batch["greedy_scores"] = {}, {}
    real: Bools = np.asarray(mask.any(axis=1))
    for name in scores:
        mode = draw(st.sampled_from(REWARDS), label=f"rewards: {name}")
        completions, greedy = _rewards(rng, mode, group)
        batch["scores"][name] = _cover(rng, completions, real, off)
        batch["greedy_scores"][name] = _cover(rng, greedy, real, off)
    return batch


@st.composite
def demonstrations_batches(draw: st.DrawFn, *, off: Off = "garbage") -> Batch:
    """Demonstrations alone: each row has a prompt id of its own, and its old policy is the current one."""
    count = draw(st.integers(1, 10), label="sequences")
    padding = draw(st.integers(0, 2), label="padding rows")
    mask, group, rng = _structure(draw, [1] * count, padding)
    batch = _policies(draw, rng, mask, group, off)
    batch["demonstration"] = np.ones(len(group))
    batch["logp_old"] = batch["logp"].copy()
    return batch


@st.composite
def mixed_batches(draw: st.DrawFn, *, off: Off = "garbage") -> Batch:
    """`prompts + demonstrations`: some rows are demonstrations, whose old policy is the current one."""
    batch = draw(prompts_batches(min_group=2, off=off))
    sequences = np.flatnonzero(batch["mask"].any(axis=1))
    shown = draw(st.lists(st.sampled_from(list(sequences)), unique=True), label="demonstrations")
    batch["demonstration"] = np.zeros(len(batch["mask"]))
    batch["demonstration"][shown] = 1.0
    batch["logp_old"][shown] = batch["logp"][shown]
    return batch


def method_batches(method: str, *, off: Off = "garbage") -> st.SearchStrategy[Batch]:
    """Batches that the method of this name can learn from (for `rloo`, no group of one)."""
    if KINDS[method] == "prompts":
        return prompts_batches(min_group=2 if method == "rloo" else 1, off=off)
    of_kind: dict[Kind, Callable[..., st.SearchStrategy[Batch]]] = {
        "preference": preference_batches,
        "unpaired": unpaired_batches,
        "demonstrations": demonstrations_batches,
    }
    return of_kind[KINDS[method]](off=off)


def method_parameters(method: str) -> st.SearchStrategy[dict[str, float]]:
    """Hyper-parameters of the method within the bounds of its file: its defaults, or others."""
    positive = st.sampled_from([0.01, 0.1, 0.5, 1.0, 3.0])
    ranges: dict[str, dict[str, st.SearchStrategy[float]]] = {
        "grpo": {"epsilon": st.sampled_from([0.05, 0.2, 0.9]), "beta": st.sampled_from([0.0, 0.04, 1.0])},
        "reinforce_pp": {
            "epsilon": st.sampled_from([0.05, 0.2, 0.9]),
            "beta": st.sampled_from([0.0, 0.01, 0.5]),
        },
        "dpo": {"beta": positive},
        "cpl": {"beta": positive, "gamma": st.sampled_from([0.1, 0.9, 1.0])},
        "kto": {"beta": positive, "desirable": positive, "undesirable": positive},
        "awr": {"beta": positive, "weight_max": st.sampled_from([0.5, 2.0, 20.0])},
        "gro": {"beta": positive, "tau": positive},
    }
    return st.one_of(st.just({}), st.fixed_dictionaries(ranges.get(method, {})))


# ------------------------------------------------------------------------------------------------------------
# The parts of a batch
# ------------------------------------------------------------------------------------------------------------


def _structure(draw: st.DrawFn, sizes: list[int], padding: int) -> tuple[Bools, Ints, np.random.Generator]:
    """(mask [S, T], group [S], rng): sequences of groups of these sizes and padding rows, in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    slots = draw(st.integers(1, MAX_TOKENS), label="token slots")
    count = sum(sizes)
    shapes = st.tuples(st.integers(1, slots), st.integers(0, 3))
    layout = draw(st.lists(shapes, min_size=count, max_size=count), label="length, layout")
    mask = np.zeros((count + padding, slots), dtype=np.bool_)
    for row, (length, kind) in enumerate(layout):
        start = (0, slots - length, (slots - length) // 2, 0)[kind]  # padded right, left, both sides
        mask[row, start : start + length] = True
        if kind == 3:  # holes
            mask[row] = rng.permutation(mask[row])
    ids = rng.choice(50, size=len(sizes), replace=False)
    # A padding row carries the id of some group: it must not become one of its members.
    group = np.concatenate([np.repeat(ids, sizes), rng.choice(ids, size=padding)]).astype(np.int64)
    if draw(st.booleans(), label="shuffled"):
        order = rng.permutation(len(group))
        mask, group = mask[order], group[order]
    return mask, group, rng


def _policies(draw: st.DrawFn, rng: np.random.Generator, mask: Bools, group: Ints, off: Off) -> Batch:
    """The part of a batch that every kind has: masks, groups, and log-probs under four policies."""
    logp = _logp(rng, mask.shape)
    old = _related(rng, logp, draw(st.sampled_from(POLICIES), label="old policy against policy"))
    ref = _related(rng, logp, draw(st.sampled_from(POLICIES), label="reference against policy"))
    return {
        "mask": mask,
        "group": group,
        "logp": _cover(rng, logp, mask, off),
        "logp_old": _cover(rng, old, mask, off),
        "logp_ref": _cover(rng, ref, mask, off),
        "logp_sampler": _cover(rng, _related(rng, old, "near"), mask, off),
        "entropy": _cover(rng, rng.uniform(0.0, 8.0, size=mask.shape), mask, off),
    }


def _logp(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Log-probs: mostly ordinary ones, some at each end of the range."""
    ordinary = -rng.gamma(1.0, 1.5, size=shape)
    by_size = -np.exp(rng.uniform(np.log(1e-3), np.log(60.0), size=shape))
    ends = rng.choice([LARGEST_LOGP, SMALLEST_LOGP], size=shape)
    kind = rng.choice(3, p=[0.6, 0.25, 0.15], size=shape)
    return _in_range(np.select([kind == 0, kind == 1], [ordinary, by_size], ends))


def _related(rng: np.random.Generator, logp: Floats, relation: str) -> Floats:
    """Log-probs of another policy, see POLICIES."""
    near = _in_range(logp + rng.normal(0.0, 0.25, size=logp.shape))
    far = _logp(rng, logp.shape)
    kind = rng.choice(3, size=logp.shape)
    mixed = np.select([kind == 0, kind == 1], [logp, near], far)
    found: dict[str, Floats] = {"same": logp.copy(), "near": near, "far": far, "mixed": mixed}
    return found[relation]


def _in_range(logp: Floats) -> Floats:
    """Within [−60, −1e-6], with nothing strictly between −1e-3 and −1e-6."""
    clipped = np.clip(logp, SMALLEST_LOGP, LARGEST_LOGP)
    return np.asarray(np.where(clipped > -1e-3, LARGEST_LOGP, clipped))


def _rewards(rng: np.random.Generator, mode: str, group: Ints) -> tuple[Floats, Floats]:
    """(completions' [S], greedy completions' [S], one number for each prompt), see REWARDS."""
    odd = np.array([0.1, 0.3, -0.7, 1.0 / 3.0])

    def values(count: int) -> Floats:
        drawn: Floats = {
            "binary": rng.integers(0, 2, size=count).astype(np.float64),
            "equal": np.full(count, 0.1),
            "equal in groups": rng.choice(odd, size=count),
            "tenths": rng.integers(-10, 11, size=count) / 10.0,
            "real": rng.normal(size=count),
        }[mode]
        return drawn

    prompts, of_row = np.unique(group, return_inverse=True)
    completions = values(len(prompts))[of_row] if mode == "equal in groups" else values(len(group))
    return completions, values(len(prompts))[of_row]


def _cover(rng: np.random.Generator, values: Floats, on: Bools, off: Off) -> Floats:
    """`values` where `on`, what `off` says elsewhere."""
    hidden = {
        "zero": np.zeros(values.shape),
        "garbage": rng.choice([0.0, -1.0, 40.0, -1e4], size=values.shape),
        "nan": np.full(values.shape, np.nan),
    }[off]
    return np.asarray(np.where(on, values, hidden))


def _of_sequences(values: Ints, mask: Bools) -> list[int]:
    """The values of the rows that are not padding."""
    return [int(value) for value in values[mask.any(axis=1)]]
