"""The oracle held against something other than itself, without grolang.

Three independent readings of each method must give one set of coefficients:

- `gradients`: derived by hand from the published loss;
- the published loss itself, written here once more (whole arrays, no loops), differentiated by a complex
  step, and on one batch by a central difference, with what the paper freezes held;
- the method's .gro file, read by hand with `language`, the second reader of LANGUAGE.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from . import batches, gradients, language
from .gradients import Batch, Bools, Floats
from .language import Step

Array = NDArray[Any]
METHODS = list(gradients.GRADIENTS)
quick = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


# ------------------------------------------------------------------------------------------------------------
# The published losses: functions of logp alone, real or complex; all else is held.
# ------------------------------------------------------------------------------------------------------------


def log_sigmoid(x: Array) -> Array:
    """log σ(x) of complex x, without overflow at either end."""
    left = np.real(x) < 0
    return np.asarray(np.where(left, x, 0) - np.log1p(np.exp(np.where(left, x, -x))))


def sigma(x: Array) -> Array:
    """σ(x) of complex x."""
    return np.asarray(np.exp(log_sigmoid(x)))


def on(x: Array, mask: Bools) -> Array:
    """x where the mask is on, 0 elsewhere."""
    return np.asarray(np.where(mask, x, 0.0))


def membership(batch: Batch) -> Floats:
    """[G, S]: 1 where the row is a sequence of the group."""
    real = batch["mask"].any(axis=1)
    return np.array([(batch["group"] == g) & real for g in np.unique(batch["group"][real])], dtype=np.float64)


def standard_scores(rewards: Floats, batch: Batch) -> Floats:
    """[S]: (r − mean)/std within the group, 0 in a group of equal rewards and on padding rows."""
    out = np.zeros(len(rewards))
    for row in membership(batch):
        members = row > 0
        if np.ptp(rewards[members]) > 0:
            out[members] = (rewards[members] - rewards[members].mean()) / rewards[members].std()
    return out


def clipped(ratio: Array, advantage: Array, epsilon: float) -> Array:
    """min(ρA, clip(ρ, 1−ε, 1+ε) A), compared by real parts."""
    low, high = np.real(ratio) < 1 - epsilon, np.real(ratio) > 1 + epsilon
    bound = np.where(low, 1 - epsilon, np.where(high, 1 + epsilon, ratio))
    a, b = ratio * advantage, bound * advantage
    return np.asarray(np.where(np.real(a) <= np.real(b), a, b))


Loss = Callable[[Array], Any]


def policy_loss(batch: Batch, advantage: Floats) -> Loss:
    """−1/N Σ_i A_i Σ_t ℓ_it: minus the estimate whose gradient is the score-function estimator."""
    mask = batch["mask"]
    count = mask.any(axis=1).sum()
    held = np.where(mask.any(axis=1), advantage, 0.0)
    return lambda logp: -(held * on(logp, mask).sum(axis=1)).sum() / count


def reinforce_loss(batch: Batch) -> Loss:
    """Rewards alone."""
    return policy_loss(batch, batch["scores"]["correct"])


def rloo_loss(batch: Batch) -> Loss:
    """R_i − mean of the others = k/(k−1) (R_i − mean of all): the paper's equivalent form."""
    member = membership(batch)
    size = member.T @ member.sum(axis=1)
    rewards = np.where(batch["mask"].any(axis=1), batch["scores"]["correct"], 0.0)
    mean = member.T @ ((member @ rewards) / member.sum(axis=1))
    with np.errstate(all="ignore"):
        return policy_loss(batch, size / (size - 1) * (rewards - mean))


def remax_loss(batch: Batch) -> Loss:
    """Rewards less the greedy completion's."""
    return policy_loss(batch, batch["scores"]["correct"] - batch["greedy_scores"]["correct"])


def grpo_loss(batch: Batch, epsilon: float = 0.2, beta: float = 0.04) -> Loss:
    """Minus Eq. 3 of DeepSeekMath."""
    mask = batch["mask"]
    advantage = standard_scores(batch["scores"]["correct"], batch)[:, None]
    old, ref = on(batch["logp_old"], mask), on(batch["logp_ref"], mask)

    def loss(logp: Array) -> Any:
        d = ref - on(logp, mask)
        objective = clipped(np.exp(on(logp, mask) - old), advantage, epsilon) - beta * (np.exp(d) - d - 1)
        lengths = np.maximum(mask.sum(axis=1), 1)
        return -(on(objective, mask).sum(axis=1) / lengths).sum() / mask.any(axis=1).sum()

    return loss


