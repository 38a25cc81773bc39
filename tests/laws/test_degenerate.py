"""The edges of a batch: every method gives numbers, zeros, or an error that names the place; never a silent NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import grolang
from grolang.compiler.method import from_source
from grolang.language.source import Source
from tests.oracle import gradients

METHODS = list(gradients.GRADIENTS)
PROMPTS = "data prompts\nscore correct\nreward = correct\n"
S, T = 6, 4


def method_of(words: str, **params: float) -> grolang.Method:
    return from_source(Source("drawn.gro", "method drawn\n" + words), **params)


def make(**changes: Any) -> grolang.Batch:
    """Three groups of two, or three pairs; every tensor there is."""
    generator = torch.Generator().manual_seed(0)

    def logp(low: float = 0.1) -> Tensor:
        return -low - 3 * torch.rand(S, T, dtype=torch.float64, generator=generator)

    mask = torch.ones(S, T, dtype=torch.bool)
    mask[1, 2:] = mask[3, 3:] = False
    fields: dict[str, Any] = {
        "mask": mask,
        "group": torch.tensor([0, 0, 1, 1, 2, 2]),
        "label": torch.tensor([1.0, -1.0] * 3).double(),
        "demonstration": torch.ones(S),
        "scores": {"correct": torch.rand(S, dtype=torch.float64, generator=generator)},
        "greedy_scores": {"correct": torch.tensor([0.1, 0.1, 0.2, 0.2, 0.3, 0.3], dtype=torch.float64)},
        "entropy": -logp(),
        "mismatched": grolang.Batch(mask=mask, logp=logp(), logp_ref=logp()),
    }
    fields |= {name: logp() for name in ("logp", "logp_old", "logp_ref", "logp_sampler")}
    return grolang.Batch(**(fields | changes))


def raises(match: str, call: Any) -> str:
    with pytest.raises(grolang.GroError) as caught:
        call()
    assert match in str(caught.value), str(caught.value)
    return str(caught.value)


def module_loss(method: grolang.Method, batch: grolang.Batch, **changes: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(*batch.mask.shape, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.zeros(batch.mask.shape, dtype=torch.long)
    given = {"hidden": hidden, "head_weight": weight, "targets": targets, "batch": batch} | changes
    loss: Tensor = grolang.compile(method)(**given)
    return loss


# --- groups that teach nothing ------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, -7.3, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["rloo", "gro", "grpo", "reinforce_pp"])
def test_equal_rewards_give_coefficients_of_exactly_zero(name: str, dtype: torch.dtype, reward: float) -> None:
    method = grolang.load(name, **({"beta": 0.0} if name in ("grpo", "reinforce_pp") else {}))
    for size in (2, 3, 6):
        batch = make(
            scores={"correct": torch.full((S,), reward, dtype=dtype)}, group=torch.arange(S) // size, label=None
        )
        assert (method.coefficients(batch) == 0).all()


@pytest.mark.parametrize("spread", ["std", "sample_std"])
def test_a_bare_division_by_a_constant_groups_spread_names_the_expression(spread: str) -> None:
    """0/0 in a group of equal rewards: an error that says which division, where, and how to guard it."""
    method = method_of(PROMPTS + f"advantage = (reward - mean(reward over group)) / {spread}(reward over group)")
    scores = {"correct": torch.tensor([0.0, 1.0, 0.1, 0.1, 0.3, 0.5]).double()}
    shown = raises("not finite", lambda: method.coefficients(make(scores=scores)))
    assert f"{spread}(reward over group)" in shown and "drawn.gro:5" in shown
    assert "group 1" in shown or "row 2" in shown
    assert "guard" in shown
    raises("not finite", lambda: method.loss(make(scores=scores)))
    raises("not finite", lambda: module_loss(method, make(scores=scores)))


@pytest.mark.parametrize("name", METHODS)
def test_one_token_completions_give_finite_coefficients(name: str) -> None:
    mask = torch.zeros(S, T, dtype=torch.bool)
    mask[torch.arange(S), torch.tensor([0, 3, 1, 1, 2, 0])] = True
    batch = make(mask=mask, mismatched=make().mismatched)
    found = grolang.load(name).coefficients(batch)
    assert torch.isfinite(found).all()
    single = make(
        mask=torch.ones(S, 1, dtype=torch.bool),
        **{key: getattr(batch, key)[:, :1] for key in ("logp", "logp_old", "logp_ref", "logp_sampler", "entropy")},
    )
    assert torch.isfinite(grolang.load(name).coefficients(single)).all()


@pytest.mark.parametrize("low", [-1e-6, -60.0])
@pytest.mark.parametrize("name", METHODS)
def test_extreme_log_probs_give_finite_coefficients(name: str, low: float) -> None:
    extreme = torch.full((S, T), low, dtype=torch.float64)
    other = torch.where(
        torch.rand(S, T, generator=torch.Generator().manual_seed(2)) < 0.5, extreme, -1e-6 - extreme * 0
    )
    for now, then in ((extreme, extreme), (extreme, other), (other, extreme)):
        batch = make(logp=now, logp_old=then, logp_ref=then)
        assert torch.isfinite(grolang.load(name).coefficients(batch)).all()
        assert torch.isfinite(grolang.load(name).loss(batch))


# --- nothing there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_padding_gives_zeros_everywhere(name: str) -> None:
    method = grolang.load(name)
    batch = make(mask=torch.zeros(S, T, dtype=torch.bool))
    assert (method.coefficients(batch) == 0).all()
    assert batch.logp is not None
    logp = batch.logp.clone().requires_grad_()
    loss = method.loss(batch.replace(logp=logp))
    torch.autograd.backward(loss)
    assert loss == 0 and logp.grad is not None and (logp.grad == 0).all()
    fused = module_loss(method, batch)
    torch.autograd.backward(fused)
    assert fused == 0


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_padding_can_be_evaluated(name: str) -> None:
    found = grolang.load(name).evaluate(make(mask=torch.zeros(S, T, dtype=torch.bool)))
    assert (found.coefficients == 0).all()
    assert all((part == 0).all() for part in found.parts.values())


def test_a_batch_without_rows_gives_an_empty_answer() -> None:
    batch = grolang.Batch(mask=torch.zeros(0, T, dtype=torch.bool), scores={"correct": torch.zeros(0)})
    assert grolang.load("reinforce").coefficients(batch).shape == (0, T)


# --- groups that are not what they should be ----------------------------------------------------------------


def test_a_group_of_one_has_no_others() -> None:
    batch = make(group=torch.tensor([0, 0, 1, 1, 7, 8]))
    shown = raises("over others", lambda: grolang.load("rloo").coefficients(batch))
    assert "group 7" in shown


def test_a_group_of_one_beside_padding_of_the_same_prompt_has_no_others() -> None:
    mask = make().mask.clone()
    mask[5] = False
    raises("group 2", lambda: grolang.load("rloo").coefficients(make(mask=mask)))


@pytest.mark.parametrize(
    ("group", "label"),
    [
        ([0, 0, 0, 1, 1, 2], [1.0, -1, 1, -1, 1, -1]),
        ([0, 1, 2, 3, 4, 5], [1.0, -1, 1, -1, 1, -1]),
        ([0, 0, 1, 1, 2, 2], [1.0, 1, -1, 1, 1, -1]),
        ([0, 0, 1, 1, 2, 2], [-1.0, -1, -1, 1, 1, -1]),
    ],
)
@pytest.mark.parametrize("name", ["dpo", "cpl"])
def test_a_broken_pair_is_an_error_that_names_its_group(name: str, group: list[int], label: list[float]) -> None:
    batch = make(group=torch.tensor(group), label=torch.tensor(label))
    raises("is not a pair", lambda: grolang.load(name).coefficients(batch))
    raises("is not a pair", lambda: module_loss(grolang.load(name), batch))


@pytest.mark.parametrize("bad", [0.0, 0.5, 2.0, float("nan")])
def test_a_label_other_than_plus_or_minus_one_is_an_error(bad: float) -> None:
    label = torch.tensor([1.0, -1, 1, -1, 1, bad])
    raises("+1 or -1", lambda: grolang.load("kto").coefficients(make(label=label)))


def test_labels_given_as_booleans_are_refused_in_words() -> None:
    label = torch.tensor([True, False] * 3)
    raises("+1 or -1", lambda: grolang.load("kto").coefficients(make(label=label)))


def test_whole_number_labels_mean_the_same_as_fractions() -> None:
    whole = grolang.load("kto").coefficients(make(label=torch.tensor([1, -1] * 3)))
    torch.testing.assert_close(whole, grolang.load("kto").coefficients(make()), rtol=0, atol=0)


# --- missing, misshapen, not finite -------------------------------------------------------------------------


def test_a_parameter_beyond_fp32_is_said_to_be_infinite_there() -> None:
    method = method_of(PROMPTS + "param far = 1e39\nadvantage = far * reward")
    numbers = {"mask": torch.ones(2, 1, dtype=torch.bool), "group": torch.zeros(2, dtype=torch.long)}
    scores = torch.tensor([1.0, 0.5])
    wide = grolang.Batch(**numbers, logp=-torch.ones(2, 1).double(), scores={"correct": scores.double()})
    assert torch.isfinite(method.coefficients(wide)).all()
    narrow = grolang.Batch(**numbers, logp=-torch.ones(2, 1), scores={"correct": scores})
    assert "`far` = inf" in raises("not finite", lambda: method.coefficients(narrow))


NEEDED = {
    ("dpo", "label"): "label",
    ("dpo", "group"): "prompt",
    ("dpo", "logp_ref"): "reference model",
    ("dpo", "logp"): "policy",
    ("grpo", "logp_old"): "policy that the step started from",
    ("kto", "mismatched"): "other prompts",
    ("rloo", "group"): "prompt",
    ("gro", "logp_ref"): "reference model",
}


@pytest.mark.parametrize(("name", "tensor"), NEEDED)
def test_a_missing_tensor_is_named_with_what_supplies_it(name: str, tensor: str) -> None:
    shown = raises(f"`{tensor}`", lambda: grolang.load(name).coefficients(make(**{tensor: None})))
    assert NEEDED[name, tensor] in shown and f"`{name}`" in shown


@pytest.mark.parametrize(("name", "tensor"), [key for key in NEEDED if key[1] != "logp"])
def test_the_module_names_a_missing_tensor_too(name: str, tensor: str) -> None:
    raises(f"`{tensor}`", lambda: module_loss(grolang.load(name), make(**{tensor: None})))


@pytest.mark.parametrize("scope", ["group", "batch"])
def test_the_module_names_a_missing_group_whatever_its_schedule(scope: str) -> None:
    method = method_of(PROMPTS + f"anchor = mean(logp over group) + mean(logp over {scope})\nomega(z) = exp(z)")
    raises("`group`", lambda: module_loss(method, make(group=None)))


def test_missing_scores_are_named() -> None:
    raises("scores['correct']", lambda: grolang.load("reinforce").coefficients(make(scores={})))
    raises("greedy_scores['correct']", lambda: grolang.load("remax").coefficients(make(greedy_scores={})))


def test_a_tensor_that_nothing_mentions_is_not_asked_for() -> None:
    batch = grolang.Batch(mask=make().mask, scores=make().scores)
    assert torch.isfinite(grolang.load("reinforce").coefficients(batch)).all()


@pytest.mark.parametrize(
    "penalty",
    ["0.1 * (logp - logp_ref)", "mean(entropy over tokens)", "logp * 2 + logp_old"],
)
def test_what_only_the_penaltys_value_reads_is_among_the_needs(penalty: str) -> None:
    """The loss reports the penalty's value, so the loop must supply what it reads."""
    method = method_of(PROMPTS + f"penalty = {penalty}")
    needs, batch = method.needs, make()
    given = batch.replace(
        logp_ref=batch.logp_ref if needs.reference else None,
        entropy=batch.entropy if needs.entropy else None,
        logp_old=batch.logp_old if needs.old else None,
    )
    assert torch.isfinite(method.loss(given))
    assert torch.isfinite(module_loss(method, given))


