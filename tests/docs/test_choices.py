"""What docs/language.md says in "Where the specification leaves a choice", held against the code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import grolang
from grolang.compiler.method import Method, from_source
from grolang.language.checker import check
from grolang.language.source import Source

PROMPTS = "method mine\ndata prompts\nscore q\n"
PAIRS = "method mine\ndata preference\nreward = label\n"
MASK = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
BATCH = grolang.Batch(
    mask=MASK,
    group=torch.tensor([0, 0, 1, 1]),
    logp=-torch.arange(16.0, dtype=torch.float64).reshape(4, 4) / 8 - 0.1,
    scores={"q": torch.tensor([1.0, 0.0, 0.5, 9.0])},
    greedy_scores={"q": torch.tensor([1.0, 1.0, 0.0, 0.0])},
)


def method(text: str, **params: float) -> Method:
    return from_source(Source("mine.gro", text), **params)


def tokens(expression: str) -> list[list[float]]:
    """A value per token, as the coefficients of a method whose advantage it is; row by row without masked slots."""
    found = method(f"{PROMPTS}advantage = {expression}\naggregate = sum over batch\n").coefficients(BATCH)
    return [row[mask].tolist() for row, mask in zip(found, MASK)]


def figure(expression: str) -> float:
    return method(f"{PROMPTS}reward = q\nreport x = {expression}\n").evaluate(BATCH).reports["x"]


def penalty(expression: str, logp: list[float], aggregate: str = "sum over batch", **more: Tensor) -> list[float]:
    """The gradient of a penalty in the log-probs of one sequence."""
    batch = grolang.Batch(
        mask=torch.ones(1, len(logp), dtype=torch.bool),
        group=torch.tensor([0]),
        logp=torch.tensor([logp], dtype=torch.float64),
        scores={"q": torch.ones(1)},
        **more,
    )
    text = f"{PROMPTS}reward = 0 * q\npenalty = {expression}\naggregate = {aggregate}\n"
    return [value + 0.0 for value in (-method(text).coefficients(batch))[0].tolist()]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("position + 1", [[1, 2, 3], [1, 2], [1], []]),
        ("terminal(1)", [[0, 0, 1], [0, 1], [1], []]),
        ("to_go(1 + 0 * position, 0.5)", [[1.75, 1.5, 1], [1.5, 1], [1], []]),
        ("length * 10 + group_size", [[32, 32, 32], [22, 22], [11], []]),
    ],
)
def test_masks_may_have_holes(expression: str, expected: list[list[float]]) -> None:
    assert tokens(expression) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("3 and 5", 5), ("0 and 5", 0), ("3 or 5", 3), ("0 or 7", 7), ("not 0.5", 0), ("not 0", 1),
        ("1 < 2 < 3", 1), ("3 > 2 > 2", 0), ("-2^2", -4), ("2^3^2", 512), ("2^-1", 0.5),
        ("std(q * 0 + 0.1 over batch)", 0), ("mean(q * 0 + 0.1 over batch) == 0.1", 1),
        ("1 if sample_std(q over group) > 5 else 0", 0), ("mean(group_size over batch)", 5 / 3), ("group_size", 5 / 3),
        ("sum(mean(q over group) over batch)", 1.5), ("mean(q over batch)", 0.5),
        ("quantile(q, 0.25 over batch)", 0.25), ("exp(mean(log(q) over batch))", 0),
        ("quantile(q if q > 0 else inf, 0.5 over batch)", 1), ("quantile(q if q > 0 else inf, 0 over batch)", 0.5),
        ("max(quantile(log(q), 0.25 over batch), -3)", -3), ("1 / quantile(1 / (q - q ^ 1), 0.25 over batch)", 0),
    ],
)  # fmt: skip
def test_values(expression: str, expected: float) -> None:
    assert figure(expression) == pytest.approx(expected, abs=1e-15)


def test_the_sample_std_of_one_is_not_a_number() -> None:
    assert math.isnan(figure("min(sample_std(q over group) over batch)"))
    assert math.isnan(figure("quantile(sample_std(q over group), 0 over batch)"))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("min(logp, -1)", [0.5, 0.5, 1]), ("max(logp, -1)", [0.5, 0.5, 0]), ("clip(logp, -2, -1)", [1, 1, 1]),
        ("relu(logp + 1)", [0, 0, 0]), ("abs(logp + 1)", [0, 0, -1]), ("std(logp - sg(logp) over tokens)", [0, 0, 0]),
        ("max(logp over tokens)", [0.5, 0.5, 0]), ("quantile(logp, 0.5 over tokens)", [1, 0, 0]),
        ("quantile(logp, 0.25 over tokens)", [0.5, 0, 0.5]), ("sg(logp) * logp", [-1, -1, -2]),
        ("sign(logp) + (logp > -1) + (not logp)", [0, 0, 0]), ("log(logp + 1) if logp > 0 else 2 * logp", [2, 2, 2]),
        ("(logp + 2) ^ (position - 2)", [-2, -1, 0]), ("position ^ -logp", [0, 0, -4 * math.log(2)]),
        ("(sample_std(sum(logp over tokens) over group) if group_size > 1 else 3 * sum(logp over group))", [3, 3, 3]),
    ],
)  # fmt: skip
def test_derivatives_at_ties(expression: str, expected: list[float]) -> None:
    assert penalty(expression, [-1, -1, -2]) == pytest.approx(expected)


def test_entropy_is_a_number() -> None:
    assert penalty("entropy * logp", [-1.0, -2.0], entropy=torch.tensor([[3.0, 4.0]])) == [3, 4]


def two_groups(scope: str, aggregate: str) -> list[float]:
    """The gradient per token of a penalty of this scope: groups of two and of one sequence, with 3 + 2 and 1 tokens."""
    text = f"{PROMPTS}reward = 0\npenalty = {scope}\naggregate = {aggregate}\n"
    found = -method(text).coefficients(BATCH)
    return [float(found[0, 0]), float(found[1, 1]), float(found[2, 0])]


@pytest.mark.parametrize(
    ("scope", "aggregate", "expected"),
    [
        ("logp", "mean over tokens, mean over sequences / 5", [1 / 45, 1 / 30, 1 / 15]),
        ("sum(logp over tokens)", "mean over tokens / 7, mean over sequences / 5", [1 / 15, 1 / 15, 1 / 15]),
        ("sum(logp over tokens)", "mean over batch", [1 / 3, 1 / 3, 1 / 3]),
        ("sum(logp over tokens)", "mean over group, mean over groups", [1 / 4, 1 / 4, 1 / 2]),
        ("sum(logp over group)", "mean over tokens, mean over sequences", [2 / 3, 2 / 3, 1 / 3]),
        ("sum(logp over group)", "mean over batch / 7", [1 / 14, 1 / 14, 1 / 14]),
        ("sum(logp over group)", "sum over tokens, sum over group / 7, mean over groups", [1 / 2, 1 / 2, 1 / 2]),
        ("sum(logp over batch)", "mean over tokens, mean over sequences / 5", [1, 1, 1]),
    ],
)
def test_a_penalty_skips_steps(scope: str, aggregate: str, expected: list[float]) -> None:
    assert two_groups(scope, aggregate) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("sum over tokens, mean over sequences", [1 / 3, 1 / 3, 1 / 3]),
        ("mean over tokens, mean over sequences", [1 / 9, 1 / 6, 1 / 3]),
        ("mean over batch", [1 / 6, 1 / 6, 1 / 6]),
        ("mean over tokens, mean over batch", [1 / 9, 1 / 6, 1 / 3]),
        ("mean over group, mean over groups", [1 / 10, 1 / 10, 1 / 2]),
        ("mean over group, mean over batch", [1 / 10, 1 / 10, 1 / 2]),
        ("sum over tokens, mean over group, mean over groups", [1 / 4, 1 / 4, 1 / 2]),
        ("sum over tokens / 10, mean over sequences", [1 / 30, 1 / 30, 1 / 30]),
        ("sum over tokens, sum over group, mean over groups", [1 / 2, 1 / 2, 1 / 2]),
    ],
)
def test_weights_of_an_aggregation(aggregate: str, expected: list[float]) -> None:
    found = method(f"{PROMPTS}reward = 1\naggregate = {aggregate}\n").coefficients(BATCH)
    assert [float(found[0, 0]), float(found[1, 1]), float(found[2, 0])] == pytest.approx(expected, abs=1e-15)


def test_no_push_where_upsilon_is_zero() -> None:
    found = method(f"{PROMPTS}reward = q - q\nomega(z) = inf\n").coefficients(BATCH)
    assert bool((found == 0).all())


@pytest.mark.parametrize(
    "lines",
    [
        "upsilon(a) = 1", "upsilon(a) = sign(a)", "upsilon(advantage) = 2 * advantage",
        "upsilon(a) = advantage + length * 0", "omega(z) = abs(baseline)",
        "baseline = mean(label over batch)\nomega(z) = min(abs(baseline) + abs(advantage), length)",
    ],
)  # fmt: skip
def test_bodies_of_functions(lines: str) -> None:
    assert not check(Source("mine.gro", PAIRS + lines + "\n")).errors


@pytest.mark.parametrize("lines", ["omega(label) = 1", "x = 1\nomega(x) = 1", "omega(advantage) = 1"])
def test_the_argument_needs_a_name_of_its_own(lines: str) -> None:
    assert [finding.code for finding in check(Source("mine.gro", PAIRS + lines + "\n")).errors] == ["E203"]


def test_a_name_and_the_sigmoid() -> None:
    text = f"{PROMPTS}σ = 2\nreward = q\nreport x = σ * σ(0)\nµ = 1\nreport y = μ\n"
    assert method(text).evaluate(BATCH).reports == {"x": 1, "y": 1}


@pytest.mark.parametrize("line", ["own = 2 * q", "param own = 2", "score own"])
def test_a_name_and_the_form_that_came_after_version_1(line: str) -> None:
    text = f"{PROMPTS}{line}\nreward = q + own\nreport rank = 1 + sum(q > own(q) over others)\n"
    assert not check(Source("mine.gro", text)).errors


def test_parameters_make_terms_vanish() -> None:
    assert grolang.load("grpo").needs.reference
    assert not grolang.load("grpo", beta=0).needs.reference


@pytest.mark.parametrize("data", ["preference", "unpaired", "demonstrations", "prompts + demonstrations"])
def test_scores_are_allowed_with_every_data(data: str) -> None:
    assert not check(Source("mine.gro", f"method mine\ndata {data}\nscore q\nreward = q\n")).errors


def test_old_log_probs_of_a_demonstration() -> None:
    text = "method mine\ndata prompts + demonstrations\nscore q\nreward = 1\nomega(z) = logp - logp_old"
    batch = BATCH.replace(logp_old=BATCH.logp - 1, demonstration=torch.tensor([1.0, 0, 0, 0]))
    found = method(text + "\naggregate = sum over batch\n").coefficients(batch)
    assert found[0].abs().max() == 0 and found[1, 1] == pytest.approx(1)
    assert method("method mine\ndata demonstrations\nreward = logp_old").needs.old is False


def test_masked_slots_are_not_read_and_padding_counts_for_nothing() -> None:
    whole = method(f"{PROMPTS}reward = q\npenalty = logp ^ 2\n")
    spoilt = BATCH.replace(logp=BATCH.logp.masked_fill(~MASK, math.nan))
    assert torch.equal(whole.coefficients(spoilt), whole.coefficients(BATCH))
    shorter = {name: tensor[:3] for name, tensor in BATCH.tensors() if not name.endswith("]")}
    less = grolang.Batch(mask=MASK[:3], scores={"q": BATCH.scores["q"][:3]}, **shorter)
    assert torch.equal(whole.coefficients(less), whole.coefficients(BATCH)[:3])


def test_a_mismatched_row_is_padding_where_its_own_is() -> None:
    text = "method mine\ndata unpaired\nreward = label\nreport x = mean(mismatched(sum(logp over tokens)) over batch)\n"
    other = grolang.Batch(mask=torch.ones(4, 2, dtype=torch.bool), logp=-torch.ones(4, 2))
    batch = BATCH.replace(label=torch.ones(4), mismatched=other)
    assert method(text).evaluate(batch).reports["x"] == -2


def test_laws_exchange_scores_within_greedy_and_set_parameters_where_they_are() -> None:
    from grolang.laws.check import check_laws

    text = f"{PROMPTS}reward = q\nbaseline = greedy(q)\nlaw shift: invariant when q = q + any(group)\n"
    assert [verdict.good for verdict in check_laws(method(text), examples=20)] == [True]
    alone = text.replace("any(group)", "any(sequence)")  # a completion's is not that of the greedy one
    assert [verdict.good for verdict in check_laws(method(alone), examples=20)] == [False]
    text = (
        f"{PROMPTS}reward = q\nlaw g: loss -mean(q * sum(logp over tokens) over group) aggregate mean over sequences\n"
    )
    assert [verdict.good for verdict in check_laws(method(text), examples=20)] == [True]
    text = f"{PAIRS}law half: proportional to dpo with beta = 1e-12\n"
    assert not check(Source("mine.gro", text)).errors
    assert [f.code for f in check(Source("mine.gro", f"{PAIRS}law no: equals dpo with gone = 1\n")).errors] == ["E208"]


@pytest.mark.parametrize("guard", ["", " if group_size > 1 else 0"])
def test_a_group_of_one_has_no_others(guard: str) -> None:
    with pytest.raises(grolang.GroError) as raised:
        method(f"{PROMPTS}reward = q\nbaseline = mean(q over others){guard}\n").coefficients(BATCH)
    assert raised.value.diagnostics[0].code == "E903"


def test_rows_of_a_group_need_not_stand_together() -> None:
    whole = method(f"{PROMPTS}reward = q\nbaseline = mean(q over group)\n")
    order = torch.tensor([2, 0, 3, 1])
    moved = {name: tensor[order] for name, tensor in BATCH.tensors() if not name.endswith("]")}
    batch = grolang.Batch(mask=MASK[order], scores={"q": BATCH.scores["q"][order]}, **moved)
    assert torch.allclose(whole.coefficients(batch), whole.coefficients(BATCH)[order])


def test_what_is_inherited_must_fit_the_data() -> None:
    found = check(Source("mine.gro", "method mine\nextends rloo\ndata unpaired\n")).errors
    assert {finding.code for finding in found} == {"E402"}  # `over others`; the inherited `group` is let go
    assert not check(Source("mine.gro", "method mine\ndata unpaired\nadvantage = label\n")).findings