def reinforce_pp_loss(batch: Batch, epsilon: float = 0.2, beta: float = 0.01) -> Loss:
    """Minus E_t of the clipped objective over the batch's tokens."""
    mask = batch["mask"]
    old, ref = on(batch["logp_old"], mask), on(batch["logp_ref"], mask)
    kl_to_go = np.flip(np.cumsum(np.flip(on(old - ref, mask), axis=1), axis=1), axis=1)
    returns = on(batch["scores"]["correct"][:, None] - beta * kl_to_go, mask)
    seen = returns[mask]
    advantage = on((returns - seen.mean()) / seen.std() if np.ptp(seen) > 0 else 0.0 * returns, mask)
    return lambda logp: -clipped(np.exp(on(logp, mask) - old), advantage, epsilon)[mask].mean()


def gro_loss(batch: Batch, beta: float = 0.1, tau: float = 1.0) -> Loss:
    """The integral of Eq. 36's ω in m, with anchor and advantage held: weighted logistic regression."""
    mask, member = batch["mask"], membership(batch)
    advantage = standard_scores(batch["scores"]["correct"], batch)
    now = on(batch["logp"] - batch["logp_ref"], mask).sum(axis=1)
    anchor = member.T @ ((member @ now) / member.sum(axis=1))
    good = np.sign(advantage)

    def loss(logp: Array) -> Any:
        m = on(logp - batch["logp_ref"], mask).sum(axis=1)
        z = beta * good * (m - anchor)
        return -(2 * np.tanh(np.abs(advantage) / tau) / beta * log_sigmoid(z)).sum() / mask.any(axis=1).sum()

    return loss


def pair_loss(batch: Batch, beta: float, measure: Callable[[Array], Array]) -> Loss:
    """−mean over pairs of log σ(β (measure_w − measure_l))."""
    signed = membership(batch) * batch["label"]
    return lambda logp: -log_sigmoid(beta * (signed @ measure(logp))).mean()


def dpo_loss(batch: Batch, beta: float = 0.1) -> Loss:
    """Eq. 7 of DPO."""
    return pair_loss(batch, beta, lambda logp: on(logp - batch["logp_ref"], batch["mask"]).sum(axis=1))


def cpl_loss(batch: Batch, beta: float = 0.1, gamma: float = 1.0) -> Loss:
    """Eq. 5 of CPL."""
    discount = gamma ** (np.cumsum(batch["mask"], axis=1) - 1.0)
    return pair_loss(batch, beta, lambda logp: on(discount * logp, batch["mask"]).sum(axis=1))


def kto_loss(batch: Batch, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0) -> Loss:
    """Eq. 8 of KTO, λ − v, the two kinds of completion written apart; z₀ held."""
    mask, other = batch["mask"], batch["mismatched"]
    count = mask.any(axis=1).sum()
    z0 = max(0.0, on(other["logp"] - other["logp_ref"], other["mask"]).sum() / count)
    good, bad = mask.any(axis=1) & (batch["label"] > 0), mask.any(axis=1) & (batch["label"] < 0)

    def loss(logp: Array) -> Any:
        r = on(logp - batch["logp_ref"], mask).sum(axis=1)
        value_good, value_bad = desirable * sigma(beta * (r - z0)), undesirable * sigma(beta * (z0 - r))
        return ((desirable - value_good)[good].sum() + (undesirable - value_bad)[bad].sum()) / count

    return loss


def awr_loss(batch: Batch, beta: float = 1.0, weight_max: float = 20.0) -> Loss:
    """Minus Eq. 8 of AWR, weights cut."""
    label = batch["label"]
    value = label[batch["mask"].any(axis=1)].mean()
    with np.errstate(over="ignore"):
        return policy_loss(batch, np.minimum(np.exp((label - value) / beta), weight_max))


def sft_loss(batch: Batch) -> Loss:
    """Mean negative log-likelihood per token."""
    return lambda logp: -logp[batch["mask"]].mean()


LOSSES: dict[str, Callable[..., Loss]] = {
    "reinforce": reinforce_loss,
    "rloo": rloo_loss,
    "grpo": grpo_loss,
    "remax": remax_loss,
    "reinforce_pp": reinforce_pp_loss,
    "dpo": dpo_loss,
    "kto": kto_loss,
    "cpl": cpl_loss,
    "awr": awr_loss,
    "gro": gro_loss,
    "sft": sft_loss,
}


