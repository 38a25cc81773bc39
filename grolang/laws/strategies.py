"""Hypothesis strategies: batches that a method accepts, in numbers that a person can check by hand.

Sizes and values are drawn one by one, so a failing batch shrinks to a small one that fails.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from grolang.compiler.batch import PER_TOKEN, Batch
from grolang.language.ir import MethodIR

#: log-probs from -1e-6 to -60, most of them eighths
LOGPS = st.one_of(st.integers(1, 40).map(lambda n: -n / 8), st.sampled_from((-1e-6, -1e-3, -20.0, -60.0)))
#: scores: quarters, few enough to be equal now and then, and what lies past any clip
SCORES = st.integers(-5, 5).map(lambda n: n / 4 if abs(n) < 5 else 2.0 * n)


@st.composite
def batches(
    draw: st.DrawFn,
    *methods: MethodIR,
    smallest_group: int = 1,
    largest_group: int = 3,
    holes: bool = True,
    padding: bool = True,
) -> Batch:
    """A batch in float64 that holds everything these methods may use.

    Pairs where one of them learns from preferences, else groups of `smallest_group` to `largest_group`; ragged
    masks, with `holes` in them; one-token completions; with `padding` sometimes a row that is all off; rows in any
    order.
    """
    kinds = {kind for method in methods for kind in method.data}
    pairs = "preference" in kinds
    sizes = draw(st.lists(st.just(2) if pairs else st.integers(smallest_group, largest_group), min_size=1, max_size=3))
    group = [index for index, size in enumerate(sizes) for _ in range(size)]
    label = [
        1.0 if pairs and row % 2 == 0 else -1.0 if pairs else draw(st.sampled_from((1.0, -1.0)))
        for row in range(len(group))
    ]
    slots = draw(st.integers(1, 3))
    mask = [_row(draw, slots, holes) for _ in group]
    if padding and draw(st.booleans()):
        mask.append([False] * slots)
        group.append(0)
        label.append(1.0)
    order = draw(st.permutations(range(len(group))))
    mask, group, label = [mask[i] for i in order], [group[i] for i in order], [label[i] for i in order]
    rows = len(group)
    shown = [float(draw(st.booleans())) if kinds == {"prompts", "demonstrations"} else 0.0 for _ in range(rows)]
    if kinds == {"demonstrations"}:
        shown = [1.0] * rows
    names = sorted({name for method in methods for name in method.scores})
    by_prompt = {name: [draw(SCORES) for _ in sizes] for name in names}
    return Batch(
        mask=torch.tensor(mask),
        group=torch.tensor(group),
        label=_tensor(label),
        demonstration=_tensor(shown),
        **_policies(draw, rows, slots),
        scores={name: _tensor(draw(SCORES) for _ in range(rows)) for name in names},
        greedy_scores={name: _tensor(by_prompt[name][index] for index in group) for name in names},
        mismatched=Batch(
            mask=torch.tensor([_row(draw, slots, holes) for _ in range(rows)]),
            **_policies(draw, rows, slots),
        ),
    )


def _row(draw: st.DrawFn, slots: int, holes: bool) -> list[bool]:
    """At least one completion token; without holes they come first."""
    if not holes:
        length = draw(st.integers(1, slots))
        return [slot < length for slot in range(slots)]
    row = [True, *(draw(st.booleans()) for _ in range(slots - 1))]
    return row[::-1] if draw(st.booleans()) else row


def _tensor(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _policies(draw: st.DrawFn, rows: int, slots: int) -> dict[str, Any]:
    """Log-probs under every policy, and entropies, which have the other sign."""
    signs = dict.fromkeys(PER_TOKEN, 1.0) | {"entropy": -1.0}
    count = range(rows * slots)
    return {name: sign * _tensor(draw(LOGPS) for _ in count).reshape(rows, slots) for name, sign in signs.items()}
