"""Small programs that once gave a wrong number, a crash or a message about the wrong thing."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

import grolang
from grolang.compiler.emit import emit
from grolang.compiler.method import from_source
from grolang.language.checker import check
from grolang.language.source import Source
from grolang.laws.check import check_law
from grolang.laws.equivalence import asked, equivalence
from tests.laws.test_emitted_python import as_dict

PROMPTS = "method m\ndata prompts\nscore correct\nreward = correct\n"


def method_of(text: str) -> grolang.Method:
    return from_source(Source("m.gro", text))


def batch(**changes: Any) -> grolang.Batch:
    """Two groups of two, two tokens each."""
    generator = torch.Generator().manual_seed(0)
    logps = {
        name: -3 * torch.rand(4, 2, generator=generator, dtype=torch.float64)
        for name in ("logp", "logp_old", "logp_ref")
    }
    scores = torch.tensor([1.0, 0.0, 2.0, 5.0], dtype=torch.float64)
    made = grolang.Batch(
        torch.ones(4, 2, dtype=torch.bool), torch.tensor([0, 0, 1, 1]), **logps, scores={"correct": scores}
    )
    return made.replace(**changes)


def test_a_score_may_be_called_last() -> None:
    renamed = method_of(PROMPTS.replace("correct", "last"))
    given = batch()
    expected = method_of(PROMPTS).coefficients(given)
    assert torch.equal(renamed.coefficients(given.replace(scores={"last": given.scores["correct"]})), expected)


def test_what_vanishes_of_a_mismatched_value_leaves_the_completions_that_it_is_a_value_of() -> None:
    """The largest of x - x is 0, but one 0 for each mismatched completion: the method needs that pass to know them."""
    method = method_of(PROMPTS + "baseline = mismatched(max(logp_ref - logp_ref over tokens))\n")
    assert method.needs.mismatched and not method.needs.reference
    with pytest.raises(grolang.GroError, match="needs `mismatched`"):
        method.coefficients(batch())
    assert torch.equal(method.coefficients(batch(mismatched=batch())), method_of(PROMPTS).coefficients(batch()))


def test_a_stand_in_for_an_observable_carries_no_gradient() -> None:
    plain, pulled = PROMPTS + "penalty = 0.1 * logp\n", PROMPTS + "penalty = 0.1 * (logp - logp_ref)\n"
    pair = asked(method_of(pulled), method_of(plain), exchanges=["logp_ref = logp"])
    assert equivalence(pair, examples=20).good


@pytest.mark.parametrize("form", ["greedy(correct * z)", "mismatched(z + sum(logp over tokens))"])
def test_the_argument_of_omega_is_not_made_of_scores_or_of_log_probs(form: str) -> None:
    text = PROMPTS + f"measure = sum(logp over tokens)\nomega(z) = abs({form})\n"
    assert {finding.code for finding in check(Source("m.gro", text)).errors} & {"E306", "E307"}


def test_a_loss_per_sequence_may_say_that_it_is_averaged_over_sequences() -> None:
    text = PROMPTS + "law g: loss -reward * sum(logp over tokens) aggregate mean over sequences\n"
    method = method_of(text)
    assert check_law(method.ir.laws["g"], method, examples=20).good


def test_a_group_of_one_is_an_error_whatever_a_parameter_is() -> None:
    text = PROMPTS + "param k = 1\nbaseline = mean(k * correct over others)\n"
    alone = batch(group=torch.tensor([0, 0, 0, 1]))
    for k in (0.0, 1.0):
        with pytest.raises(grolang.GroError, match="group of one"):
            method_of(text).replace(k=k).coefficients(alone)


def test_infinity_in_a_method_is_no_obstacle_to_its_laws() -> None:
    text = PROMPTS + "omega(z) = clip(exp(logp - logp_old), -inf, 2)\n"
    same = PROMPTS + "omega(z) = min(exp(logp - logp_old), 2)\n"
    assert equivalence(asked(method_of(text), method_of(same)), examples=20).good


def test_a_question_may_set_a_parameter_that_only_the_second_method_has() -> None:
    scaled = PROMPTS + "param k = 2\nalpha = k\nomega(z) = 1 + 0 * z * k\n"
    assert equivalence(asked(method_of(PROMPTS), method_of(scaled), settings={"k": 1}), examples=20).good


@pytest.mark.parametrize(
    "lines",
    [
        "credit = (-2) ^ correct",
        "param cap = inf\ncredit = min(length, cap)",
        "omega(z) = clip(exp(logp - logp_old), -inf, 2)",
        "param rows = 2\nparam mask = 3\ncredit = rows * mask",
        "Layout = length + 1\nScope = length\ncredit = Layout * Scope",
        "param lambda = 2\ncredit = lambda",
    ],
)
def test_the_emitted_file_keeps_signs_infinities_and_names_apart(lines: str) -> None:
    method, made, given = method_of(PROMPTS + lines + "\n"), dict[str, Any](), batch()
    exec(compile(emit(method.ir), "emitted", "exec"), made)
    assert torch.equal(made["coefficients"](as_dict(given)), method.coefficients(given))


def test_a_branch_that_is_not_taken_is_not_blamed() -> None:
    text = PROMPTS + "s = std(correct over group)\ncredit = correct / s if s > 0 else log(correct - 5)\n"
    given = batch(scores={"correct": torch.tensor([1.0, 0.0, 2.0, 2.0], dtype=torch.float64)})
    with pytest.raises(grolang.GroError) as error:
        method_of(text).coefficients(given)
    assert "log(correct - 5)" in str(error.value).split("|")[2]


def test_a_demonstration_is_1_or_0() -> None:
    text = "method m\ndata prompts + demonstrations\nscore correct\nreward = correct + demonstration\n"
    with pytest.raises(grolang.GroError, match="must be 1 or 0"):
        method_of(text).coefficients(batch(demonstration=torch.tensor([2.0, 0, 0, 0])))


def test_a_child_may_leave_the_groups_of_its_parent() -> None:
    checked = check(Source("m.gro", "method m\nextends rloo\ndata preference\nreward = label\n"))
    assert checked.method is not None
    assert checked.method.group is None


def test_an_error_survives_a_worker() -> None:
    error = grolang.GroError.plain("broken", help="mend it")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_parameter_may_have_any_name() -> None:
    assert method_of(PROMPTS + "param source = 1\ncredit = source\n").replace(source=3).params == {"source": 3}


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(grolang.GroError, match="`mask` must be a tensor"):
        grolang.Batch(mask=[[True]])  # type: ignore[arg-type]
