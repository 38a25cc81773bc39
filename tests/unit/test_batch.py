"""`grolang.Batch`: shapes are checked where it is made, and only what is on counts."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import grolang

S, T = 3, 4
PER_TOKEN = ("logp", "logp_old", "logp_ref", "logp_sampler", "entropy")
PER_SEQUENCE = ("group", "label", "demonstration")


def on() -> torch.Tensor:
    return torch.ones(S, T, dtype=torch.bool)


@pytest.mark.parametrize("name", PER_TOKEN)
@pytest.mark.parametrize("shape", [(S,), (S, T + 1), (S + 1, T), (T, S), (S, T, 1), ()])
def test_a_token_tensor_of_another_shape_is_an_error_that_names_it(name: str, shape: tuple[int, ...]) -> None:
    given: dict[str, Any] = {name: torch.zeros(shape)}
    with pytest.raises(grolang.GroError, match=rf"`{name}` must have shape \[S, T\] = \[3, 4\]"):
        grolang.Batch(mask=on(), **given)


@pytest.mark.parametrize("name", PER_SEQUENCE)
@pytest.mark.parametrize("shape", [(S, 1), (S + 1,), (1, S), (T,), ()])
def test_a_sequence_tensor_of_another_shape_is_an_error_that_names_it(name: str, shape: tuple[int, ...]) -> None:
    given: dict[str, Any] = {name: torch.zeros(shape)}
    with pytest.raises(grolang.GroError, match=rf"`{name}` must have shape \[S\] = \[3\]"):
        grolang.Batch(mask=on(), **given)


@pytest.mark.parametrize("field", ["scores", "greedy_scores"])
def test_a_score_of_another_shape_is_an_error_that_names_it(field: str) -> None:
    given: dict[str, Any] = {field: {"correct": torch.zeros(S, T)}}
    with pytest.raises(grolang.GroError, match=re.escape(f"`{field}['correct']`")):
        grolang.Batch(mask=on(), **given)


@pytest.mark.parametrize(
    "mask", [torch.ones(S, T), torch.ones(S, T).int(), torch.ones(S).bool(), torch.ones(1, S, T).bool()]
)
def test_a_mask_that_is_no_bool_matrix_is_an_error(mask: torch.Tensor) -> None:
    with pytest.raises(grolang.GroError, match="`mask` must be a bool tensor"):
        grolang.Batch(mask=mask)


def test_mismatched_completions_have_as_many_rows_but_slots_of_their_own() -> None:
    with pytest.raises(grolang.GroError, match="`mismatched` must have 3 rows"):
        grolang.Batch(mask=on(), mismatched=grolang.Batch(mask=on()[:2]))
    grolang.Batch(mask=on(), mismatched=grolang.Batch(mask=torch.ones(S, T + 3, dtype=torch.bool)))


@pytest.mark.parametrize("name", [*PER_TOKEN, "label", "scores", "mismatched"])
def test_arithmetic_is_in_float64_where_one_input_is_and_in_float32_otherwise(name: str) -> None:
    def batch(dtype: torch.dtype) -> grolang.Batch:
        if name == "scores":
            return grolang.Batch(mask=on(), scores={"r": torch.zeros(S, dtype=dtype)})
        if name == "mismatched":
            return grolang.Batch(mask=on(), mismatched=grolang.Batch(mask=on(), logp=torch.zeros(S, T, dtype=dtype)))
        shape = (S,) if name == "label" else (S, T)
        given: dict[str, Any] = {name: torch.zeros(shape, dtype=dtype)}
        return grolang.Batch(mask=on(), **given)

    assert batch(torch.float64).dtype == torch.float64
    for narrow in (torch.float32, torch.bfloat16, torch.float16):
        assert batch(narrow).dtype == torch.float32


def test_half_precision_log_probs_are_computed_with_in_float32() -> None:
    logp = torch.full((S, T), -1.5, dtype=torch.bfloat16)
    batch = grolang.Batch(mask=on(), logp=logp, logp_old=logp, logp_ref=logp, group=torch.zeros(S, dtype=torch.long),
                          scores={"correct": torch.tensor([1.0, 0, 0])})  # fmt: skip
    found = grolang.load("grpo").coefficients(batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0], torch.full((T,), 2**0.5 / S / T), rtol=1e-6, atol=0)


def test_a_replaced_field_leaves_the_batch_as_it_was() -> None:
    batch = grolang.Batch(mask=on(), label=torch.ones(S))
    other = batch.replace(label=-torch.ones(S))
    assert batch.label is not None and other.label is not None
    assert (batch.label == 1).all() and (other.label == -1).all()


def test_coefficients_carry_no_gradient_and_change_no_input() -> None:
    logp = torch.full((S, T), -1.0, dtype=torch.float64, requires_grad=True)
    score = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    batch = grolang.Batch(
        mask=on(), logp=logp, logp_old=logp, logp_ref=logp, group=torch.zeros(S).long(), scores={"correct": score}
    )
    found = grolang.load("grpo").coefficients(batch)
    assert not found.requires_grad
    assert (logp == -1).all() and score.tolist() == [1.0, 0.0, 2.0]
    loss = grolang.load("grpo").loss(batch)
    (slope,) = torch.autograd.grad(loss, logp)
    torch.testing.assert_close(slope, -found, rtol=0, atol=0)
    assert score.grad is None


def test_a_second_backward_pass_through_one_loss_is_refused_in_words() -> None:
    logp = torch.full((S, T), -1.0, requires_grad=True)
    loss = grolang.load("sft").loss(grolang.Batch(mask=on(), logp=logp))
    torch.autograd.backward(loss, retain_graph=True)
    with pytest.raises(grolang.GroError, match="second backward"):
        torch.autograd.backward(loss)


def test_a_loss_is_scaled_by_what_follows_it() -> None:
    logp = torch.full((S, T), -1.0, dtype=torch.float64, requires_grad=True)
    batch = grolang.Batch(mask=on(), logp=logp)
    torch.autograd.backward(3 * grolang.load("sft").loss(batch))
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, -3 * grolang.load("sft").coefficients(batch), rtol=1e-12, atol=0)


def test_a_batch_moves_with_all_that_it_holds() -> None:
    inner = grolang.Batch(mask=torch.ones(1, 2, dtype=torch.bool), logp=torch.zeros(1, 2))
    batch = inner.replace(group=torch.tensor([0]), scores={"r": torch.ones(1)}, mismatched=inner)
    moved = batch.to("meta")
    held = [moved.mask, *(tensor for _, tensor in moved.tensors())]
    assert len(held) == 4 and moved.mismatched is not None and moved.mismatched.logp is not None
    assert all(tensor.device.type == "meta" for tensor in [*held, moved.mismatched.logp])


def test_a_method_shows_itself_in_a_line() -> None:
    assert repr(grolang.load("dpo", beta=0.2)) == "Method(dpo, preference, beta=0.2)"


@pytest.mark.parametrize("group", [[0.0, 0.5, 1.0], [0.0, 0.0, float("nan")]])
def test_a_group_is_a_whole_number(group: list[float]) -> None:
    with pytest.raises(grolang.GroError, match="`group` must hold whole numbers"):
        grolang.Batch(mask=on(), group=torch.tensor(group))
    mask = on() & (torch.tensor(group) % 1 == 0)[:, None]  # padding may hold anything
    assert grolang.Batch(mask=mask, group=torch.tensor(group)).group is not None


@pytest.mark.parametrize("wrong", [-100, 7])
def test_a_target_that_is_no_token_is_an_error_where_the_mask_is_on(wrong: int) -> None:
    batch, targets = grolang.Batch(mask=on(), group=torch.arange(S)), torch.zeros(S, T, dtype=torch.long)
    targets[1, 2] = wrong
    module = grolang.compile(grolang.load("sft"))
    with pytest.raises(grolang.GroError, match=rf"0 to 6, where the mask is on; found {wrong}"):
        module(torch.randn(S, T, 2), torch.randn(7, 2), targets, batch)
    batch.mask[1, 2] = False
    assert module(torch.randn(S, T, 2), torch.randn(7, 2), targets, batch).isfinite()


def test_a_parameter_may_be_a_number_of_numpy() -> None:
    assert grolang.load("dpo", beta=np.float32(0.25)).params == grolang.load("dpo", beta=0.25).params