def complex_step(loss: Loss, batch: Batch) -> Floats:
    """−∂loss/∂logp [S, T], each entry by a step of 1e-30 i: exact to rounding."""
    out = np.zeros(batch["mask"].shape)
    base = on(batch["logp"], batch["mask"]).astype(np.complex128)
    with np.errstate(all="ignore"):
        for place in np.argwhere(batch["mask"]):
            stepped = base.copy()
            stepped[tuple(place)] += 1e-30j
            out[tuple(place)] = -np.imag(loss(stepped)) / 1e-30
    return out


def agree(found: Floats, expected: Floats, rtol: float = 1e-9) -> None:
    """Entry by entry to `rtol` of its size, and 1e-13 of the largest's (or of 1) where terms cancel."""
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-13 * scale)


# ------------------------------------------------------------------------------------------------------------
# Gradients
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@quick
@given(data=st.data())
def test_coefficients_are_minus_the_gradient_of_the_published_loss(method: str, data: st.DataObject) -> None:
    """The derivation by hand against a complex step, entry by entry, on any batch."""
    batch = data.draw(batches.method_batches(method))
    parameters = data.draw(batches.method_parameters(method))
    expected = complex_step(LOSSES[method](batch, **parameters), batch)
    agree(gradients.GRADIENTS[method](batch, **parameters), expected)


@pytest.mark.parametrize("method", METHODS)
@quick
@given(data=st.data())
def test_the_gro_file_read_by_hand_gives_the_same(method: str, data: st.DataObject) -> None:
    """The derivation from the paper against the method's file, read with the language's own words."""
    batch = data.draw(batches.method_batches(method))
    parameters = data.draw(batches.method_parameters(method))
    with np.errstate(all="ignore"):
        agree(FILES[method](batch, **parameters), gradients.GRADIENTS[method](batch, **parameters))


@pytest.mark.parametrize("method", METHODS)
def test_a_central_difference_agrees(method: str) -> None:
    """Plain real arithmetic on one batch, in case the complex step is wrong somewhere."""
    batch = small_batch()
    loss = LOSSES[method](batch)
    expected = np.zeros(batch["mask"].shape)
    for place in np.argwhere(batch["mask"]):
        up, down = batch["logp"].copy(), batch["logp"].copy()
        up[tuple(place)] += 1e-5
        down[tuple(place)] -= 1e-5
        expected[tuple(place)] = -(loss(up) - loss(down)) / 2e-5
    found = gradients.GRADIENTS[method](batch)
    assert np.abs(found).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("off", get_args(batches.Off))
@pytest.mark.parametrize("method", METHODS)
@settings(quick, max_examples=8)
@given(data=st.data())
def test_what_the_mask_hides_is_never_read(method: str, off: batches.Off, data: st.DataObject) -> None:
    """Coefficients are finite, and exactly 0 where the mask is off, whatever stands there."""
    batch = data.draw(batches.method_batches(method, off=off))
    c = gradients.GRADIENTS[method](batch)
    assert np.isfinite(c).all()
    assert (c[~batch["mask"]] == 0).all()


@pytest.mark.parametrize("method", METHODS)
@settings(quick, max_examples=15)
@given(data=st.data())
def test_row_order_prompt_ids_and_padding_change_nothing(method: str, data: st.DataObject) -> None:
    """Rows permuted, prompts renumbered, a padding row first, a masked slot in front of every row."""
    batch = data.draw(batches.method_batches(method))
    seed = data.draw(st.integers(0, 99))
    count, slots = batch["mask"].shape
    order = np.random.default_rng(seed).permutation(count)

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: moved(inner) for name, inner in value.items()}
        rows = value[order]
        pad_row = np.zeros((1, *rows.shape[1:]), dtype=rows.dtype)
        rows = np.concatenate([pad_row, rows])
        pad_slot = np.zeros((count + 1, 1), dtype=rows.dtype)
        return rows if rows.ndim == 1 else np.concatenate([pad_slot, rows], axis=1)

    changed: Batch = moved(batch)
    changed["group"] = 1000 - 3 * changed["group"]
    expected = gradients.GRADIENTS[method](batch)
    found = gradients.GRADIENTS[method](changed)
    assert found.shape == (count + 1, slots + 1)
    assert (found[0] == 0).all()
    assert (found[:, 0] == 0).all()
    # The mismatched rows moved along with theirs, so that KTO's z₀ is the same sum in another order.
    agree(found[1:, 1:], expected[order], rtol=1e-10)


