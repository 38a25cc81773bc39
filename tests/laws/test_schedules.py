"""What the compiler reads off a program alone: its schedule, its factors, its first update."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import grolang
from grolang.compiler.execute import Run
from grolang.compiler.factor import factored
from grolang.compiler.method import from_source
from grolang.language import library
from grolang.language.scopes import Scope
from grolang.language.source import Source
from grolang.laws.strategies import batches

from . import programs

METHODS = sorted(library.built_in())
PARTS = (Scope.BATCH, Scope.GROUP, Scope.SEQUENCE)

#: the methods of the first version, by schedule; new ones need no row here
SCHEDULES = {
    "none": "awr marwil opo raft reinforce remax rloo sft",
    "token": "cispo dapo dr_grpo grpo ppo reinforce_pp reinforce_pp_baseline tis",
    "factored sequence sequence": "apo_zero gspo kto nca sppo",
    "factored group group": "cdpo cpl dpo dpo_norm exo ipo simpo",
    "factored group sequence": "apo_down cpo orpo rpo slic",
    "free group": "gro",
    "free batch": "bco",
}
FIRST = {
    "none": "cispo dapo dr_grpo gspo ppo reinforce_pp_baseline",
    "token": "grpo tis",
    "free batch": "reinforce_pp",
}


def described(method: grolang.Method) -> str:
    plan = method.schedule
    return {
        "factored": f"factored {plan.unit.word} {plan.part.word}",
        "free": f"free {plan.unit.word}",
    }.get(plan.kind, plan.kind)


def method_of(words: str) -> grolang.Method:
    return from_source(Source("drawn.gro", "method drawn\n" + words))


@pytest.mark.parametrize("expected", SCHEDULES)
def test_the_schedule_of_a_built_in_method(expected: str) -> None:
    for name in SCHEDULES[expected].split():
        assert described(grolang.load(name)) == expected, name


@pytest.mark.parametrize("expected", FIRST)
def test_the_schedule_of_a_first_update(expected: str) -> None:
    for name in FIRST[expected].split():
        assert described(grolang.load(name).on_policy) == expected, name


def test_a_quotient_of_probabilities_is_1_in_the_first_update() -> None:
    assert described(method_of(DRAWN + "omega(z) = exp(logp) / exp(logp_old)").on_policy) == "none"


def test_without_its_penalty_grpo_is_constant_in_the_first_update() -> None:
    assert described(grolang.load("grpo", beta=0).on_policy) == "none"


PAIRS = "data preference\nreward = label\nmeasure = sum(logp over tokens)\nanchor = opposite(measure)\nalpha = label\n"
DRAWN = "data prompts\ngroup 4\nscore correct\nreward = correct\n"
#: programs and their schedules: what factors, and what only looks like it
CASES = {
    PAIRS + "omega(z) = sigmoid(-z)": "factored group group",
    PAIRS + "omega(z) = sigmoid(-z)\npenalty = -logp": "factored group sequence",
    PAIRS + "omega(z) = sigmoid(-z)\npenalty = -logp * position": "free group",
    PAIRS + "omega(z) = sigmoid(-z)\npenalty = 0.1 * mean(logp over tokens) ^ 2": "factored group sequence",
    PAIRS + "omega(z) = sigmoid(-z)\npenalty = max(logp over tokens)": "free group",
    PAIRS + "omega(z) = sigmoid(-z)\ncredit = 0.9 ^ position": "factored group group",
    PAIRS + "omega(z) = sigmoid(-z)\ncredit = exp(logp_ref) if label > 0 else 0": "factored group group",
    PAIRS + "omega(z) = tanh(z) ^ 2 + abs(z)": "factored group group",
    PAIRS + "omega(z) = sigmoid(-z) if measure > 0 else 1": "factored group sequence",
    PAIRS + "omega(z) = exp(logp)": "token",
    PAIRS + "omega(z) = sigmoid(-z) * exp(logp)": "free group",
    DRAWN + "omega(z) = sigmoid(-z)\nmeasure = mean(logp over tokens)": "factored sequence sequence",
    DRAWN + "omega(z) = exp(z)\nmeasure = mean(logp over group)": "factored group group",
    DRAWN + "omega(z) = exp(z)\nmeasure = mean(logp over others)": "free group",
    DRAWN + "omega(z) = exp(z)\nmeasure = mean(logp over batch)\ncredit = position": "factored batch batch",
    DRAWN + "omega(z) = exp(logp) / exp(logp_old)": "token",
    DRAWN + "omega(z) = exp(z)\ncredit = to_go(logp_ref - logp, 1)": "free sequence",
    DRAWN + "penalty = sum(to_go(logp, 0.9) over tokens) ^ 2": "free sequence",
    DRAWN + "upsilon(a) = 0\npenalty = sum(to_go(logp, 0.9) over tokens) ^ 2": "factored sequence sequence",
    DRAWN + "omega(z) = entropy": "token",
    DRAWN + "omega(z) = max(entropy over tokens)": "factored sequence sequence",
}


@pytest.mark.parametrize("words", CASES)
def test_what_factors_and_what_does_not(words: str) -> None:
    assert described(method_of(words)) == CASES[words]


def assert_factors(method: grolang.Method, batch: grolang.Batch) -> int:
    """scale · weight is the coefficient, for every part that is claimed; how many are."""
    claimed = 0
    for part in PARTS:
        program = factored(method.program, part)
        if program is None:
            continue
        claimed += 1
        run = Run(program, batch, method.name)
        if not run.layout.rows.numel():
            continue
        assert program.outputs["weight"] not in program.current
        c, s, w = (run.per_token(name) for name in ("coefficient", "scale", "weight"))
        if not bool(c.isfinite().all()):
            continue
        product = torch.where(w == 0, 0, s * w)
        size = max(1.0, float(c.abs().max()))
        torch.testing.assert_close(product, c, rtol=1e-11, atol=1e-12 * size)
        if part is not Scope.GROUP or batch.group is not None:
            owner = run.layout.parent(Scope.TOKEN, part)
            for one in owner.unique():
                values = s[owner == one]
                assert bool((values == values[0]).all() | values.isnan().all()), f"two values within a {part.word}"
    return claimed


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=3, derandomize=True)
@given(data=st.data())
def test_the_factors_of_a_built_in_method(name: str, data: st.DataObject) -> None:
    method = grolang.load(name)
    batch = data.draw(batches(method.ir, smallest_group=2))
    claimed = assert_factors(method, batch)
    assert claimed or method.schedule.kind in ("token", "free")


@pytest.mark.parametrize("words", [words for words, kind in CASES.items() if "factored" in kind])
@settings(max_examples=3, derandomize=True)
@given(data=st.data())
def test_the_factors_of_a_program(words: str, data: st.DataObject) -> None:
    method = method_of(words)
    assert assert_factors(method, data.draw(batches(method.ir, smallest_group=2)))


def test_the_factors_of_random_methods(tmp_path: Path) -> None:
    kinds: dict[str, int] = {}
    for seed in range(70_000, 70_100):
        program = programs.draw(seed)
        method = program.load(tmp_path)
        kinds[method.schedule.kind] = kinds.get(method.schedule.kind, 0) + 1
        try:
            assert_factors(method, programs.tensors(program, programs.batch(program)))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}\n{program.text}\n{program.settings}") from error
    assert {"none", "token", "factored", "free"} <= set(kinds), kinds


# --- the first update ---------------------------------------------------------------------------------------


def assert_on_policy(method: grolang.Method, batch: grolang.Batch) -> None:
    """The same coefficients and reports as with `logp_old` set to `logp`, which is not read."""
    crossed = batch.mismatched
    now = batch.replace(logp_old=batch.logp)
    if crossed is not None:
        now = now.replace(mismatched=crossed.replace(logp_old=crossed.logp))
    try:
        want = method.evaluate(now)
    except grolang.GroError:  # not finite
        return
    bare = batch.replace(logp_old=None)
    if crossed is not None:
        bare = bare.replace(mismatched=crossed.replace(logp_old=None))
    found = method.on_policy.evaluate(bare)
    size = max(1.0, float(want.coefficients.abs().max()))
    torch.testing.assert_close(found.coefficients, want.coefficients, rtol=1e-10, atol=1e-12 * size)
    torch.testing.assert_close(found.loss, want.loss, rtol=1e-9, atol=1e-11 * size)
    for name, value in want.reports.items():
        torch.testing.assert_close(found.reports[name], value, rtol=1e-9, atol=1e-11, equal_nan=True)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=3, derandomize=True)
@given(data=st.data())
def test_the_first_update_of_a_built_in_method(name: str, data: st.DataObject) -> None:
    method = grolang.load(name)
    assert_on_policy(method, data.draw(batches(method.ir, smallest_group=2)))


def test_the_first_update_of_random_methods(tmp_path: Path) -> None:
    for seed in range(80_000, 80_100):
        program = programs.draw(seed)
        method = program.load(tmp_path)
        try:
            assert_on_policy(method, programs.tensors(program, programs.batch(program)))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}\n{program.text}\n{program.settings}") from error


#: losses on the ratio, and the derivative that language.md fixes at a ratio of exactly 1, in units of the advantage
KINKS = {
    "ratio * correct": 1.0,
    "clip(ratio, 1 - eps, 1 + eps) * correct": 1.0,
    "clip(ratio, 1, 1) * correct": 1.0,
    "clip(ratio, 1 + eps, 2) * correct": 0.0,
    "min(ratio * correct, clip(ratio, 1 - eps, 1 + eps) * correct)": 1.0,
    "min(ratio, 1) * correct": 0.5,
    "max(ratio, 1) * correct": 0.5,
    "relu(ratio - 1) * correct": 0.0,
    "abs(logp - logp_old) * correct": 0.0,
    "correct * (-logp_old + logp)": 1.0,
}


@pytest.mark.parametrize("loss", KINKS)
def test_a_kink_at_a_ratio_of_1_keeps_its_convention(loss: str) -> None:
    words = "data prompts\nscore correct\nreward = 0\nparam eps = 0.2\nratio = exp(logp - logp_old)\n"
    method = method_of(f"{words}penalty = -({loss})\naggregate = sum over tokens, sum over sequences")
    assert method.on_policy.needs.scope == "none" and not method.on_policy.needs.old
    logp = -torch.rand(2, 3, dtype=torch.float64)
    score = torch.tensor([2.0, -1.0], dtype=torch.float64)
    batch = grolang.Batch(mask=torch.ones(2, 3, dtype=torch.bool), logp=logp, scores={"correct": score})
    found = method.on_policy.coefficients(batch)
    torch.testing.assert_close(found, (KINKS[loss] * score)[:, None].expand(2, 3))
    torch.testing.assert_close(found, method.coefficients(batch.replace(logp_old=logp)))
