"""One method, four ways to its gradient: coefficients, the loss, the fused module, a transformers model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import grolang
from grolang.compiler.fused import BUDGET, KEEP
from grolang.compiler.method import from_source
from grolang.language.source import Source
from tests.oracle import batches, gradients
from tests.oracle.gradients import Batch

from . import programs
from .convert import as_batch

METHODS = list(gradients.GRADIENTS)
V, D = 11, 6
#: bytes of a chunk of logits: all of them, some rows, one row; of softmax that is kept: all of it, 2 rows
BUDGETS = [BUDGET, 600, 1]
KEEPS = [KEEP, 200]

#: methods at every scope at which a coefficient may depend on the current log-probs
SCOPES = {
    "none": "data prompts\nscore correct\nreward = correct - 0.3",
    "token": "data prompts\nscore correct\nreward = correct - 0.3\nomega(z) = exp(z)\nanchor = logp_old",
    "token and entropy": "data prompts\nscore correct\nreward = correct - 0.3\nomega(z) = exp(z)\ncredit = entropy",
    "sequence": "data prompts\nscore correct\nreward = correct - 0.3\nmeasure = sum(logp over tokens)\n"
    "omega(z) = sigmoid(-0.1 * z)\npenalty = std(logp over tokens)",
    "sequence and entropy": "data prompts\nscore correct\nreward = correct\nmeasure = mean(logp over tokens)\n"
    "omega(z) = exp(z)\ncredit = max(entropy over tokens)",
    "group": "data prompts\nscore correct\nreward = correct - 0.3\nanchor = mean(logp over group)\nomega(z) = exp(-z)\n"
    "penalty = 0.1 * max(logp over group)",
    "group and entropy": "data prompts\nscore correct\nreward = correct - 0.3\nomega(z) = exp(z)\n"
    "credit = entropy - mean(entropy over group)",
    "batch": "data prompts\nscore correct\nreward = correct - 0.3\nanchor = mean(logp over batch)\nomega(z) = exp(z)\n"
    "penalty = sample_std(logp over batch)",
}


def method_of(words: str) -> grolang.Method:
    return from_source(Source("drawn.gro", "method drawn\n" + words))


def plain_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor, **head: Any) -> tuple[Tensor, Tensor]:
    """Log-probs and entropy [S, T] with the logits in full."""
    logits = hidden @ weight.T
    if head.get("bias") is not None:
        logits = logits + head["bias"]
    logits = logits * head.get("scale", 1.0)
    if head.get("softcap") is not None:
        logits = head["softcap"] * torch.tanh(logits / head["softcap"])
    logp = torch.log_softmax(logits / head.get("temperature", 1.0), -1)
    return logp.gather(-1, targets[..., None])[..., 0], -(logp.exp() * logp).sum(-1)


def same_gradients(
    method: grolang.Method,
    batch: grolang.Batch,
    *,
    seed: int = 0,
    budget: int = BUDGET,
    keep: int = KEEP,
    frozen: bool = False,
    own_entropy: bool = True,
    **options: Any,
) -> None:
    """The fused module's value and gradients against log_softmax and autograd."""
    make = torch.Generator().manual_seed(seed)
    rows, slots = batch.mask.shape

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=make)

    hidden = drawn(rows, slots, D).requires_grad_()
    weight = drawn(V, D).requires_grad_(not frozen)
    bias = drawn(V).requires_grad_(not frozen) if options.pop("bias", False) else None
    targets = torch.randint(0, V, (rows, slots), generator=make)
    inputs = [x for x in (hidden, weight, bias) if x is not None and x.requires_grad]
    logp, entropy = plain_log_probs(hidden, weight, targets, bias=bias, **options)
    full = batch.replace(logp=logp.detach(), entropy=entropy.detach() if own_entropy else batch.entropy)
    c = method.coefficients(full)
    want = torch.autograd.grad(-(c * logp)[batch.mask].sum(), inputs, allow_unused=True)

    module = grolang.compile(method, budget=budget, keep=keep)
    given_batch = batch.replace(logp=None, entropy=None if own_entropy else batch.entropy)
    loss = module(hidden, weight, targets, given_batch, bias=bias, **options)
    found = torch.autograd.grad(loss, inputs, allow_unused=True)

    value = method.loss(full)
    torch.testing.assert_close(loss.detach(), value.detach(), rtol=1e-9, atol=1e-10)
    for one, other, of in zip(found, want, inputs, strict=True):
        zero = torch.zeros_like(of)
        a, b = zero if one is None else one, zero if other is None else other
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10 * max(1.0, float(b.abs().max())))
    if inputs and found[0] is not None:
        assert (found[0][~batch.mask] == 0).all(), "the state of a masked slot has a gradient"
    with torch.no_grad():
        quiet = module(hidden, weight, targets, given_batch, bias=bias, **options)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, value.detach(), rtol=1e-9, atol=1e-10)