def test_equal_rewards_teach_nothing_however_they_round() -> None:
    """Three rewards of 0.1 have Σ/N ≠ 0.1; the advantage is 0, not a rounding divided by a rounding."""
    batch = small_batch()
    batch["scores"] = {"correct": np.full(len(batch["mask"]), 0.1)}
    batch["group"] = np.array([0, 0, 0, 0, 0, 1, 1])  # four sequences (so three others) and two
    assert np.sum([0.1, 0.1, 0.1]) / 3 != 0.1
    assert (gradients.rloo(batch) == 0).all()
    assert (gradients.gro(batch) == 0).all()
    assert (gradients.grpo(batch, beta=0.0) == 0).all()
    assert (gradients.reinforce_pp(batch, beta=0.0) == 0).all()


def test_a_group_of_one_has_no_others() -> None:
    """RLOO says so rather than dividing by 0."""
    batch = small_batch()
    batch["group"] = np.arange(len(batch["mask"]))
    with pytest.raises(ValueError, match="group of one"):
        gradients.rloo(batch)
    with pytest.raises(ValueError, match="pair"):
        gradients.dpo(batch)


def test_known_numbers() -> None:
    """Values worked out on paper, one token a sequence."""
    half = np.log(0.5)
    batch: Batch = {
        "mask": np.ones((2, 1), dtype=np.bool_),
        "group": np.array([7, 7]),
        "logp": np.full((2, 1), half),
        "logp_old": np.full((2, 1), half),
        "logp_ref": np.full((2, 1), half),
        "label": np.array([1.0, -1.0]),
        "scores": {"correct": np.array([1.0, 0.0])},
        "greedy_scores": {"correct": np.array([1.0, 1.0])},
        "mismatched": {
            "mask": np.ones((2, 1), dtype=np.bool_),
            "logp": np.array([[np.log(0.75)], [half]]),
            "logp_ref": np.full((2, 1), half),
        },
    }
    known: dict[str, list[float]] = {
        "reinforce": [0.5, 0.0],
        "rloo": [0.5, -0.5],
        "remax": [0.0, -0.5],
        "grpo": [0.5, -0.5],
        "reinforce_pp": [0.5, -0.5],
        "gro": [0.5 * np.tanh(1.0), -0.5 * np.tanh(1.0)],
        "dpo": [0.05, -0.05],  # β σ(0), one pair
        "cpl": [0.05, -0.05],
        "awr": [0.5 * np.e, 0.5 / np.e],
        "sft": [0.5, 0.5],
    }
    for method, expected in known.items():
        found = gradients.GRADIENTS[method](batch)[:, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-14, err_msg=method)
    z = 0.1 * 0.5 * np.log(1.5)  # β z₀: half of the mismatched completions gained log 1.5
    slope = 0.1 / ((1 + np.exp(z)) * (1 + np.exp(-z))) / 2
    np.testing.assert_allclose(gradients.kto(batch)[:, 0], [slope, -slope], rtol=1e-14)
    # The ratio is ½: below the clip, which holds for the bad completion only; the KL adds β (e^log2 − 1).
    batch["logp"] = np.full((2, 1), np.log(0.25))
    np.testing.assert_allclose(gradients.grpo(batch, beta=0.5)[:, 0], [0.25 + 0.25, 0.25], rtol=1e-14)


@settings(quick, max_examples=15)
@given(batch=batches.preference_batches())
def test_cpl_without_discount_is_dpo_without_reference(batch: Batch) -> None:
    """γ = 1 against ℓref = 0."""
    batch["logp_ref"] = np.zeros_like(batch["logp"])
    agree(gradients.cpl(batch, gamma=1.0), gradients.dpo(batch))


@settings(quick, max_examples=15)
@given(batch=batches.unpaired_batches())
def test_awr_tends_to_imitation(batch: Batch) -> None:
    """At a high temperature every completion weighs 1."""
    count = batch["mask"].any(axis=1).sum()
    agree(gradients.awr(batch, beta=1e12), on(np.full(batch["mask"].shape, 1 / count), batch["mask"]))


# ------------------------------------------------------------------------------------------------------------
# The .gro files, read by hand in the language's own words
# ------------------------------------------------------------------------------------------------------------


