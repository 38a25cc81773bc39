"""The eleven built-in methods have the coefficients that were derived by hand in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import grolang
from tests.oracle import batches, gradients
from tests.oracle.gradients import Batch, Floats

from .convert import as_batch

METHODS = list(gradients.GRADIENTS)
OFF: st.SearchStrategy[batches.Off] = st.sampled_from(["zero", "garbage", "nan"])


def agree(found: NDArray[np.floating], want: Floats) -> None:
    """To 1e-9 of their size; a coefficient that cancels to nothing, to 1e-13 of the largest."""
    largest = max(1.0, float(np.abs(want).max(initial=0.0)))
    np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-13 * largest)


@st.composite
def cases(draw: st.DrawFn, method: str) -> tuple[Batch, dict[str, float]]:
    plain = draw(OFF.flatmap(lambda off: batches.method_batches(method, off=off)))
    return plain, draw(batches.method_parameters(method))


@pytest.mark.parametrize("method", METHODS)
@given(data=st.data())
def test_a_built_in_method_has_the_coefficients_derived_by_hand(method: str, data: st.DataObject) -> None:
    plain, params = data.draw(cases(method))
    want = gradients.GRADIENTS[method](plain, **params)
    found = grolang.load(method, **params).coefficients(as_batch(plain))
    assert found.dtype == torch.float64
    agree(found.numpy(), want)
    assert (found.numpy()[~plain["mask"]] == 0).all(), "a slot that the mask drops has a coefficient"


@pytest.mark.parametrize("method", METHODS)
@given(data=st.data())
def test_the_gradient_of_the_loss_is_minus_the_oracles_coefficients(method: str, data: st.DataObject) -> None:
    plain, params = data.draw(cases(method))
    given_batch = as_batch(plain)
    assert given_batch.logp is not None
    logp = given_batch.logp.clone().requires_grad_()
    torch.autograd.backward(grolang.load(method, **params).loss(given_batch.replace(logp=logp)))
    assert logp.grad is not None
    agree(-logp.grad.numpy(), gradients.GRADIENTS[method](plain, **params))


@pytest.mark.parametrize("method", METHODS)
@given(data=st.data())
def test_float32_inputs_give_float32_coefficients_near_the_float64_ones(method: str, data: st.DataObject) -> None:
    plain, params = data.draw(cases(method))
    single = as_batch(plain, torch.float32)
    found = grolang.load(method, **params).coefficients(single)
    assert found.dtype == torch.float32
    # The oracle reads the same rounded inputs, so that a clip or a std of 0 falls on the same side.
    rounded = as_plain(single)
    want = gradients.GRADIENTS[method](rounded, **params)
    if method in ("grpo", "reinforce_pp") and at_the_clip(rounded, params.get("epsilon", 0.2)):
        return
    if method in ("grpo", "gro", "reinforce_pp") and spread_is_rounding(rounded):
        return
    ratio = 60.0 * 2**-20  # log-probs up to 60 are exponentiated: their last bit is this much of the ratio
    largest = float(np.abs(want).max(initial=0.0))
    np.testing.assert_allclose(found.numpy(), want, rtol=10 * ratio, atol=1e-4 * max(largest, 1e-3))


def as_plain(batch: grolang.Batch) -> Batch:
    plain: dict[str, object] = {"mask": batch.mask.numpy()}
    for name, tensor in batch.tensors():
        if "[" not in name:
            plain[name] = tensor.numpy() if name == "group" else tensor.double().numpy()
    plain["scores"] = {name: x.double().numpy() for name, x in batch.scores.items()}
    plain["greedy_scores"] = {name: x.double().numpy() for name, x in batch.greedy_scores.items()}
    if batch.mismatched is not None:
        plain["mismatched"] = as_plain(batch.mismatched)
    return plain  # type: ignore[return-value]


def at_the_clip(plain: Batch, epsilon: float) -> bool:
    """Whether a ratio lies at an edge of the clip, or is too large for a float32."""
    mask = plain["mask"]
    z = (plain["logp"] - plain["logp_old"])[mask]
    edges = np.log([1 - epsilon, 1 + epsilon])
    return bool((np.abs(z[:, None] - edges) < 1e-4).any() or (np.abs(z) > 50).any()) or bool(
        (np.abs((plain["logp_ref"] - plain["logp"])[mask]) > 50).any()
    )


def spread_is_rounding(plain: Batch) -> bool:
    """Whether the values that a method standardises are nearly equal, so that float32 rounding is their spread."""
    mask = plain["mask"]
    real = mask.any(axis=1)
    rewards = plain["scores"]["correct"]
    for g in np.unique(plain["group"][real]):
        spread = np.ptp(rewards[real & (plain["group"] == g)])
        if 0 < spread < 1e-2:
            return True
    kl = (plain["logp_old"] - plain["logp_ref"])[mask]
    return bool(np.abs(kl).max(initial=0.0) > 0 and np.ptp(rewards[real]) < 1e-1)


@given(plain=batches.prompts_batches(min_group=2))
def test_the_oracle_comparison_can_fail(plain: Batch) -> None:
    """A score that is off by one part in a million is seen."""
    want = gradients.reinforce(plain)
    shifted = {name: x * (1 + 1e-6) for name, x in plain["scores"].items()}
    moved: Batch = {**plain, "scores": shifted}
    if np.abs(want).max() == 0:
        return
    with pytest.raises(AssertionError):
        agree(grolang.load("reinforce").coefficients(as_batch(moved)).numpy(), want)
