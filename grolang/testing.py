"""For your own tests: Hypothesis strategies of batches and of built-in methods, and laws as a call.

from hypothesis import given
import grolang, grolang.testing

@given(grolang.testing.batches(grolang.load("my.gro")))
def test_my_loss(batch):
    ...
"""

from __future__ import annotations

from hypothesis import strategies as st

from grolang.compiler.batch import Batch
from grolang.compiler.method import Method, load
from grolang.language import library
from grolang.laws import strategies
from grolang.laws.check import check_law, check_laws
from grolang.laws.claims import Counterexample, Verdict

__all__ = ["Counterexample", "Verdict", "batches", "check_law", "check_laws", "methods"]


def batches(*of: Method, smallest_group: int = 1, largest_group: int = 3) -> st.SearchStrategy[Batch]:
    """Batches in float64 that hold whatever these methods may use; see `grolang.laws.strategies.batches`."""
    irs = [method.ir for method in of]
    return strategies.batches(*irs, smallest_group=smallest_group, largest_group=largest_group)


def methods(*names: str) -> st.SearchStrategy[Method]:
    """One of these built-in methods; of all, where none is named."""
    return st.sampled_from(sorted(names or library.built_in())).map(load)