def sum_of_log_ratios(fields: Any) -> Array:
    """`sum(logp - logp_ref over tokens)`."""
    return language.over_tokens("sum", fields["logp"] - fields["logp_ref"], fields["mask"])


def guarded_score(reward: Array, baseline: Any, spread: Any) -> Array:
    """`(reward - baseline) / σ if σ > 0 else 0`."""
    return language.choose((reward - baseline) / spread, np.asarray(spread) > 0, np.asarray(0.0))


def clip_omega(z: Array, advantage: Array, epsilon: float) -> Array:
    """`0 if (exp(z) > 1 + epsilon if advantage > 0 else exp(z) < 1 - epsilon) else exp(z)`."""
    dropped = np.where(advantage > 0, np.exp(z) > 1 + epsilon, np.exp(z) < 1 - epsilon)
    return np.where(dropped, 0.0, np.exp(z))


SUM_MEAN = [Step("sum", "tokens"), Step("mean", "sequences")]
PAIRWISE = [Step("sum", "tokens"), Step("sum", "group"), Step("mean", "groups")]


def reinforce_file(b: Batch) -> Floats:
    """reinforce.gro."""
    return language.coefficients(b["scores"]["correct"], SUM_MEAN, b["mask"], b["group"])


def rloo_file(b: Batch) -> Floats:
    """rloo.gro."""
    reward = b["scores"]["correct"]
    baseline = language.over_others("mean", reward, b["mask"], b["group"])
    return language.coefficients(reward - baseline, SUM_MEAN, b["mask"], b["group"])


def remax_file(b: Batch) -> Floats:
    """remax.gro."""
    baseline = language.greedy(lambda scores: scores["correct"], b["greedy_scores"], b["mask"], b["group"])
    return language.coefficients(b["scores"]["correct"] - baseline, SUM_MEAN, b["mask"], b["group"])


def grpo_file(b: Batch, epsilon: float = 0.2, beta: float = 0.04) -> Floats:
    """grpo.gro."""
    mask, group, reward = b["mask"], b["group"], b["scores"]["correct"]
    steps = [Step("mean", "tokens"), Step("mean", "sequences")]
    baseline = language.over_group("mean", reward, mask, group)
    advantage = guarded_score(reward, baseline, language.over_group("std", reward, mask, group))[:, None]
    push = clip_omega(b["logp"] - b["logp_old"], advantage, epsilon) * advantage

    def penalty(logp: Array) -> Array:
        return np.asarray(beta * (np.exp(b["logp_ref"] - logp) - (b["logp_ref"] - logp) - 1))

    pull = language.penalty_coefficients(penalty, "token", steps, mask, group, b["logp"])
    return language.coefficients(push, steps, mask, group) + pull


def reinforce_pp_file(b: Batch, epsilon: float = 0.2, beta: float = 0.01) -> Floats:
    """reinforce_pp.gro."""
    mask = b["mask"]
    reward = language.to_go(
        language.terminal(b["scores"]["correct"], mask) - beta * (b["logp_old"] - b["logp_ref"]), 1.0, mask
    )
    baseline, spread = language.over_batch("mean", reward, mask), language.over_batch("std", reward, mask)
    advantage = guarded_score(reward, baseline, spread)
    push = clip_omega(b["logp"] - b["logp_old"], advantage, epsilon) * advantage
    return language.coefficients(push, [Step("mean", "batch")], mask, b["group"])


def gro_file(b: Batch, beta: float = 0.1, tau: float = 1.0) -> Floats:
    """gro.gro."""
    mask, group, reward = b["mask"], b["group"], b["scores"]["correct"]
    baseline = language.over_group("mean", reward, mask, group)
    advantage = guarded_score(reward, baseline, language.over_group("std", reward, mask, group))
    measure = sum_of_log_ratios(b)
    anchor = language.over_group("mean", measure, mask, group)
    omega = 2 * language.sigmoid(-(beta * np.sign(advantage) * (measure - anchor)))
    return language.coefficients(omega * np.tanh(advantage / tau), SUM_MEAN, mask, group)


def dpo_file(b: Batch, beta: float = 0.1) -> Floats:
    """dpo.gro."""
    measure = sum_of_log_ratios(b)
    z = beta * b["label"] * (measure - language.opposite(measure, b["mask"], b["group"]))
    return language.coefficients(beta * language.sigmoid(-z) * b["label"], PAIRWISE, b["mask"], b["group"])


