"""A reward model is trained on pairs by Eq. 1, exactly, and survives; with it all three stages run in this one tool."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEMPLATE, Write, lines, rows_of, tokenizer
from rich.console import Console
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification

from grolang import GroError
from grolang.cli import main
from grolang.runtime.examples import Encoder
from grolang.runtime.reward_training import Outcome
from grolang.runtime.reward_training import start as start_reward

QUICK: dict[str, Any] = {"steps": 4, "batch": 6, "lr": 1e-3, "warmup": 0, "eval_rows": 8}


def train(tiny: str, output: Path, data: str, **flags: Any) -> Outcome:
    given = QUICK | {"model": tiny, "output": str(output), "data": data} | flags
    return start_reward(given, None, Console(file=io.StringIO()))


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model/model.safetensors")


def pairs(count: int = 60) -> list[dict[str, Any]]:
    return [{"prompt": f"{i}?", "chosen": "yes" * (1 + i % 2), "rejected": "no" * (1 + i % 3)} for i in range(count)]


def test_pairs_are_told_apart(tiny: str, tmp_path: Path, write: Write) -> None:
    held = write(pairs(80)[60:], "held.jsonl")
    out = train(tiny, tmp_path / "out", write(pairs()), eval_data=held, steps=12, eval_rows=20)
    assert out.after["rewards/accuracies"] == 1.0 and out.after["loss"] < out.before["loss"] - 0.2
    assert lines(tmp_path / "out")[-1]["rewards/accuracies"] > 0.9


def test_the_best_is_kept_and_training_stops_where_it_gains_no_more(tiny: str, tmp_path: Path, write: Write) -> None:
    """The course is that of every run."""
    flags = {"eval_every": 2, "eval_metric": "rewards/margins", "early_stop": 1, "steps": 40, "track": "none"}
    out = train(tiny, tmp_path / "out", write(pairs()), **flags, lr=1e-9)
    values = [line["rewards/margins"] for line in lines(tmp_path / "out", "evaluations")]
    assert out.steps < 40 and values[-1] <= max(values[:-1]) and len(values) == out.steps // 2 + 1
    assert (tmp_path / "out/best").is_dir() == (max(values) > values[0])
    out = train(tiny, tmp_path / "learned", write(pairs()), **flags | {"early_stop": 0, "steps": 4})
    values = [line["rewards/margins"] for line in lines(tmp_path / "learned", "evaluations")]
    best = values.index(max(values))
    assert best > 0 and load_file(tmp_path / "learned/best/model.safetensors")
    told = json.loads((tmp_path / "learned/evaluation.json").read_text())["best"]
    assert told == {"step": 2 * best, "rewards/margins": max(values)} and out.steps == 4


def test_an_error_keeps_the_steps_before_it(tiny: str, tmp_path: Path, write: Write) -> None:
    data = write(pairs())
    with pytest.raises(GroError, match=r"the gradient of .*: not finite"):
        train(tiny, tmp_path / "out", data, lr=1e30, max_grad_norm=1e30)
    taken = len(lines(tmp_path / "out"))
    assert taken and [path.name for path in (tmp_path / "out/checkpoints").iterdir()] == [f"step-{taken:08d}"]
    with pytest.raises(GroError, match="--resume continues a run, and no run was named"):
        start_reward({"resume": True}, None, Console(quiet=True))


def test_the_first_loss_is_equation_1(tiny: str, tmp_path: Path, write: Write) -> None:
    """Against transformers' own classifier, row by row, on all pairs of a batch."""
    rows = pairs(6)
    train(tiny, tmp_path / "out", write(rows), steps=1, eval_rows=0, lr=1e-12)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/model").eval()

    def reward(row: dict[str, Any], side: str) -> torch.Tensor:
        ids = tokenizer()(row["prompt"] + row[side] + "|end|", return_tensors="pt")["input_ids"]
        return model(input_ids=ids).logits[0, 0]

    margins = torch.stack([reward(row, "chosen") - reward(row, "rejected") for row in rows])
    assert lines(tmp_path / "out")[0]["loss"] == pytest.approx(float(-logsigmoid(margins.detach()).mean()), abs=1e-5)