@st.composite
def prompts(draw: st.DrawFn) -> grolang.Batch:
    return as_batch(draw(batches.prompts_batches(min_group=2, off="nan")))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": True},
    {"bias": True, "softcap": 2.0, "scale": 0.7, "temperature": 1.3},
    {"scale": 0.5, "temperature": 0.8},
    {"softcap": 3.0},
]


@pytest.mark.parametrize("scope", SCOPES)
@given(batch=prompts(), seed=st.integers(0, 99), options=st.sampled_from(OPTIONS), frozen=st.booleans(), data=st.data())
def test_hidden_states_get_the_gradient_of_plain_autograd_at_every_scope(
    scope: str, batch: grolang.Batch, seed: int, options: dict[str, Any], frozen: bool, data: st.DataObject
) -> None:
    method = method_of(SCOPES[scope])
    assert method.needs.scope == scope.split()[0]
    budget = data.draw(st.sampled_from(BUDGETS), label="budget")
    keep = data.draw(st.sampled_from(KEEPS), label="keep")
    same_gradients(method, batch, seed=seed, budget=budget, keep=keep, frozen=frozen, **options)


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data())
def test_a_built_in_method_has_the_same_gradient_through_hidden_states(name: str, data: st.DataObject) -> None:
    plain = data.draw(batches.method_batches(name, off="nan"))
    plain["logp_old"] = np.where(plain["mask"], np.maximum(plain["logp_old"], -6.0), np.nan)
    plain["logp_ref"] = np.where(plain["mask"], np.maximum(plain["logp_ref"], -6.0), np.nan)
    options = data.draw(st.sampled_from(OPTIONS))
    budget = data.draw(st.sampled_from(BUDGETS), label="budget")
    keep = data.draw(st.sampled_from(KEEPS), label="keep")
    frozen = data.draw(st.booleans(), label="frozen")
    same_gradients(grolang.load(name), as_batch(plain), budget=budget, keep=keep, frozen=frozen, **options)


@pytest.mark.parametrize("part", range(3))
def test_random_methods_have_the_same_gradient_through_hidden_states(part: int, tmp_path: Path) -> None:
    for seed in range(50_000 + 20 * part, 50_000 + 20 * (part + 1)):
        program = programs.draw(seed)
        drawn = programs.batch(program)
        method = program.load(tmp_path)
        batch = programs.tensors(program, drawn)
        try:
            budget, keep = BUDGETS[seed % 3], KEEPS[seed % 2]
            same_gradients(method, batch, seed=seed, budget=budget, keep=keep, own_entropy=seed % 2 == 0)
        except (grolang.GroError, AssertionError) as error:
            raise AssertionError(f"seed {seed}\n{program.text}\n{program.settings}") from error


