"""Sequences that need not be run: nothing that is asked for changes with them, and nothing is lost by dropping them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import grolang
from grolang.compiler.batch import PER_TOKEN
from grolang.compiler.method import from_source
from grolang.language import library
from grolang.language.source import Source
from grolang.laws.strategies import batches
from tests.unit.test_fused_memory import Products

from . import programs

METHODS = sorted(library.built_in())


def method_of(words: str) -> grolang.Method:
    return from_source(Source("drawn.gro", "method drawn\ndata prompts\nscore correct\nreward = correct\n" + words))


def drawn(scores: list[float], group: list[int]) -> grolang.Batch:
    """Rows of two tokens, no log-probs."""
    mask = torch.ones(len(scores), 2, dtype=torch.bool)
    return grolang.Batch(mask=mask, group=torch.tensor(group), scores={"correct": torch.tensor(scores)})


CENTRED = "baseline = mean(reward over group)\n"
GROUPS = [0, 0, 0, 1, 1, 1, 2, 2, 2]
SCORES = [1.0, 1, 1, 0, 0.5, 1, 0, 0, 1]
#: which rows are dead: groups of scores 1 1 1, 0 ½ 1 (a middle one at the mean), 0 0 1
CASES = {
    CENTRED: "xxx.x....",
    CENTRED + "omega(z) = exp(z)": "xxx.x....",
    CENTRED + "omega(z) = exp(z)\nanchor = logp_old": "xxx.x....",
    CENTRED
    + "anchor = mean(logp over group)\nomega(z) = exp(-z)": "xxx......",  # the middle one has a part in the mean
    CENTRED + "anchor = mean(logp over batch)\nomega(z) = exp(-z)": ".........",
    CENTRED + "anchor = mean(logp_old over batch)\nomega(z) = exp(-z)": ".........",
    CENTRED + "upsilon(a) = tanh(a)": "xxx.x....",
    CENTRED + "upsilon(a) = exp(a)": ".........",
    CENTRED + "upsilon(a) = max(a, 0)": "xxxxx.xx.",
    CENTRED + "penalty = logp_ref - logp": ".........",
    CENTRED + "penalty = (logp_ref - logp) if correct == 0.5 else 0": "xxx......",
    CENTRED + "penalty = sg(logp)": ".........",  # no gradient, but a value of the loss
    CENTRED + "report kl = logp_ref - logp": ".........",
    CENTRED + "report reward = correct": "xxx.x....",
    CENTRED + "credit = 1 if logp > -1 else 2": "xxx.x....",
    CENTRED + "credit = 0 if correct == 1 else exp(logp)": "xxx.xx..x",
    CENTRED + "credit = 0 if correct < 1 or logp > -1 else 1": "xxxxx.xx.",
    "advantage = correct - mean(logp over group)": ".........",
    "advantage = logp_ref": ".........",
    "omega(z) = entropy": "...x..xx.",
}


@pytest.mark.parametrize("words", CASES)
def test_which_sequences_are_dead(words: str) -> None:
    found = method_of(words).dead(drawn(SCORES, GROUPS))
    assert "".join("x" if one else "." for one in found.tolist()) == CASES[words]


def test_a_group_of_equal_rewards_is_dead_and_padding_is_not() -> None:
    batch = drawn(SCORES, GROUPS)
    batch.mask[0] = False
    for name in ("rloo", "dapo", "gspo", "gro", "raft", "opo"):
        found = grolang.load(name).dead(batch)
        assert found[1:3].all() == (name != "raft") and not found[0], name
    assert not grolang.load("grpo").dead(batch).any(), "its penalty touches every row"
    assert grolang.load("grpo", beta=0).dead(batch)[1:3].all()


def assert_dead_rows_cannot_matter(method: grolang.Method, batch: grolang.Batch, seed: int = 0) -> int:
    """Coefficients of 0, and everything else as it was, whatever stands in the dead rows; how many there are."""
    try:
        before = method.evaluate(batch)
    except grolang.GroError:  # not finite
        return 0
    dead = method.dead(batch.replace(logp=None, logp_old=None, logp_ref=None, entropy=None))
    assert bool((dead <= method.dead(batch)).all()), "knowing more makes no row live"
    dead = method.dead(batch)
    make = torch.Generator().manual_seed(seed)

    def other(values: Tensor) -> Tensor:
        drawn = -3 * torch.rand(values.shape, dtype=values.dtype, generator=make)
        return torch.where(dead[:, None], drawn, values)

    changes: dict[str, Any] = {"logp": other(batch.logp), "entropy": -other(-batch.entropy)}
    after = method.evaluate(batch.replace(**changes))
    assert bool((before.coefficients[dead] == 0).all())
    torch.testing.assert_close(after.coefficients, before.coefficients, rtol=0, atol=0)
    torch.testing.assert_close(after.loss, before.loss, rtol=1e-12, atol=1e-12)
    assert str(after.reports) == str(before.reports)
    return int(dead.sum())


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=3, derandomize=True)
@given(data=st.data())
def test_dead_sequences_of_a_built_in_method_cannot_matter(name: str, data: st.DataObject) -> None:
    method = grolang.load(name)
    assert_dead_rows_cannot_matter(method, data.draw(batches(method.ir, smallest_group=2)))


@pytest.mark.parametrize("words", CASES)
@settings(max_examples=5, derandomize=True)
@given(data=st.data())
def test_dead_sequences_of_a_program_cannot_matter(words: str, data: st.DataObject) -> None:
    method = method_of(words)
    assert_dead_rows_cannot_matter(method, data.draw(batches(method.ir, smallest_group=2)))


def test_dead_sequences_of_random_methods_cannot_matter(tmp_path: Path) -> None:
    found = 0
    for seed in range(90_000, 90_100):
        program = programs.draw(seed)
        method = program.load(tmp_path)
        try:
            found += assert_dead_rows_cannot_matter(method, programs.tensors(program, programs.batch(program)), seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}\n{program.text}\n{program.settings}") from error
    assert found > 20


def test_what_is_not_known_yet_is_what_the_batch_lacks() -> None:
    method = method_of(CENTRED + "anchor = mean(logp_old over batch)\nomega(z) = z")
    batch = drawn(SCORES, GROUPS)
    assert not method.dead(batch).any()
    assert method.dead(batch.replace(logp_old=torch.zeros(9, 2)))[:3].all()
    with pytest.raises(grolang.GroError, match="scores"):
        method.dead(batch.replace(scores={}))
    assert {"logp", "logp_old", "logp_ref", "logp_sampler", "entropy"} == set(PER_TOKEN)


# --- the fused module ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rloo", "dapo", "gspo", "gro", "grpo"])
def test_dead_tokens_never_reach_the_head(name: str) -> None:
    """Two groups of four: with equal rewards in one of them the products cost half."""
    method = grolang.load(name, beta=0) if name == "grpo" else grolang.load(name)
    rows, slots, size, vocabulary = 8, 3, 4, 16
    found = []
    for scores in ([1.0, 0, 0, 1, 1, 0, 0, 1], [1.0, 0, 0, 1, 1, 1, 1, 1]):
        make = torch.Generator().manual_seed(0)
        old = torch.full((rows, slots), -2.8)
        batch = grolang.Batch(
            mask=torch.ones(rows, slots, dtype=torch.bool),
            group=torch.arange(rows) // 4,
            scores={"correct": torch.tensor(scores)},
            logp_old=old,
            logp_ref=old,
        )
        hidden = (torch.randn(rows, slots, size, generator=make) / 99).requires_grad_()
        head = (torch.randn(vocabulary, size, generator=make) / 99).requires_grad_()
        targets = torch.randint(vocabulary, (rows, slots), generator=make)
        with Products() as seen:
            torch.autograd.backward(grolang.compile(method)(hidden, head, targets, batch))
        assert hidden.grad is not None
        assert bool((hidden.grad[4:] == 0).all()) == (scores[4:] == [1, 1, 1, 1])
        found.append(seen.cost)
    assert found[0] > 0 and found[1] == pytest.approx(found[0] / 2)