def test_evaluating_a_method_asks_for_nothing_beyond_its_needs() -> None:
    """A measure that omega does not read needs no reference model, also where it is reported as a part."""
    method = method_of("data preference\nreward = label\nmeasure = sum(logp - logp_ref over tokens)")
    batch = make() if method.needs.reference else make(logp_ref=None)
    assert torch.isfinite(method.evaluate(batch).coefficients).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("name", "field"), [("dpo", "logp"), ("dpo", "logp_ref"), ("grpo", "logp_old"), ("reinforce", "scores")]
)
def test_a_value_that_is_not_finite_is_named_with_its_row(name: str, field: str, bad: float) -> None:
    batch = make()
    if field == "scores":
        score = batch.scores["correct"].clone()
        score[3] = bad
        batch, shown = batch.replace(scores={"correct": score}), "`correct`"
    else:
        values = getattr(batch, field).clone()
        values[3, 1] = bad
        batch, shown = batch.replace(**{field: values}), f"`{field}`"
    try:
        found = grolang.load(name).coefficients(batch)
    except grolang.GroError as error:
        assert "row 3" in str(error) or "group 1" in str(error) or shown in str(error)
    else:  # an infinity may saturate a bounded function; a NaN may not vanish
        assert abs(bad) == float("inf") and torch.isfinite(found).all()