def cpl_file(b: Batch, beta: float = 0.1, gamma: float = 1.0) -> Floats:
    """cpl.gro."""
    mask, group = b["mask"], b["group"]
    credit = gamma ** language.position(mask)
    measure = language.over_tokens("sum", credit * b["logp"], mask)
    z = beta * b["label"] * (measure - language.opposite(measure, mask, group))
    push = credit * (beta * language.sigmoid(-z) * b["label"])[:, None]
    return language.coefficients(push, PAIRWISE, mask, group)


def kto_file(b: Batch, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0) -> Floats:
    """kto.gro."""
    mask, label = b["mask"], b["label"]
    reward = np.where(label > 0, desirable, undesirable) * label
    anchor = max(0.0, language.over_batch("mean", language.mismatched(sum_of_log_ratios, b), mask))
    z = beta * label * (sum_of_log_ratios(b) - anchor)
    push = beta * language.sigmoid(z) * language.sigmoid(-z) * reward
    return language.coefficients(push, SUM_MEAN, mask, b["group"])


def awr_file(b: Batch, beta: float = 1.0, weight_max: float = 20.0) -> Floats:
    """awr.gro."""
    advantage = b["label"] - language.over_batch("mean", b["label"], b["mask"])
    push = np.minimum(np.exp(advantage / beta), weight_max)
    return language.coefficients(push, SUM_MEAN, b["mask"], b["group"])


def sft_file(b: Batch) -> Floats:
    """sft.gro."""
    return language.coefficients(1.0, [Step("mean", "batch")], b["mask"], b["group"])


FILES: dict[str, Callable[..., Floats]] = {
    "reinforce": reinforce_file,
    "rloo": rloo_file,
    "grpo": grpo_file,
    "remax": remax_file,
    "reinforce_pp": reinforce_pp_file,
    "dpo": dpo_file,
    "kto": kto_file,
    "cpl": cpl_file,
    "awr": awr_file,
    "gro": gro_file,
    "sft": sft_file,
}


# ------------------------------------------------------------------------------------------------------------
# The second reader of the language, against numpy's own reductions
# ------------------------------------------------------------------------------------------------------------

NUMPY: dict[language.Reduction, Callable[[Floats], Any]] = {
    "sum": np.sum,
    "mean": np.mean,
    "std": np.std,
    "sample_std": lambda values: np.std(values, ddof=1),
    "max": np.max,
    "min": np.min,
    "quantile": lambda values: np.quantile(values, 0.3),
}


def reduced(op: language.Reduction, values: Floats) -> Any:
    """numpy's answer for one list."""
    return NUMPY[op](values)


@pytest.mark.parametrize("op", get_args(language.Reduction))
@quick
@given(batch=batches.prompts_batches(min_group=3, off="nan"))
def test_reductions_are_numpys(op: language.Reduction, batch: Batch) -> None:
    """Every reduction over every axis, of token and of sequence values, group by group in numpy."""
    mask, group, x, r = batch["mask"], batch["group"], batch["logp"], batch["scores"]["correct"]
    real: Bools = np.asarray(mask.any(axis=1))
    np.testing.assert_allclose(language.over_batch(op, r, mask, 0.3), reduced(op, r[real]), atol=1e-12)
    if op != "sample_std":  # one token is no sample
        tokens = language.over_tokens(op, x, mask, 0.3)
        np.testing.assert_allclose(language.over_batch(op, x, mask, 0.3), reduced(op, x[mask]), atol=1e-12)
    for i in range(len(mask)):
        if not real[i]:
            assert language.over_group(op, r, mask, group, 0.3)[i] == 0
            continue
        if op != "sample_std":
            np.testing.assert_allclose(tokens[i], reduced(op, x[i][mask[i]]), atol=1e-12)
        mates = (group == group[i]) & real
        others = mates & (np.arange(len(mask)) != i)
        for members, found in ((mates, language.over_group), (others, language.over_others)):
            np.testing.assert_allclose(found(op, r, mask, group, 0.3)[i], reduced(op, r[members]), atol=1e-12)
            pooled = np.concatenate([x[j][mask[j]] for j in np.flatnonzero(members)])
            np.testing.assert_allclose(found(op, x, mask, group, 0.3)[i], reduced(op, pooled), atol=1e-12)


