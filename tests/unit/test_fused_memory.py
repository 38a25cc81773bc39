"""What the fused passes allocate: chunks of logits, never [N, V]."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grolang.compiler.fused import Head, attach, factored_pass, single_pass
from grolang.compiler.fused.products import onednn_is_exact

torch.set_num_threads(1)

N, D, V = 320, 4, 512
ROWS = 64
BUDGET = ROWS * V * 4
LOGITS, HEAD, STATES = N * V * 4, V * D * 4, N * D * 4


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that operators made inside: the largest one, and the most alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, int] = {}
        self.largest = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {id(one.untyped_storage()) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and id(one.untyped_storage()) not in before:
                self.note(one.untyped_storage())
        return result

    def note(self, storage: torch.UntypedStorage) -> None:
        key = storage.data_ptr()
        if key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        weakref.finalize(storage, self.alive.pop, key, None)
        self.largest = max(self.largest, storage.nbytes())
        self.peak = max(self.peak, sum(self.alive.values()))


Inputs = tuple[Tensor, Head, Tensor, Tensor]


def inputs(softcap: float | None = None) -> Inputs:
    torch.manual_seed(3)
    weight = torch.randn(V, D, requires_grad=True)
    head = Head(weight, torch.randn(V, requires_grad=True), softcap=softcap)
    return torch.randn(N, D, requires_grad=True), head, torch.randint(V, (N,)), torch.randn(N).relu()


def one_pass(hidden: Tensor, head: Head, targets: Tensor, c: Tensor) -> None:
    found = single_pass(hidden, head, targets, lambda rows, *_: c[rows], entropy=True, budget=BUDGET)
    torch.autograd.backward(attach(c.sum(), (hidden, head.weight, head.bias), found.gradients))


def units_of_8(hidden: Tensor, head: Head, targets: Tensor, c: Tensor) -> None:
    factored_pass(hidden, head, targets, c, torch.arange(N) // 8, doubled, budget=BUDGET)


def one_unit(hidden: Tensor, head: Head, targets: Tensor, c: Tensor) -> None:
    factored_pass(hidden, head, targets, c, torch.zeros(N), doubled, budget=BUDGET)


def two_parts(hidden: Tensor, head: Head, targets: Tensor, c: Tensor) -> None:
    side = torch.arange(N) // (N // 2)
    factored_pass(hidden, head, targets, c, torch.zeros(N), doubled, part=side, budget=BUDGET)


def free_recomputed(hidden: Tensor, head: Head, targets: Tensor, c: Tensor) -> None:
    factored_pass(hidden, head, targets, None, torch.zeros(N), lambda rows, *_: c[rows], budget=BUDGET, keep=0)


def free_half_kept(hidden: Tensor, head: Head, targets: Tensor, c: Tensor) -> None:
    keep = 2 * BUDGET
    factored_pass(hidden, head, targets, None, torch.zeros(N), lambda rows, *_: c[rows], budget=BUDGET, keep=keep)


def free_kept(hidden: Tensor, head: Head, targets: Tensor, c: Tensor) -> None:
    factored_pass(hidden, head, targets, None, torch.zeros(N), lambda rows, *_: c[rows], budget=BUDGET)


def doubled(rows: slice, logp: Tensor, _: Tensor | None) -> Tensor:
    return logp * 0 + 2


KEPT = {free_half_kept: 2 * BUDGET, free_kept: 4 * BUDGET}
"""Bytes of softmax that these keep; the last of the five chunks is in the tile."""
WORKS = [one_pass, units_of_8, one_unit, two_parts, free_recomputed, *KEPT]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("work", WORKS)
def test_logits_never_live_beyond_the_budget(work: Callable[..., None], softcap: float | None) -> None:
    """Largest tensor: the tile. In all: the tile, temporaries of 2/8 of it, what is kept, gradients, two scratches."""
    with Allocations() as seen:
        work(*inputs(softcap))
    made_by_inputs = HEAD + V * 4 + STATES
    small = 3 * STATES + 12 * N * 8 + 8 * V * 4
    assert seen.largest <= BUDGET < LOGITS / 4
    assert seen.peak <= made_by_inputs + BUDGET * 1.25 + KEPT.get(work, 0) + 3 * HEAD + STATES + small


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations of the matrix products inside, in units of N·D·V."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        onednn_is_exact()  # tried once in a process, by products that are no pass's
        self.cost = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "mm" in str(func):
            a, b = args[-2:]
            self.cost += 2 * a.shape[0] * a.shape[1] * b.shape[1] / (N * D * V)
        return func(*args, **(kwargs or {}))


COSTS: dict[Callable[..., None], tuple[float, float, float]]
COSTS = {
    one_pass: (6, 4, 2),
    units_of_8: (6, 4, 2),
    one_unit: (6, 4, 2),
    two_parts: (6, 4, 2),
    free_recomputed: (6 + 2 * 4 / 5, 4, 2),
    free_half_kept: (6 + 2 * 2 / 5, 4, 2),
    free_kept: (6, 4, 2),
}


@pytest.mark.parametrize("work", COSTS)
def test_each_pass_costs_what_it_says(work: Callable[..., None]) -> None:
    """Trained head; frozen head; every coefficient 0; and half of them 0, half way between."""
    head = inputs()[1]
    ones = torch.ones(N)
    fixed = Head(head.weight.detach())
    half = ones.clone()
    half[::2] = 0
    full, without_head, without_rows = COSTS[work]
    expected = [full, without_head, without_rows, (full + without_rows) / 2]
    found = [cost(work, one, c) for one, c in [(head, ones), (fixed, ones), (head, ones * 0), (head, half)]]
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("chunk", range(N // ROWS))
@pytest.mark.parametrize("work", [work for work in COSTS if work is not free_recomputed and work is not free_half_kept])
def test_a_chunk_of_zeros_makes_no_backward_product(work: Callable[..., None], chunk: int) -> None:
    c = torch.ones(N)
    c[chunk * ROWS : (chunk + 1) * ROWS] = 0
    full, _, without_rows = COSTS[work]
    share = ROWS / N
    assert cost(work, inputs()[1], c) == pytest.approx(full * (1 - share) + without_rows * share, rel=1e-9)


def cost(work: Callable[..., None], head: Head, c: Tensor) -> float:
    hidden, _, targets, _ = inputs()
    with Products() as seen:
        work(hidden, head, targets, c)
    return seen.cost


def test_the_allocations_seen_are_those_made() -> None:
    hidden, head, targets, _ = inputs()
    with Allocations() as seen:
        (hidden @ head.weight.T).log_softmax(1).gather(1, targets[:, None]).sum().backward()  # type: ignore[no-untyped-call]
    assert seen.largest == LOGITS and seen.peak >= 2 * LOGITS