def test_a_loss_that_is_not_a_number_is_an_error() -> None:
    """Coefficients that do not read logp are finite; the loss that multiplies it must not become NaN in silence."""
    logp = make().logp
    assert logp is not None
    logp = logp.clone()
    logp[0, 0] = float("nan")
    raises("logp", lambda: grolang.load("reinforce").loss(make(logp=logp)))


@pytest.mark.parametrize("kind", ["mean", "max", "min", "std", "quantile"])
def test_a_reduction_over_no_tokens_at_all_is_an_error_in_words(kind: str) -> None:
    empty = grolang.Batch(mask=torch.zeros(S, T, dtype=torch.bool), logp=torch.zeros(S, T, dtype=torch.float64))
    inner = "logp, 0.5" if kind == "quantile" else "logp"
    method = method_of(PROMPTS + f"credit = mismatched({kind}({inner} over tokens))")
    raises("not finite", lambda: method.coefficients(make(mismatched=empty)))


@pytest.mark.parametrize("q", [-0.1, 1.5])
def test_a_quantile_beyond_0_and_1_is_an_error_wherever_its_q_comes_from(q: float) -> None:
    for words in (
        f"param q = {q}\ncredit = quantile(logp, q over tokens)",
        f"credit = quantile(logp, {q / 2} + {q / 2} over tokens)",
    ):
        raises("quantile", lambda words=words: method_of(PROMPTS + words).coefficients(make()))
    given = method_of(PROMPTS + "param q = 0.5\ncredit = quantile(logp, q over tokens)")
    raises("quantile", lambda: given.replace(q=q).coefficients(make()))