def test_places_in_a_completion_by_hand() -> None:
    """position, length, terminal, to_go and discounting over a row with padding in front and a hole."""
    mask = np.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]], dtype=np.bool_)
    x = np.array([[9.0, 1, 9, 2, 4], [9, 9, 9, 9, 9], [9, 9, 9, 9, 3]])
    assert language.position(mask).tolist() == [[0, 0, 0, 1, 2], [0] * 5, [0] * 5]
    assert language.length(mask).tolist() == [3, 0, 1]
    assert language.to_go(x, 0.5, mask).tolist() == [[0, 3, 0, 4, 4], [0] * 5, [0, 0, 0, 0, 3]]
    assert language.terminal(np.array([5.0, 6, 7]), mask).tolist() == [
        [0, 0, 0, 0, 5],
        [0] * 5,
        [0, 0, 0, 0, 7],
    ]
    assert language.mismatched_row(mask).tolist() == [2, -1, 0]
    assert language.group_size(mask, np.array([4, 4, 4])).tolist() == [2, 0, 2]


@quick
@given(batch=batches.preference_batches(off="nan"))
def test_pairs(batch: Batch) -> None:
    """The opposite's opposite is oneself; chosen and rejected are one's own or the other's, by the label."""
    mask, group, label = batch["mask"], batch["group"], batch["label"]
    x = language.over_tokens("sum", batch["logp"], mask)
    other = language.opposite(x, mask, group)
    np.testing.assert_array_equal(language.opposite(other, mask, group), x)
    for i in language.rows(mask):
        mine, theirs = (x[i], other[i]) if label[i] > 0 else (other[i], x[i])
        assert language.chosen(x, mask, group, label)[i] == mine
        assert language.rejected(x, mask, group, label)[i] == theirs


@quick
@given(batch=batches.prompts_batches(off="nan"), max_length=st.sampled_from([1.0, 7.0, 1024.0]))
def test_every_row_of_the_aggregation_table(batch: Batch, max_length: float) -> None:
    """Weights of each token in each row of §6, against the formula that the row is quoted for."""
    mask, group = batch["mask"], batch["group"]
    real = mask.any(axis=1)
    per_token = mask / 1.0
    lengths = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    expected = {
        "default": per_token / real.sum(),
        "rloo": per_token / real.sum(),
        "grpo": per_token / lengths / real.sum(),
        "dapo": per_token / mask.sum(),
        "dr_grpo": per_token / max_length / real.sum(),
        "dpo": per_token / len(np.unique(group[real])),
    }
    for name, steps in language.aggregations(max_length).items():
        found = language.weights(steps, mask, group)
        np.testing.assert_allclose(found, expected[name], rtol=1e-12, err_msg=name)


def test_a_penalty_skips_the_steps_that_it_has_no_axis_for() -> None:
    """Two groups, of three sequences and of one: what each scope's values become."""
    mask = np.array([[1, 1], [1, 0], [0, 0], [1, 1], [0, 1]], dtype=np.bool_)
    group = np.array([3, 3, 3, 3, 8])
    sequence = np.array([1.0, 2, 999, 3, 10])
    of_group = np.array([6.0, 6, 999, 6, 20])
    rows: list[tuple[list[Step], float, float]] = [  # steps, from sequence values, from group values
        ([Step("sum", "tokens"), Step("mean", "sequences")], 16 / 4, (18 + 20) / 4),
        ([Step("sum", "tokens"), Step("sum", "sequences")], 16, 18 + 20),
        ([Step("sum", "tokens", 50.0), Step("mean", "sequences")], 16 / 4, (18 + 20) / 4),
        ([Step("sum", "tokens"), Step("sum", "group"), Step("mean", "groups")], (6 + 10) / 2, (6 + 20) / 2),
        ([Step("mean", "tokens"), Step("mean", "group", 2.0), Step("sum", "groups")], (1 + 5), 6 + 20),
        ([Step("mean", "group"), Step("mean", "groups")], (2 + 10) / 2, (6 + 20) / 2),
        ([Step("mean", "group"), Step("sum", "batch")], 2 + 10, 6 + 20),
        ([Step("mean", "batch")], 16 / 4, (6 + 20) / 2),
        ([Step("mean", "tokens"), Step("sum", "batch")], 16, 6 + 20),
    ]
    for steps, from_sequence, from_group in rows:
        assert language.aggregate(sequence, "sequence", steps, mask, group) == pytest.approx(from_sequence)
        assert language.aggregate(of_group, "group", steps, mask, group) == pytest.approx(from_group)
        assert language.aggregate(5.0, "batch", steps, mask, group) == 5.0
    for unfinished in (
        [],
        [Step("sum", "tokens")],
        [Step("mean", "sequences")],
        [Step("sum", "tokens"), Step("mean", "groups")],
        [Step("mean", "group"), Step("mean", "sequences")],
        [Step("mean", "batch"), Step("mean", "groups")],
        [Step("mean", "group"), Step("sum", "tokens"), Step("mean", "groups")],
    ):
        with pytest.raises(ValueError, match=r"left|leave"):
            language.aggregate(np.ones(mask.shape), "token", unfinished, mask, group)


