"""Held-out figures: each against its definition, without a trace in training, resumed, and as a reason to stop."""

from __future__ import annotations

import io
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import rows_of
from rich.console import Console
from transformers import AutoModelForCausalLM

from grolang import GroError
from grolang.runtime import Outcome, parquet, start
from grolang.runtime.evaluation import distinct, expected_best, untouched_generators
from grolang.runtime.figures import HELD_OUT, Best, best, better, key_metric

LENGTHS = "def lengths(completions, completion_ids, **_):\n    return [len(ids) / 6 for ids in completion_ids]\n"
CHANCE = "import random\ndef lengths(completions, **_):\n    return [random.random() for _ in completions]\n"


def run(tiny: str, output: Path, method: str, kind: str, text: str = LENGTHS, **flags: Any) -> Outcome:
    data, score = output.with_suffix(".jsonl"), output.with_suffix(".py")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_of(kind)))
    score.write_text(text)
    given = {
        "model": tiny, "data": str(data), "eval_data": str(data), "eval_rows": 8, "method": method,
        "output": str(output), "batch": 4, "steps": 6, "lr": 1e-2, "max_completion": 6, "keep": 1,
    }  # fmt: skip
    scored = {"group": 2, "score": {"correct": f"{score}:lengths"}} if kind == "prompts" else {}
    return start(given | scored | flags, None, Console(file=io.StringIO()))


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "evaluations.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