# --- places where a gradient has an edge --------------------------------------------------------------------


def test_a_greedy_value_in_a_penalty_of_group_scope_counts_each_group_once() -> None:
    """penalty = greedy(correct) · mean(logp over group), one value per group, once for each of its sequences."""
    batch = make()
    assert batch.logp is not None
    for steps, per_group in (
        ("sum over tokens, mean over sequences", 2 / S),
        ("sum over tokens, mean over group, mean over groups", 1 / 3),
        ("sum over tokens, sum over group, sum over groups", 1.0),
    ):
        words = PROMPTS + f"aggregate = {steps}\n"
        penalised = method_of(words + "penalty = greedy(correct) * mean(logp over group)").coefficients(batch)
        found = penalised - method_of(words).coefficients(batch)
        want = torch.zeros_like(found)
        for g, greedy in enumerate((0.1, 0.2, 0.3)):
            rows = slice(2 * g, 2 * g + 2)
            want[rows] = -per_group * greedy / float(batch.mask[rows].sum())
        torch.testing.assert_close(found, want * batch.mask, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("penalty", "slope"),
    [
        ("clip(-50, logp, -60)", 0.0),  # min(max(-50, logp), -60) = -60
        ("clip(-60, -1, logp - 50)", 1.0),  # min(max(-60, -1), logp - 50) = logp - 50
        ("clip(-50, -1, logp - 50)", 1.0),
        ("clip(logp, -50, -60)", 0.0),
        ("clip(logp, -50, 0)", 1.0),
        ("clip(-1000, logp, 0)", 1.0),
        ("clip(5, -50, logp)", 1.0),
    ],
)
def test_clip_has_the_slope_of_its_min_and_max_also_where_its_bounds_cross(penalty: str, slope: float) -> None:
    batch = make()
    words = PROMPTS + "aggregate = sum over batch\n"
    found = method_of(words + f"penalty = {penalty}").coefficients(batch) - method_of(words).coefficients(batch)
    torch.testing.assert_close(found, -slope * batch.mask.double(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "penalty",
    ["(logp / s if s > 0 else 0)", "sqrt(logp - logp) if 1 > 2 else logp", "(1 / s) * logp if s > 0 else logp"],
)
def test_the_branch_not_taken_never_spoils_a_gradient(penalty: str) -> None:
    method = method_of(PROMPTS + f"s = std(logp - logp over tokens)\npenalty = {penalty}")
    assert torch.isfinite(method.coefficients(make())).all()


def test_a_spread_of_equal_values_has_a_gradient_of_zero() -> None:
    method = method_of(PROMPTS.replace("= correct", "= 0 * correct") + "penalty = std(logp over tokens)")
    assert (method.coefficients(make(logp=torch.full((S, T), -0.1).double())) == 0).all()


# --- upsilon ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upsilon", ["a * length - a", "a * length - 0.5 * a", "a * group_size - a"])
def test_an_increasing_upsilon_is_not_refuted_with_values_that_cannot_be(upsilon: str) -> None:
    """`length` and `group_size` are whole numbers of at least 1."""
    assert torch.isfinite(method_of(PROMPTS + f"upsilon(a) = {upsilon}").coefficients(make())).all()


def test_a_parameter_value_that_makes_upsilon_fall_is_an_error() -> None:
    words = PROMPTS + "param k = 1\nupsilon(a) = k * a"
    raises("increasing", lambda: method_of(words, k=-1.0).coefficients(make()))


@pytest.mark.parametrize("words", ["credit = 1 / length ^ (-inf)", "upsilon(a) = a ^ inf", "credit = 2 ^ -inf"])
def test_an_infinite_exponent_is_checked_without_a_crash(words: str) -> None:
    try:
        found = method_of(PROMPTS + words).coefficients(make())
    except grolang.GroError:
        return
    assert torch.isfinite(found).all()


def test_a_weight_of_infinity_where_the_advantage_is_0_gives_no_gradient() -> None:
    """c = s · w with s = υ = 0 in the end and w = log(0) beforehand: 0, not 0 · ∞."""
    method = method_of("data prompts\nscore correct\nadvantage = max(mean(logp over batch), 0)\ncredit = log(correct)")
    assert method.schedule.kind == "factored"
    batch = make(scores={"correct": torch.zeros(S, dtype=torch.float64)})
    assert not method.coefficients(batch).any()
    hidden = torch.randn(S, T, 3, dtype=torch.float64, requires_grad=True)
    module_loss(method, batch, hidden=hidden).backward()
    assert hidden.grad is not None and not hidden.grad.any()