@quick
@given(batch=batches.prompts_batches())
def test_a_sequence_penalty_is_differentiated(batch: Batch) -> None:
    """½ m² at sequence scope under GRPO's steps: −m_i / N on each token, not divided by the length."""
    mask, group = batch["mask"], batch["group"]
    steps = language.aggregations()["grpo"]

    def penalty(logp: Array) -> Array:
        return np.asarray(0.5 * language.over_tokens("sum", logp, mask) ** 2)

    found = language.penalty_coefficients(penalty, "sequence", steps, mask, group, batch["logp"])
    expected = on(-on(batch["logp"], mask).sum(axis=1)[:, None] / mask.any(axis=1).sum(), mask)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_equal_values_have_no_spread() -> None:
    """Whatever Σ/N rounds to."""
    assert language.reduce_values("mean", [0.1, 0.1, 0.1]) == 0.1
    assert language.reduce_values("std", [0.1, 0.1, 0.1]) == 0.0
    with pytest.raises(ValueError, match="sample_std"):
        language.reduce_values("sample_std", [0.1])
    with pytest.raises(ValueError, match="nothing"):
        language.reduce_values("sum", [])


# ------------------------------------------------------------------------------------------------------------
# The strategies
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@quick
@given(data=st.data())
def test_batches_keep_their_promises(method: str, data: st.DataObject) -> None:
    """Sizes, ranges and pairs as `batches` says."""
    batch = data.draw(batches.method_batches(method))
    mask = batch["mask"]
    real: Bools = np.asarray(mask.any(axis=1))
    assert real.any()
    assert mask.shape[0] <= batches.MAX_ROWS
    assert mask.shape[1] <= batches.MAX_TOKENS
    for values in (batch["logp"], batch["logp_old"], batch["logp_ref"]):
        assert (values[mask] <= -1e-6).all()
        assert (values[mask] >= -60).all()
    sizes = [len(members) for members in language.groups(mask, batch["group"]).values()]
    if batches.KINDS[method] == "preference":
        assert set(sizes) == {2}
        assert all(sum(batch["label"][m]) == 0 for m in language.groups(mask, batch["group"]).values())
    if batches.KINDS[method] == "prompts":
        assert max(sizes) <= 8
    if batches.KINDS[method] == "unpaired":
        partner = language.mismatched_row(mask)
        for i in range(len(mask)):
            expected = mask[partner[i]] if real[i] else np.zeros_like(mask[i])
            assert (batch["mismatched"]["mask"][i] == expected).all()


@quick
@given(batch=batches.mixed_batches(off="zero"))
def test_a_demonstrations_old_policy_is_the_current_one(batch: Batch) -> None:
    """§4, and so its ratio is 1 in any clipped method."""
    assert (language.logp_old(batch) == on(batch["logp_old"], batch["mask"])).all()


def small_batch() -> Batch:
    """Six ordinary sequences, a padding row, holes; paired, labelled and scored; nothing at a kink."""
    rng = np.random.default_rng(3)
    mask = rng.random((7, 5)) < 0.7
    mask[2] = False
    mask[[0, 1, 3, 4, 5, 6], 4] = True
    logp = -rng.gamma(2.0, 0.5, size=mask.shape)
    return {
        "mask": mask,
        "group": np.array([5, 9, 5, 5, 2, 9, 2]),
        "logp": logp,
        "logp_old": logp + rng.normal(0.0, 0.3, size=mask.shape),
        "logp_ref": logp + rng.normal(0.0, 0.5, size=mask.shape),
        "label": np.array([1.0, -1, 1, -1, 1, 1, -1]),
        "scores": {"correct": np.array([1.0, 0.2, 50, 0, 0.7, 0.4, -1])},
        "greedy_scores": {"correct": np.array([0.5, 1, 50, 0.5, 0.1, 1, 0.1])},
        "mismatched": {
            "mask": mask,
            "logp": logp,
            "logp_ref": logp + rng.normal(-0.2, 0.5, size=mask.shape),
        },
    }
