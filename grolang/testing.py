"""For your own tests: a loss in PyTorch held against a method, Hypothesis strategies of batches, laws as a call.

from grolang.testing import assert_gradient

def test_my_loss():
    assert_gradient(lambda batch: my_loss(batch.logp, batch.logp_ref, batch.mask, batch.label), "dpo")
"""

from __future__ import annotations

import os
from collections.abc import Callable

from hypothesis import strategies as st
from torch import Tensor

from grolang.compiler.batch import Batch
from grolang.compiler.method import Method, load
from grolang.language import library
from grolang.laws import claims, show, strategies
from grolang.laws.check import check_law, check_laws
from grolang.laws.claims import Counterexample, Verdict
from grolang.laws.own import check_loss

__all__ = ["Counterexample", "Verdict", "assert_gradient", "batches", "check_law", "check_laws", "methods"]


def assert_gradient(
    loss: Callable[[Batch], Tensor],
    method: Method | str | os.PathLike[str],
    *,
    examples: int = 100,
    seed: int = 0,
    tolerance: float = 1e-6,
    smallest_group: int = 1,
    largest_group: int = 3,
    holes: bool = False,
    padding: bool = False,
) -> None:
    """A loss of your own, from the batch of a whole step to a scalar, has the gradient of a method.

    `loss` is called on random batches in float64 whose `logp` is live; −∂loss/∂logp must be the method's coefficients
    on completion tokens, to `tolerance` of the largest, and 0 where the mask is off. Its value is not looked at, nor
    are batches on which the method itself is not finite. Completions stand at the left of their rows unless `holes`;
    with `padding` some rows are off as a whole. Raises AssertionError with a small batch that shows a difference, its
    groups of `smallest_group` at least.
    """
    known = method if isinstance(method, Method) else load(method)
    within = batches(known, smallest_group=smallest_group, largest_group=largest_group, holes=holes, padding=padding)
    verdict = check_loss(
        loss, known, within, smallest=smallest_group, examples=examples, seed=seed, tolerance=tolerance
    )
    if verdict.counterexample is not None:
        name = getattr(loss, "__name__", type(loss).__name__)
        about = f"the gradient of {name} is not that of {known.name}\nleft is {known.name}, right is {name}\n"
        raise AssertionError(about + show.text(show.counterexample(verdict.counterexample)))
    assert verdict.good, verdict.error


def batches(
    *of: Method, smallest_group: int = 1, largest_group: int = 3, holes: bool = True, padding: bool = True
) -> st.SearchStrategy[Batch]:
    """Batches in float64 that hold whatever these methods may use.

    Pairs for a method of preferences, else groups of `smallest_group` to `largest_group`; ragged masks, with `holes` in
    them; with `padding` sometimes a row that is all off; rows in any order.
    """
    irs = [method.ir for method in of]
    smallest = max([smallest_group, *(claims.smallest_group(method.program) for method in of)])
    return strategies.batches(
        *irs, smallest_group=smallest, largest_group=max(smallest, largest_group), holes=holes, padding=padding
    )


def methods(*names: str) -> st.SearchStrategy[Method]:
    """One of these built-in methods; of all, where none is named."""
    return st.sampled_from(sorted(names or library.built_in())).map(load)