@pytest.fixture(scope="module")
def drawn(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """grpo with a reference model, five samples a prompt, evaluated every second step."""
    output = tmp_path_factory.mktemp("evaluation") / "out"
    run(tiny, output, "grpo", "prompts", eval_every=2, eval_samples=5, set={"beta": 0.1})
    return output


def test_it_is_measured_before_on_the_way_and_after(drawn: Path) -> None:
    found = lines(drawn)
    assert [line["step"] for line in found] == [0, 2, 4, 6]
    text = json.loads((drawn / "evaluation.json").read_text())
    assert {"step": 0, **text["before"]} == found[0] and {"step": 6, **text["after"]} == found[-1]
    assert found[0]["kl"] == pytest.approx(0, abs=1e-6) and found[-1]["kl"] > 1e-5
    assert 0 < found[0]["entropy"] < math.log(258)


def test_every_figure_is_what_its_completions_say(drawn: Path) -> None:
    for (step, table), line in zip(parquet.read_completions(drawn), lines(drawn), strict=True):
        rows = table.to_pylist()
        sampled = [row for row in rows if row["sample"] is not None]
        greedy = [row for row in rows if row["sample"] is None]
        assert step == line["step"] and (len(sampled), len(greedy)) == (40, 8)
        marks = [row["score/correct"] for row in sampled]
        assert line["correct/sampled"] == pytest.approx(sum(marks) / 40)
        assert line["correct/greedy"] == pytest.approx(sum(row["score/correct"] for row in greedy) / 8)
        groups = [marks[at : at + 5] for at in range(0, 40, 5)]
        for k in (2, 4, 5):
            tries = [max(some) for group in groups for some in itertools.combinations(group, k)]
            assert line[f"correct/pass@{k}"] == pytest.approx(sum(tries) / len(tries))
        assert line["completions/mean_length"] == sum(row["length"] for row in sampled) / 40
        assert sampled[0]["prompt"].endswith("=") and sampled[0]["answer"] == "0"


def test_every_held_out_figure_has_a_row(drawn: Path, pairs: Path) -> None:
    known = {name for row in HELD_OUT for name in row.names}
    general = {"pass@2": "pass@K", "pass@4": "pass@K", "pass@5": "pass@K"}
    for name in {**lines(drawn)[0], **lines(pairs)[0]}:
        if name != "step" and name not in known:
            prefix, _, last = name.partition("/")
            assert prefix == "correct" and f"SCORE/{general.get(last, last)}" in known, name


def test_pass_at_k_is_unbiased() -> None:
    """Over every way that n samples can come out, its mean is the chance that one of k is right."""
    right, n = 0.3, 5
    for k in range(1, n + 1):
        mean = 0.0
        for outcome in itertools.product((0.0, 1.0), repeat=n):
            wins = sum(outcome)
            mean += right**wins * (1 - right) ** (n - wins) * expected_best(outcome, k)
        assert mean == pytest.approx(1 - (1 - right) ** k)
    assert expected_best([1.0, 0.0, 1.0, 0.0], 2) == pytest.approx(1 - math.comb(2, 2) / math.comb(4, 2))


def test_distinct_grams() -> None:
    assert distinct([[1, 2, 1, 2], [1, 2]], 1) == 2 / 6
    assert distinct([[1, 2, 1, 2], [1, 2]], 2) == 2 / 4
    assert distinct([[1]], 2) == 0


@pytest.fixture(scope="module")
def pairs(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pairs") / "out"
    run(tiny, output, "dpo", "preference", eval_every=3, eval_rows=9)
    return output


def test_pairs_have_accuracy_margin_and_nats(pairs: Path) -> None:
    first, _, last = lines(pairs)
    assert first["rewards/accuracies"] == 0.5 and first["rewards/margins"] == 0
    assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"])
    assert last["rewards/margins"] > 0 and last["rewards/accuracies"] > 0.5
    assert last["nll/chosen"] > 0 and last["nll/rejected"] > 0 and last["entropy"] > 0


def test_the_best_checkpoint_and_model_are_kept(drawn: Path, pairs: Path) -> None:
    for output in (drawn, pairs):
        found = json.loads((output / "evaluation.json").read_text())["best"]
        metric = next(name for name in found if name != "step")
        assert metric == key_metric(lines(output)[0]) and found[metric] == max(line[metric] for line in lines(output))
        kept = {path.name for path in (output / "checkpoints").iterdir()}
        assert kept == {f"step-{step:08d}" for step in (found["step"], 6) if step}
    if found["step"] == 6:
        ours, last = weights(pairs / "best"), weights(pairs / "model")
        assert all(torch.equal(ours[name], last[name]) for name in ours)


def test_training_does_not_notice_that_it_is_measured(tiny: str, tmp_path: Path) -> None:
    """The score is a random number: were the generator moved by the evaluations, the weights would differ."""
    run(tiny, tmp_path / "often", "rloo", "prompts", CHANCE, eval_every=1, steps=3)
    run(tiny, tmp_path / "never", "rloo", "prompts", CHANCE, eval_rows=0, eval_every=0, steps=3)
    often, never = weights(tmp_path / "often/model"), weights(tmp_path / "never/model")
    assert all(torch.equal(often[name], never[name]) for name in often)


def test_generators_stand_where_they_stood() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    first = draw()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    with untouched_generators():
        draw()
    assert draw() == first


def test_a_resumed_run_has_the_evaluations_of_the_run_that_was_never_stopped(tiny: str, drawn: Path) -> None:
    cut = drawn.parent / "cut"
    flags = {"eval_every": 2, "eval_samples": 5, "set": {"beta": 0.1}}
    run(tiny, cut, "grpo", "prompts", steps=3, **flags)
    assert [line["step"] for line in lines(cut)] == [0, 2, 3]
    start({"output": str(cut), "resume": True, "steps": 6}, None, Console(file=io.StringIO()))
    assert [line["step"] for line in lines(cut)] == [0, 2, 3, 5, 6]
    whole, again = lines(drawn), lines(cut)
    assert (again[0], again[1]) == (whole[0], whole[1])
    assert [step for step, _ in parquet.read_completions(cut)] == [0, 2, 3, 5, 6]


def test_it_stops_where_evaluations_bring_no_gain(tiny: str, tmp_path: Path) -> None:
    constant = "def lengths(completions, **_):\n    return [1.0] * len(completions)\n"
    out = run(tiny, tmp_path / "out", "grpo", "prompts", constant, steps=40, eval_every=1, early_stop=3)
    assert out.steps == 3 and not out.interrupted and out.after
    assert not (tmp_path / "out/best").exists()  # nothing was better than the start
    again = {"output": str(tmp_path / "out"), "resume": True, "early_stop": 0, "steps": 5}
    assert start(again, None, Console(file=io.StringIO())).steps == 5


def test_the_best_of_some_evaluations() -> None:
    found = [{"step": step, "nll/chosen": value} for step, value in enumerate((3.0, 2.0, 2.0, 2.5))]
    assert best(found, "nll/chosen") == Best("nll/chosen", 1, 2.0, 2)
    assert best(found, "kl") is None and best([], "kl") is None
    assert [better(name) for name in ("correct/sampled", "x/pass@8", "kl", "entropy", "rewards/margins", "odd")] == [
        "higher", "higher", "lower", "", "higher", "",
    ]  # fmt: skip
    assert key_metric(["nll/chosen", "rewards/accuracies", "a/greedy"]) == "rewards/accuracies"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"eval_metric": "correct/sampeld"}, "--eval-metric correct/sampeld: no such held-out figure"),
        ({"eval_rows": 0, "eval_every": 2}, "--eval-every: no row is held out"),
        ({"early_stop": 2}, "--early-stop 2 counts evaluations on the way: give --eval-every N as well"),
    ],
)
def test_what_is_asked_of_an_evaluation_must_be_there(
    flags: dict[str, Any], said: str, tiny: str, tmp_path: Path
) -> None:
    with pytest.raises(GroError) as caught:
        run(tiny, tmp_path / "out", "grpo", "prompts", **flags)
    assert said in str(caught.value)