def test_micro_batches_and_resumes_change_nothing(tiny: str, tmp_path: Path, write: Write) -> None:
    data = write(pairs())
    train(tiny, tmp_path / "whole", data)
    train(tiny, tmp_path / "small", data, micro_batch=2)
    train(tiny, tmp_path / "cut", data, steps=2, schedule="constant")
    train(tiny, tmp_path / "same", data, schedule="constant")
    start_reward({"output": str(tmp_path / "cut"), "resume": True, "steps": 4}, None, Console(quiet=True))
    for one, two in (("whole", "small"), ("same", "cut")):
        ours, theirs = weights(tmp_path / one), weights(tmp_path / two)
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=0)
    cut, same = weights(tmp_path / "cut"), weights(tmp_path / "same")
    assert all(torch.equal(cut[name], same[name]) for name in same)
    assert [line["step"] for line in lines(tmp_path / "cut")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_several_processes_are_one(tiny: str, tmp_path: Path, write: Write) -> None:
    data, code = (
        write(pairs()),
        "import sys, json; from grolang.runtime.reward_training import start; start(json.loads(sys.argv[1]))",
    )
    script = tmp_path / "go.py"
    script.write_text(code)
    for processes in (1, 2):
        given = QUICK | {"model": tiny, "data": data, "output": str(tmp_path / str(processes)), "batch": 5}
        launch = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=29777"]
        words = [sys.executable, *(launch if processes > 1 else []), str(script), json.dumps(given)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(words, env=environment, check=True, timeout=200, capture_output=True)
    for one, two in zip(lines(tmp_path / "1"), lines(tmp_path / "2"), strict=True):
        assert two == pytest.approx(one | {"seconds": two["seconds"]}, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"temperature": 2.0}, "there is no setting `temperature` here; the settings are model"),
        ({"data": ("a.jsonl", "b.jsonl")}, "a reward model is trained on one file of pairs"),
        ({"precision": "fp16"}, "a reward model is trained in fp32 or bf16"),
        ({"model": "./nowhere"}, "there is no folder ./nowhere"),
        ({"steps": 0}, "--steps 0"),
    ],
)
def test_what_is_wrong_is_said_first(flags: dict[str, Any], said: str, tiny: str, tmp_path: Path, write: Write) -> None:
    with pytest.raises(GroError) as caught:
        train(tiny, tmp_path / "out", **({"data": write(pairs())} | flags))
    assert said in str(caught.value) and not (tmp_path / "out").exists()


def test_it_is_not_shared_out(tiny: str, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(GroError, match="a reward model is not shared out"):
        start_reward({"model": tiny, "data": write(rows_of("preference")), "output": str(tmp_path / "out")})


def test_rows_of_another_kind(tiny: str, tmp_path: Path, write: Write) -> None:
    with pytest.raises(GroError, match="has no column `chosen`, `rejected`"):
        train(tiny, tmp_path / "out", write(rows_of("unpaired")))


def test_all_three_stages_of_the_papers_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SFT, reward model, RL: on the embedded model and rows, by the commands of the manual, two steps each."""
    few = ["--steps", "2", "--batch", "4", "--lr", "1e-4"]
    sft, reward, rl = (str(tmp_path / name) for name in ("sft", "reward", "rl"))
    assert main(["run", "sft", "--output", sft, "--eval-rows", "0", *few]) == 0
    assert main(["reward", "train", "--model", f"{sft}/model", "--output", reward, "--eval-rows", "8", *few]) == 0
    told = ["--model", f"{sft}/model", "--score", f"correct={reward}/model", "--group", "2", "--max-completion", "8"]
    assert main(["run", "grpo", "--output", rl, "--eval-rows", "0", *told, *few]) == 0
    said = capsys.readouterr().out
    assert "rewards/accuracies" in said and f"--score NAME={reward}/model" in said.replace("\n", "")
    found = lines(tmp_path / "rl")
    assert [line["step"] for line in found] == [1, 2]
    assert len({line["reward"] for line in found}) == 2 and all(line["reward"] not in (0.0, 1.0) for line in found)
    assert main(["runs", str(tmp_path)]) == 0
    listed = {Path(line.split()[0]).name: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert set(listed) == {"sft", "reward", "rl"}
    assert re.search(r"reward model +2/2 +finished +rewards/accuracies +\S+ → \S+", listed["reward"])
    assert main(["report", reward]) == main(["compare", rl, reward]) == 2
    assert "holds a reward model" in capsys.readouterr().err


def test_a_reward_model_reads_what_the_template_writes_after_the_end(tmp_path: Path) -> None:
    """As TRL's reward models, and those of model cards, are trained; a policy never draws it."""
    told = tokenizer(TEMPLATE.replace("|end|{% endif %}", "|end|\n{% endif %}"))
    prompt, answer = [{"role": "user", "content": "1+1="}], [{"role": "assistant", "content": "2"}]
    written = told.apply_chat_template([*prompt, *answer], tokenize=False)
    assert written.endswith("2|end|\n")
    drawn, read = (Encoder(told, whole=whole) for whole in (False, True))
    (head,) = read.prompts([prompt])
    assert told.decode(head + read.completions([prompt], [answer])[0]) == written
    assert told.decode(drawn.completions([prompt], [answer])[0]) == "2|end|"
    assert all(told.decode(one.completions(["a"], ["b"])[0]) == "b|end|" for one in (drawn, read))
