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

from grolang.compiler.fused import Head, attach, factored_pass, forward, frozen_logps, single_pass, surrogate

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


def recomputed(hidden: Tensor, head: Head, targets: Tensor, c: Tensor) -> None:
    rows = forward(hidden, head, targets, budget=BUDGET)
    torch.autograd.backward(surrogate(hidden, head, targets, c, known=rows, budget=BUDGET))


def surrogate_alone(hidden: Tensor, head: Head, targets: Tensor, c: Tensor) -> None:
    torch.autograd.backward(surrogate(hidden, head, targets, c, budget=BUDGET))


def units_of_8(hidden: Tensor, head: Head, targets: Tensor, c: Tensor) -> None:
    factored_pass(hidden, head, targets, c, torch.arange(N) // 8, lambda rows, logp: logp * 0 + 2, budget=BUDGET)


def one_unit(hidden: Tensor, head: Head, targets: Tensor, c: Tensor) -> None:
    factored_pass(hidden, head, targets, c, torch.zeros(N), lambda rows, logp: logp * 0 + 2, budget=BUDGET)


def one_unit_not_factored(hidden: Tensor, head: Head, targets: Tensor, c: Tensor) -> None:
    factored_pass(hidden, head, targets, None, torch.zeros(N), lambda rows, logp: c, budget=BUDGET)


def frozen(hidden: Tensor, head: Head, targets: Tensor, c: Tensor) -> None:
    logp, _ = frozen_logps(hidden, Head(head.weight.detach(), softcap=head.softcap), targets, budget=BUDGET)
    torch.autograd.backward((c * logp).sum())


WORKS = [one_pass, recomputed, surrogate_alone, units_of_8, one_unit, one_unit_not_factored, frozen]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("work", WORKS)
def test_logits_never_live_beyond_the_budget(work: Callable[..., None], softcap: float | None) -> None:
    """Largest tensor: the tile. In all: the tile, temporaries of 2/8 of it, the gradients and one scratch."""
    with Allocations() as seen:
        work(*inputs(softcap))
    made_by_inputs = HEAD + V * 4 + STATES
    small = 3 * STATES + 12 * N * 8 + 8 * V * 4
    assert seen.largest <= BUDGET < LOGITS / 4
    assert seen.peak <= made_by_inputs + BUDGET * 1.25 + 2 * HEAD + STATES + small


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations of the matrix products inside, in units of N·D·V."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cost = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "mm" in str(func):
            a, b = args[-2:]
            self.cost += 2 * a.shape[0] * a.shape[1] * b.shape[1] / (N * D * V)
        return func(*args, **(kwargs or {}))


COSTS: dict[Callable[..., None], tuple[int, int, int]]
COSTS = {
    one_pass: (6, 4, 2),
    recomputed: (8, 6, 2),
    units_of_8: (6, 4, 2),
    one_unit: (6, 4, 2),
    surrogate_alone: (8, 6, 0),
}
COSTS |= {one_unit_not_factored: (8, 6, 2), frozen: (4, 4, 4)}


@pytest.mark.parametrize("work", COSTS)
def test_each_pass_costs_what_it_says(work: Callable[..., None]) -> None:
    """Trained head; frozen head; every coefficient 0; and half of them 0, half way between."""
    hidden, head, targets, _ = inputs()
    ones = torch.ones(N)
    fixed = Head(head.weight.detach())
    half = ones.clone()
    half[::2] = 0
    full, without_head, without_rows = COSTS[work]
    expected = [full, without_head, without_rows, (full + without_rows) / 2]
    found = []
    for one, c in [(head, ones), (fixed, ones), (head, ones * 0), (head, half)]:
        with Products() as seen:
            work(hidden, one, targets, c)
        found.append(seen.cost)
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_allocations_seen_are_those_made() -> None:
    hidden, head, targets, _ = inputs()
    with Allocations() as seen:
        (hidden @ head.weight.T).log_softmax(1).gather(1, targets[:, None]).sum().backward()  # type: ignore[no-untyped-call]
    assert seen.largest == LOGITS and seen.peak >= 2 * LOGITS