@pytest.mark.parametrize("name", [name for name in METHODS if grolang.load(name).needs.old])
@given(data=st.data())
def test_the_first_update_has_the_same_gradient_through_hidden_states(name: str, data: st.DataObject) -> None:
    """Of the method whose `logp_old` is `logp`, against coefficients of the method itself."""
    batch = as_batch(data.draw(batches.method_batches(name, off="nan")))
    if batch.logp_ref is not None:
        batch = batch.replace(logp_ref=batch.logp_ref.clamp(min=-6))
    make = torch.Generator().manual_seed(1)
    hidden = torch.randn(*batch.mask.shape, D, dtype=torch.float64, generator=make).requires_grad_()
    weight = torch.randn(V, D, dtype=torch.float64, generator=make).requires_grad_()
    targets = torch.randint(0, V, batch.mask.shape, generator=make)
    method = grolang.load(name)
    logp, _ = plain_log_probs(hidden, weight, targets)
    c = method.coefficients(batch.replace(logp=logp.detach(), logp_old=logp.detach()))
    want = torch.autograd.grad(-(c * logp)[batch.mask].sum(), [hidden, weight])
    module = grolang.compile(method.on_policy, budget=data.draw(st.sampled_from(BUDGETS)))
    found = torch.autograd.grad(
        module(hidden, weight, targets, batch.replace(logp=None, logp_old=None)), [hidden, weight]
    )
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10 * max(1.0, float(other.abs().max())))


# --- a real model -------------------------------------------------------------------------------------------


def llama(**changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        **changes,
    )
    return transformers.LlamaForCausalLM(config).double().eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=2, derandomize=True)
@given(data=st.data())
def test_a_transformers_model_gets_the_gradient_of_its_own_logits(name: str, tied: bool, data: st.DataObject) -> None:
    plain = data.draw(batches.method_batches(name, off="nan"))
    for key in ("logp_old", "logp_ref"):
        plain[key] = np.where(plain["mask"], np.clip(plain[key], -4.0, -1.0), np.nan)
    batch = as_batch(plain)
    rows, slots = batch.mask.shape
    model = llama(tie_word_embeddings=tied)
    reference = copy.deepcopy(model)
    ids = torch.randint(0, V, (rows, slots + 1), generator=torch.Generator().manual_seed(3))
    method = grolang.load(name)

    logits = reference(input_ids=ids).logits[:, :-1]
    logp = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
    full = batch.replace(logp=logp.detach())
    c = method.coefficients(full)
    torch.autograd.backward(-(c * logp)[batch.mask].sum())

    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    loss = grolang.compile(method, budget=2048)(hidden, model.lm_head.weight, ids[:, 1:], batch)
    torch.autograd.backward(loss)
    torch.testing.assert_close(loss.detach(), method.loss(full).detach(), rtol=1e-9, atol=1e-10)
    for (word, found), want in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (found.grad is None) == (want.grad is None), word
        if found.grad is not None and want.grad is not None:
            torch.testing.assert_close(found.grad, want.grad, rtol=1e-7, atol=1e-10, msg=f"the gradient of {word}")


# --- dtypes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
def test_bfloat16_hidden_states_are_weighed_in_float32(scope: str) -> None:
    """Coefficients and loss as from the same rounded states in float32; gradients come back in bfloat16."""
    make = torch.Generator().manual_seed(1)
    method = method_of(SCOPES[scope])
    mask = torch.rand(6, 5, generator=make) < 0.8
    mask[:, 0] = True
    batch = grolang.Batch(
        mask=mask,
        group=torch.tensor([0, 0, 1, 1, 2, 2]),
        scores={"correct": torch.tensor([1.0, 0, 0, 1, 1, 1])},
        logp_old=torch.full((6, 5), -2.0),
    )
    hidden = torch.randn(6, 5, 32, generator=make).bfloat16().requires_grad_()
    weight = (torch.randn(V, 32, generator=make) / 6).bfloat16().requires_grad_()
    targets = torch.randint(0, V, (6, 5), generator=make)
    loss = grolang.compile(method)(hidden, weight, targets, batch)
    assert loss.dtype == torch.float32
    torch.autograd.backward(loss)
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    h, w = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    logp, entropy = plain_log_probs(h, w, targets)
    c = method.coefficients(batch.replace(logp=logp.detach(), entropy=entropy.detach()))
    torch.autograd.backward(-(c * logp)[mask].sum())
    for found, want in ((hidden.grad, h.grad), (weight.grad, w.grad)):
        assert want is not None
        error = (found.float() - want).norm() / want.norm()
        assert error < 2e-2, f"relative error {error:.1e}"


# --- what must not matter -----------------------------------------------------------------------------------


