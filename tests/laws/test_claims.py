"""A law that is false by a little fails, one that is true holds: what a verdict is worth."""

from __future__ import annotations

import pytest
import torch

from grolang.compiler.method import from_source, load
from grolang.language.source import Source
from grolang.laws.check import check_law
from grolang.laws.claims import Verdict
from grolang.laws.equivalence import asked, equivalence


@pytest.fixture(autouse=True)
def unshrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis shrinks none: that takes most of the time, and ends by the clock."""
    monkeypatch.setattr("grolang.laws.claims.SHRINKING", -1.0)


HEAD = "method m\ndata prompts\nscore r\nreward = r\n"


def verdict(lines: str) -> Verdict:
    """The verdict on the one law of a method whose reward is a score."""
    method = from_source(Source("m.gro", HEAD + lines + "\n"))
    (law,) = method.ir.laws.values()
    return check_law(law, method, examples=20)


@pytest.mark.parametrize(
    ("law", "good"),
    [
        ("law l: loss -sum(logp over tokens) * r", True),
        ("law l: loss -sum(logp over tokens) * r aggregate sum over tokens, mean over sequences", True),
        ("law l: loss -sum(logp over tokens) * r aggregate sum over tokens, sum over sequences", False),
        ("law l: loss -sum(logp over tokens) * r * 1.000001", False),
        ("law l: loss sum(logp over tokens) * r", False),
        ("law l: loss -sum(logp over tokens) * max(r, -0.75)", False),  # differs where r is -1 alone
        ("law l: proportional to reinforce when r = 3 * r", False),  # the other side has another score
        ("law l: invariant when logp_ref = logp_ref + any(token)", True),
        ("law l: invariant when r = r + any(group)", False),
    ],
)
def test_a_law_holds_or_fails_as_it_should(law: str, good: bool) -> None:
    assert verdict(law).good == good


def test_proportional_means_a_positive_factor() -> None:
    one = from_source(Source("m.gro", HEAD))
    for factor, good in (("2", True), ("0.001", True), ("-1", False), ("(1 + r * r)", False)):
        other = from_source(Source("n.gro", HEAD.replace("method m", "method n").replace("= r", f"= {factor} * r")))
        assert equivalence(asked(one, other, proportional=True), examples=20).good == good, factor
        assert not equivalence(asked(one, other), examples=20).good


def test_the_counterexample_differs_and_names_the_first_part_that_does() -> None:
    found = verdict("law l: equals m when r = r").counterexample
    assert found is None
    left = from_source(Source("m.gro", HEAD))
    right = from_source(Source("n.gro", HEAD.replace("method m", "method n") + "omega(z) = 1.5\n"))
    example = equivalence(asked(left, right), examples=20).counterexample
    assert example is not None and example.part == "omega"
    assert (example.left != example.right).any()


@pytest.mark.parametrize(
    ("left", "right", "rows", "numbers"),
    [
        ("grpo", "rloo", 2, {0.0, 0.5}),
        ("tis", "grpo", 2, {0.0, 1.0}),
        ("dpo", "ipo", 2, set()),
        ("gpg", "dapo", 2, {0, 1}),
    ],
)
def test_a_counterexample_is_small_without_time_for_it(left: str, right: str, rows: int, numbers: set[float]) -> None:
    example = equivalence(asked(load(left), load(right)), examples=20).counterexample
    assert example is not None
    assert example.batch.mask.shape[0] == int(example.batch.mask.sum()) == rows
    assert example.batch.group is not None and not example.batch.group.any()  # one group, with the number 0
    assert set(example.batch.scores.get("correct", example.batch.mask.new_zeros(0)).tolist()) == numbers
    assert not torch.allclose(example.left, example.right, atol=1e-9)


def test_a_law_that_only_groups_of_the_files_own_size_keep_says_so() -> None:
    """`mean(r over others)` is the other one's reward in a pair alone."""
    pair = "group 2\nbaseline = mean(r over others)\nlaw l: loss -(2 * r - sum(r over group)) * sum(logp over tokens)"
    assert not verdict(pair).good
    assert verdict(pair).note.startswith("with groups of 2, as in `group 2`, it held on 20 batches")
    assert verdict(pair.replace("group 2", "group 3", 1)).note == ""
    assert verdict(pair.replace("(2 * r", "(3 * r")).note == ""


def test_a_reward_that_others_decide_is_none_to_be_unbiased_for() -> None:
    lines = HEAD.replace("reward = r", "reward = r - mean(r over others)") + "law l: unbiased\n"
    method = from_source(Source("m.gro", lines))
    assert "depends on the other completions" in check_law(method.ir.laws["l"], method).error
    assert verdict("law l: unbiased").good