def rearranged(plain: Batch, rows: np.ndarray) -> Batch:
    """The rows in another order (or more of them, by repeating indices)."""
    out: dict[str, Any] = {}
    for key, given_value in plain.items():
        if isinstance(given_value, dict):
            out[key] = {name: x[rows] for name, x in given_value.items()}
        else:
            out[key] = given_value[rows]  # type: ignore[index]
    return out  # type: ignore[return-value]


def close(found: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-13 * max(1.0, float(np.abs(want).max(initial=0.0))))


def coefficients(name: str, plain: Batch) -> np.ndarray:
    return grolang.load(name).coefficients(as_batch(plain)).numpy()


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data())
def test_the_order_of_rows_changes_nothing(name: str, data: st.DataObject) -> None:
    plain = data.draw(batches.method_batches(name))
    order = np.array(data.draw(st.permutations(range(len(plain["mask"])))))
    close(coefficients(name, rearranged(plain, order)), coefficients(name, plain)[order])


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data())
def test_renaming_and_reordering_groups_changes_nothing(name: str, data: st.DataObject) -> None:
    plain = data.draw(batches.method_batches(name))
    ids = np.unique(plain["group"])
    names = np.array(data.draw(st.permutations(range(-3, len(ids) - 3)))) * 1_000_003
    renamed: Batch = {**plain, "group": names[np.searchsorted(ids, plain["group"])]}
    close(coefficients(name, renamed), coefficients(name, plain))


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data())
def test_padding_rows_and_slots_change_nothing(name: str, data: st.DataObject) -> None:
    plain = data.draw(batches.method_batches(name, off="nan"))
    count, slots = plain["mask"].shape
    more = data.draw(st.lists(st.integers(0, count - 1), max_size=3), label="rows copied as padding")
    left, right = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)), label="slots added")
    wide = rearranged(plain, np.array([*range(count), *more], dtype=int))

    def widened(given_value: Any) -> Any:
        if isinstance(given_value, dict):
            return {key: widened(x) for key, x in given_value.items()}
        if given_value.ndim == 1:
            return given_value
        fill = False if given_value.dtype == np.bool_ else np.nan
        padded = np.pad(given_value, ((0, 0), (left, right)), constant_values=fill)
        if given_value.dtype == np.bool_:
            padded[count:] = False
        return padded

    found = coefficients(name, {key: widened(x) for key, x in wide.items()})  # type: ignore[arg-type]
    close(found[:count, left : left + slots], coefficients(name, plain))
    rest = found.copy()
    rest[:count, left : left + slots] = 0
    assert (rest == 0).all()


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data())
def test_a_masked_token_has_a_coefficient_and_a_gradient_of_exactly_zero(name: str, data: st.DataObject) -> None:
    batch = as_batch(data.draw(batches.method_batches(name, off="nan")))
    assert batch.logp is not None
    logp = batch.logp.clone().requires_grad_()
    method = grolang.load(name)
    torch.autograd.backward(method.loss(batch.replace(logp=logp)))
    assert logp.grad is not None
    assert (logp.grad[~batch.mask] == 0).all()
    assert (method.coefficients(batch)[~batch.mask] == 0).all()


@pytest.mark.parametrize("scope", SCOPES)
@given(batch=prompts())
def test_what_stands_in_a_masked_slot_of_the_model_never_matters(scope: str, batch: grolang.Batch) -> None:
    """NaN states and targets of -100, as collators write them, change neither the loss nor a gradient."""
    make = torch.Generator().manual_seed(5)
    clean = torch.randn(*batch.mask.shape, D, dtype=torch.float64, generator=make)
    weight = torch.randn(V, D, dtype=torch.float64, generator=make)
    targets = torch.randint(0, V, batch.mask.shape, generator=make)
    module = grolang.compile(method_of(SCOPES[scope]), budget=700)
    found = []
    for states, words in (
        (clean, targets),
        (clean.masked_fill(~batch.mask[..., None], torch.nan), targets.masked_fill(~batch.mask, -100)),
    ):
        hidden, head = states.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = module(hidden, head, words, batch.replace(entropy=None))
        found.append((loss.detach(), *torch.autograd.grad(loss, (hidden, head))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
