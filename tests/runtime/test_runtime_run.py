"""Whole runs on a tiny model: they learn, they leave behind what they should, and they say what is wrong first."""

from __future__ import annotations

import errno
import inspect
import io
import signal
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import Write, lines, rows_of
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import grolang
from grolang import GroError
from grolang.cli import main
from grolang.cli.run import run as command
from grolang.language.library import built_in
from grolang.runtime import Outcome, RunSettings, checkpoints, interrupts, method_training, resolve, start
from grolang.runtime.progress import Screen
from grolang.runtime.record import Record
from grolang.runtime.settings import tomllib

QUICK = {"steps": 2, "batch": 6, "lr": 1e-3, "max_completion": 6, "micro_batch": 16}
NATS = "nll/completions"
VOWELS = (
    "def share(completions, **columns):\n    return [sum(c in 'aeiou' for c in text) / 6 for text in completions]\n"
)


def run(tiny: str, output: Path, method: str, data: str, said: io.StringIO | None = None, **flags: Any) -> Outcome:
    given = QUICK | {"model": tiny, "output": str(output), "method": method, "data": data} | flags
    return start(given, None, Console(file=said or io.StringIO()))


def weights(output: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(output / "model").state_dict()


def test_demonstrations_lower_the_held_out_loss(tiny: str, tmp_path: Path, write: Write) -> None:
    held = write(rows_of("demonstrations", 100)[80:], "held.jsonl")
    data = write(rows_of("demonstrations", 80))
    out = run(tiny, tmp_path / "out", "sft", data, eval_data=held, steps=30, lr=5e-3, batch=16)
    assert out.after[NATS] < out.before[NATS] - 1.0


def test_pairs_raise_the_held_out_preference(tiny: str, tmp_path: Path, write: Write) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "yes" * (1 + i % 2), "rejected": "no" * (1 + i % 3)} for i in range(60)]
    out = run(tiny, tmp_path / "out", "dpo", write(rows), steps=15, lr=2e-3, batch=16)
    assert out.before["rewards/accuracies"] == 0.5  # the reference itself prefers nothing
    assert out.after["rewards/accuracies"] == 1.0
    last = lines(tmp_path / "out")[-1]
    assert last["rewards/margins"] > 0.05 and last["rewards/accuracies"] > 0.9
    assert last["rewards/chosen"] - last["rewards/rejected"] == pytest.approx(last["rewards/margins"], abs=1e-5)


def test_prompts_raise_the_reward(tiny: str, tmp_path: Path, write: Write) -> None:
    (tmp_path / "rewards.py").write_text(VOWELS)
    out = run(
        tiny, tmp_path / "out", "rloo", write(rows_of("prompts")), steps=25, lr=1e-2,
        score={"correct": f"{tmp_path / 'rewards.py'}:share"}, group=8,
    )  # fmt: skip
    found = [line["reward"] for line in lines(tmp_path / "out")]
    assert sum(found[-5:]) / 5 > sum(found[:5]) / 5 + 0.2
    assert out.after["correct/sampled"] > out.before["correct/sampled"] + 0.2


def test_an_inherited_score_that_nothing_reads_is_not_asked_for(tiny: str, tmp_path: Path, write: Write) -> None:
    """Else data without `answer` could not be trained on, and the best model would be chosen by a foreign score."""
    (tmp_path / "rewards.py").write_text(VOWELS)
    own, said = tmp_path / "own.gro", io.StringIO()
    own.write_text("method own\nextends grpo\nscore vowels\nreward = vowels\n")
    data = write([{"prompt": row["prompt"], "solution": row["answer"]} for row in rows_of("prompts")])
    given = {"vowels": f"{tmp_path / 'rewards.py'}:share"}
    out = run(tiny, tmp_path / "out", str(own), data, said, score=given, set={"beta": 0.1}, eval_every=2)
    assert "note: the score `correct` is not measured: `own` inherits it" in said.getvalue()
    assert "vowels/sampled" in out.after and not [name for name in out.after if name.startswith("correct")]
    assert "changes nothing" not in said.getvalue()
    run(tiny, tmp_path / "dapo", "dapo", write(rows_of("prompts"), "a.jsonl"), said, set={"beta": 0.1}, eval_rows=0)
    assert "note: `beta` = 0.1 changes nothing: no part of `dapo` reads it" in said.getvalue()


@pytest.mark.parametrize("method", sorted(built_in()))
def test_every_method_runs_and_leaves_a_whole_folder(method: str, tiny: str, tmp_path: Path, write: Write) -> None:
    kind, *more = grolang.load(method).data
    output = tmp_path / "out"
    data: Any = [write(rows_of(one), f"{one}.jsonl") for one in (kind, *more)]
    out = run(tiny, output, method, data, updates=2, steps=4)
    assert out.steps == 4 and out.before and out.before.keys() == out.after.keys()
    found = lines(output)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    wanted = {"loss", "grad_norm", "learning_rate", "omega/mean", "upsilon/zeros", "coefficient/mean", "num_tokens"}
    wanted |= {
        "prompts": {"reward", "reward_std", "completions/mean_length", "entropy", "rewards/correct/mean"},
        "unpaired": {"logps/chosen", "logps/rejected"},
        "preference": {"logps/chosen", "logps/rejected"},
        "demonstrations": set(),
    }[kind]
    if not grolang.load(method).scores:  # no reward either
        wanted -= {"reward", "reward_std", "rewards/correct/mean"}
    unrun = {"entropy", "omega/mean"}  # of sequences that went through a model; a step of equal rewards may have none
    assert all(wanted - (unrun if line.get("dead_ratio") == 1 else set()) <= line.keys() for line in found)
    at_times = {"evaluations", "tensorboard"} | {f"{name}.gro" for name in built_in()}  # what it extends
    assert {path.name for path in output.iterdir()} - at_times == {
        "method.gro", "run.json", "settings.toml", "versions.json", "metrics.jsonl", "samples", "evaluation.json",
        "evaluations.jsonl", "model", "checkpoints", "report.html",
    }  # fmt: skip
    assert "safetensors" in " ".join(path.name for path in (output / "model").iterdir())
    assert AutoTokenizer.from_pretrained(output / "model").eos_token == "|end|"
    assert weights(output)


def test_the_same_seed_gives_the_same_run(tiny: str, tmp_path: Path, write: Write) -> None:
    data = write(rows_of("prompts"))
    for name, micro_batch in (("a", 16), ("b", 16), ("c", 5)):
        run(tiny, tmp_path / name, "grpo", data, micro_batch=micro_batch, updates=2, steps=4)
    first, same, cut = (lines(tmp_path / name) for name in "abc")
    for one, two, three in zip(first, same, cut, strict=True):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in two.items() if k != "seconds"}
        assert three == pytest.approx(one | {"seconds": three["seconds"]}, rel=1e-3, abs=1e-5)


def test_epochs_stand_for_steps(tiny: str, tmp_path: Path, write: Write) -> None:
    rows, output = rows_of("preference"), tmp_path / "out"
    begun = {"method": "dpo", "model": tiny, "data": [write(rows)], "batch": 5, "updates": 2, "eval_rows": 0}
    again = {"output": str(output), "resume": True}

    def steps(**flags: Any) -> int:
        return start(flags, None, Console(file=io.StringIO())).steps

    assert steps(**begun, epochs=0.5, output=str(output)) == len(lines(output)) == 2 * -(-len(rows) // 10)
    assert "epochs = 0.5" in (output / "settings.toml").read_text()
    whole = 2 * -(-len(rows) // 5)
    assert steps(**again, epochs=1.0) == whole
    assert steps(**again, steps=whole + 2) == whole + 2  # steps that are asked for count
    with pytest.raises(GroError, match="--steps and --epochs both say"):
        steps(**again, steps=whole, epochs=1.0)


def test_epochs_need_no_steps_that_updates_divide(tiny: str, tmp_path: Path, write: Write) -> None:
    flags = {"method": "dpo", "model": tiny, "data": [write(rows_of("preference"))], "epochs": 1.0, "updates": 7}
    assert resolve(flags)[1].epochs == 1  # and 7 does not divide the 60 steps that are the default


def test_a_resumed_run_is_the_run_that_was_never_stopped(tiny: str, tmp_path: Path, write: Write) -> None:
    data = write(rows_of("prompts"))
    flags = {"updates": 2, "lr": 1e-2, "score": {"correct": "length"}}
    run(tiny, tmp_path / "whole", "grpo", data, steps=8, **flags)
    run(tiny, tmp_path / "cut", "grpo", data, steps=4, save_every=2, **flags)
    with (tmp_path / "cut/metrics.jsonl").open("a") as file:  # what a kill leaves: a line without a checkpoint
        file.write('{"step": 5, "loss"')
    start({"output": str(tmp_path / "cut"), "resume": True, "steps": 8}, None, Console(file=io.StringIO()))
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    for one, two in zip(lines(tmp_path / "whole"), lines(tmp_path / "cut"), strict=True):
        assert one == two | {"seconds": one["seconds"]}
    assert len(list((tmp_path / "cut/checkpoints").iterdir())) == 2


def test_demonstrations_join_prompts(tiny: str, tmp_path: Path, write: Write) -> None:
    (tmp_path / "mixed.gro").write_text(
        "method mixed\ndata prompts + demonstrations\ngroup 2\nscore correct = exact_match\n"
        "reward = 1 if demonstration > 0 else correct - mean(correct over group)\n"
        "report shown = demonstration\n"
    )
    prompts, shown = write(rows_of("prompts"), "p.jsonl"), write(rows_of("demonstrations"), "d.jsonl")
    data: Any = (prompts, shown)
    run(tiny, tmp_path / "out", str(tmp_path / "mixed.gro"), data)
    line = lines(tmp_path / "out")[0]
    assert line["report/shown"] == pytest.approx(1 / 3)
    assert line["completions/max_length"] <= 6


def test_ctrl_c_finishes_the_step_and_saves(tiny: str, tmp_path: Path, write: Write) -> None:
    (tmp_path / "stop.py").write_text(
        "import os, signal\ncalls = []\n"
        "def stop(completions, **columns):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 5:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return [0.0] * len(completions)\n"
    )
    data, score = write(rows_of("prompts")), {"correct": f"{tmp_path / 'stop.py'}:stop"}
    before = signal.getsignal(signal.SIGINT)  # a shell starts a job in the background with SIGINT ignored
    out = run(tiny, tmp_path / "out", "rloo", data, steps=50, eval_rows=0, score=score)
    assert out.interrupted and out.steps == 5
    assert weights(tmp_path / "out") and signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in (tmp_path / "out/checkpoints").iterdir()] == ["step-00000005"]
    assert "interrupted" in (tmp_path / "out/report.html").read_text()


def test_sigterm_before_the_first_step_is_noted_and_the_run_can_go_on(
    tiny: str, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, store = write(rows_of("preference")), method_training.store

    def stopped(*given: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return store(*given)

    with monkeypatch.context() as patch:
        patch.setattr(method_training, "store", stopped)
        assert run(tiny, tmp_path / "out", "dpo", data).interrupted
    record = Record(tmp_path / "out")
    assert (record.status, record.steps) == ("interrupted", 0) and (tmp_path / "out/report.html").is_file()
    resumed = run(tiny, tmp_path / "out", "dpo", data, resume=True)
    assert (resumed.steps, Record(tmp_path / "out").status) == (QUICK["steps"], "finished")


OVER = threading.Event()


def test_a_second_ctrl_c_stops_at_once_and_leaves_a_report(
    tiny: str, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "_tell", interrupts._tell)  # the score's own is to go with this test
    (tmp_path / "stop.py").write_text(
        "import signal, threading\nfrom grolang.runtime import interrupts\nfrom test_runtime_run import OVER\n"
        "calls, heard, main = [], threading.Event(), threading.main_thread().ident\n"
        "def twice():\n"
        "    interrupts._tell = heard.set\n"
        "    for until in (heard, OVER):\n"
        "        signal.pthread_kill(main, signal.SIGINT)\n"
        "        while not until.wait(0.1):\n"  # a signal in the moment before a thread waits does not wake it
        "            signal.pthread_kill(main, signal.SIGURG)\n"
        "def stop(completions, **columns):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3:\n"
        "        twice()\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    data, score = write(rows_of("prompts")), {"correct": f"{tmp_path / 'stop.py'}:stop"}
    OVER.clear()
    before = signal.signal(signal.SIGURG, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tiny, tmp_path / "out", "rloo", data, steps=50, eval_rows=0, score=score)
    finally:
        OVER.set()
        signal.signal(signal.SIGURG, before)
    page = (tmp_path / "out/report.html").read_text()
    assert "interrupted" in page and "2 of 50" in page


def test_settings_come_from_flags_then_the_file_then_the_kind(tiny: str, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f'method = "dpo"\nmodel = "{tiny}"\nsteps = 7\nbatch = 3\n[set]\nbeta = 0.3\n')
    method, settings = resolve({"steps": 9, "set": {"beta": 0.5}}, config)
    assert (settings.steps, settings.batch, method.params["beta"]) == (9, 3, 0.5)
    assert settings.lr == 1e-6 and resolve({"method": "dpo"})[1].lr > 1e-5


def test_resolved_settings_repeat_the_run(tiny: str, tmp_path: Path, write: Write) -> None:
    data = write(rows_of("unpaired"))
    run(tiny, tmp_path / "a", "kto", data, set={"beta": 0.3}, steps=2)
    saved = tmp_path / "a/settings.toml"
    assert tomllib.loads(saved.read_text())["set"] == {"beta": 0.3}
    start({"output": str(tmp_path / "b")}, saved, Console(file=io.StringIO()))
    assert lines(tmp_path / "a")[-1]["loss"] == lines(tmp_path / "b")[-1]["loss"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"micro_batch": 0}, "--micro-batch 0: input should be greater than or equal to 1"),
        ({"temperature": 0.0}, "--temperature 0.0"),
        ({"schedule": "linaer"}, "--schedule linaer: input should be 'constant', 'linear' or 'cosine'"),
        ({"updates": 3}, "--steps 2 is no multiple of --updates 3: give --steps 3"),
        ({"stesp": 3}, "there is no setting `stesp`"),
        ({"set": {"betta": 0.1}}, "betta"),
        ({"data": "nowhere.jsonl"}, "there is no file nowhere.jsonl"),
        ({"model": "nowhere/at all"}, "there is no folder nowhere/at all\n help: check the path that --model gives"),
        ({"model": __file__}, "test_runtime_run.py is a file"),
        ({"method": "rloo", "group": 1}, "error[E903]: a group of one: `rloo` reduces `over others`"),
        (
            {"score": {"x": "length"}},
            "the method has no score of that name; it has `correct`\n help: write --score correct=",
        ),
        ({"max_completion": 62}, "the model's window is 64"),
        ({"resume": True}, "holds no run to resume"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    flags: dict[str, Any], said: str, tiny: str, tmp_path: Path, write: Write
) -> None:
    with pytest.raises(GroError) as caught:
        run(tiny, tmp_path / "out", **({"method": "grpo", "data": write(rows_of("prompts"))} | flags))
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_safetensors_are_refused(tiny: str, tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "pickled"
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(GroError, match="no model can be loaded from"):
        run(str(folder), tmp_path / "out", "sft", write(rows_of("demonstrations")))


def test_a_folder_that_holds_a_run_is_not_overwritten(tiny: str, tmp_path: Path, write: Write) -> None:
    data = write(rows_of("demonstrations"))
    run(tiny, tmp_path / "out", "sft", data)
    with pytest.raises(GroError, match="holds a run already"):
        run(tiny, tmp_path / "out", "sft", data)
    with pytest.raises(GroError, match="the method is not the one of"):
        run(tiny, tmp_path / "out", "dpo", write(rows_of("preference")), resume=True)


def test_a_run_that_has_no_checkpoint_is_neither_resumed_nor_overwritten(
    tiny: str, tmp_path: Path, write: Write
) -> None:
    data, output = write(rows_of("preference")), tmp_path / "out"
    with pytest.raises(GroError, match="no such held-out figure"):
        run(tiny, output, "dpo", data, eval_metric="nonsense", eval_every=1)
    for again in ({}, {"resume": True}):
        with pytest.raises(GroError, match=rf"no checkpoint(.|\n)*remove {output}, or give another --output"):
            run(tiny, output, "dpo", data, **again)


def test_an_output_that_cannot_be_written(tiny: str, tmp_path: Path, write: Write) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GroError, match="cannot make the folder"):
        run(tiny, tmp_path / "file/out", "sft", write(rows_of("demonstrations")))


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer(tiny: str, tmp_path: Path, write: Write) -> None:
    rows, huge = rows_of("prompts"), tmp_path / "huge.py"
    huge.write_text(
        "def score(completions, **columns):\n    return [1e38 * (-1) ** i for i in range(len(completions))]\n"
    )
    with pytest.raises(GroError, match="not finite"):
        run(tiny, tmp_path / "out", "rloo", write(rows), score={"correct": f"{huge}:score"}, eval_rows=0, group=8)
    assert not (tmp_path / "out/model").exists()


SPREAD = (
    "method spread\ndata prompts\ngroup 2\nscore correct\nreward = correct\n"
    "advantage = (reward - mean(reward over group)) / std(reward over group)\n"
)
EQUAL_ONCE = (
    "calls = []\n"
    "def score(completions, **columns):\n"
    "    calls.append(1)\n"
    "    same = len(calls) == 2\n"
    "    return [float(row) if not (same and row in (6, 7)) else 1.0 for row in range(len(completions))]\n"
)


@pytest.fixture
def spread(tmp_path: Path, write: Write) -> dict[str, Any]:
    """A method whose fourth group has no spread in the second step."""
    (tmp_path / "spread.gro").write_text(SPREAD)
    (tmp_path / "equal.py").write_text(EQUAL_ONCE)
    return {
        "method": str(tmp_path / "spread.gro"), "data": write(rows_of("prompts")), "steps": 4, "eval_rows": 0,
        "score": {"correct": f"{tmp_path / 'equal.py'}:score"}, "batch": 5,
    }  # fmt: skip


def test_a_coefficient_that_is_not_finite_names_what_made_it_and_keeps_the_batch(
    spread: dict[str, Any], tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GroError, match="this is nan in row 6") as caught:
        run(tiny, tmp_path / "out", **spread)
    said = str(caught.value)
    assert "`std(reward over group)` = 0 in group 3" in said and "spread.gro:6:13" in said
    assert [path.name for path in (tmp_path / "out/checkpoints").iterdir()] == ["step-00000001"]
    batch = str(tmp_path / "out/failed-batch-2.safetensors")
    assert main(["replay", spread["method"], batch]) == 1
    shown = capsys.readouterr()
    assert "row 6: '" in shown.out and "`std(reward over group)` = 0 in group 3" in shown.err
    mended = SPREAD.replace("std(reward over group)", "(std(reward over group) + 1e-4)")
    (tmp_path / "spread.gro").write_text(mended)
    assert main(["replay", spread["method"], batch]) == 0
    assert "every number is finite" in capsys.readouterr().out
    assert main(["replay", spread["method"], spread["method"]]) == 1
    assert "holds no batch" in capsys.readouterr().err


def test_a_step_that_is_not_finite_can_be_left_out_and_counted(
    spread: dict[str, Any], tiny: str, tmp_path: Path
) -> None:
    console = Console(file=io.StringIO(), width=200)
    given = QUICK | spread | {"model": tiny, "output": str(tmp_path / "out"), "on_nonfinite": "skip"}
    assert start(given, None, console).steps == 4
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "step 2 is left out" in said and "1 of 4 steps were left out" in said
    found = lines(tmp_path / "out")
    assert [line["skipped"] for line in found] == [0, 1, 1, 1]
    assert "loss" not in found[1] and found[2]["loss"] is not None
    assert (tmp_path / "out/failed-batch-2.safetensors").is_file()
    run(tiny, tmp_path / "one", **(spread | {"steps": 1}))
    run(tiny, tmp_path / "two", **(spread | {"on_nonfinite": "skip", "steps": 2}))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)
    start({"output": str(tmp_path / "two"), "resume": True, "steps": 3}, None, Console(quiet=True))
    assert [line["skipped"] for line in lines(tmp_path / "two")] == [0, 1, 1]


def test_a_score_that_fails_later_loses_nothing(tiny: str, tmp_path: Path, write: Write) -> None:
    fails = tmp_path / "fails.py"
    fails.write_text(
        "calls = []\n"
        "def score(completions, **columns):\n"
        "    calls.append(1)\n"
        "    return [float(len(c)) for c in completions] if len(calls) != 4 else None\n"
    )
    given = {"score": {"correct": f"{fails}:score"}, "eval_rows": 0, "steps": 6}
    data = write(rows_of("prompts"))
    with pytest.raises(GroError, match="gave None instead of a list"):
        run(tiny, tmp_path / "out", "rloo", data, **given)
    start({"output": str(tmp_path / "out"), "resume": True}, None, Console(file=io.StringIO()))
    fails.write_text("def score(completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    run(tiny, tmp_path / "whole", "rloo", data, **given)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_goes_on_when_nobody_reads_what_it_says(tiny: str, tmp_path: Path, write: Write) -> None:
    """As `grolang run … | head` has it once head has read enough."""

    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    flags = QUICK | {"model": tiny, "method": "sft", "data": write(rows_of("demonstrations"))}
    outcome = start(flags | {"output": str(tmp_path / "out"), "steps": 2}, None, Screen(file=Gone()))
    assert outcome.steps == 2 and not outcome.interrupted and len(lines(tmp_path / "out")) == 2


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(
    tiny: str, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, real = write(rows_of("demonstrations")), checkpoints.save_file

    def full(tensors: dict[str, torch.Tensor], path: str) -> None:
        if "step-00000004" in path and "optimizer" in path:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    said = io.StringIO()
    with pytest.raises(GroError, match="No space left on device"):
        run(tiny, tmp_path / "out", "sft", data, said, steps=6, save_every=2)
    assert f"2 steps saved; --resume --output {tmp_path / 'out'} goes on from there" in said.getvalue()
    assert [path.name for path in (tmp_path / "out/checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    start({"output": str(tmp_path / "out"), "resume": True}, None, Console(file=io.StringIO()))
    run(tiny, tmp_path / "whole", "sft", data, steps=6)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_data_file_cut_short_while_it_is_trained_on_changes_nothing(tiny: str, tmp_path: Path, write: Write) -> None:
    """Rows are read into an Arrow table before the first step."""
    (tmp_path / "cut.py").write_text(
        "calls = []\n"
        "def score(completions, **columns):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == 2: open({str(tmp_path / 'cut.jsonl')!r}, 'r+').truncate(100)\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    given = {"score": {"correct": f"{tmp_path / 'cut.py'}:score"}, "eval_rows": 0, "steps": 6}
    cut, whole = write(rows_of("prompts"), "cut.jsonl"), write(rows_of("prompts"), "whole.jsonl")
    run(tiny, tmp_path / "out", "rloo", cut, **given)
    assert Path(cut).stat().st_size == 100
    run(tiny, tmp_path / "whole", "rloo", whole, **given)
    one, two = weights(tmp_path / "out"), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_conversations_train(tiny_chat: str, tmp_path: Path, write: Write) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["answer"]} for row in rows_of("prompts")
    ]
    out = run(tiny_chat, tmp_path / "out", "rloo", write(rows), group=2)
    assert out.steps == 2 and "correct/greedy" in out.after


@pytest.mark.parametrize(
    ("method", "files"),
    [
        ("kto", ["unpaired"]),
        ("dpo", ["preference"]),
        ("sft", ["demonstrations-train"]),
        ("rloo", ["prompts-train"]),
        ("gro_mixed", ["prompts-train", "demonstrations-train"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_real_rows_train_through_the_same_path(
    method: str, files: list[str], gsm8k: Path, tmp_path: Path, write: Write
) -> None:
    """GSM8K, every kind of data, with a small model made at random: the loop, not the arithmetic, is under test."""
    from conftest import tiny_model, tokenizer

    folder = tmp_path / "model"
    tiny_model(max_position_embeddings=2048).save_pretrained(folder)
    tokenizer().save_pretrained(str(folder))
    every = {name: (gsm8k / f"{name}.jsonl").read_text().splitlines()[:60] for name in files}
    data: Any = tuple(write("\n".join(rows), f"{name}.jsonl") for name, rows in every.items())
    fewer = {"group": 2} if len(files) > 1 else {}
    out = run(str(folder), tmp_path / "out", method, data, steps=4, batch=4, lr=1e-2, **fewer)
    assert out.steps == 4
    found = pq.read_table(tmp_path / "out/samples", partitioning=None)
    assert sum(found["demonstration"].to_pylist()) == {"sft": 16, "gro_mixed": 16}.get(method, 0)
    if method == "sft":
        assert out.after[NATS] < out.before[NATS] - 0.5


def test_the_command_line_end_to_end(
    tiny: str, tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = write(rows_of("unpaired")), str(tmp_path / "out")
    words = ["run", "kto", "--model", tiny, "--data", data, "--steps", "2", "--batch", "4", "--micro-batch", "2"]
    assert main([*words, "--set", "beta=0.2", "--set", "desirable=2", "--lr", "1e-3", "--output", output]) == 0
    said = capsys.readouterr().out
    assert "step 2/2" in said and "rewards/accuracies" in said and "the trained model is in" in said
    saved = tomllib.loads((tmp_path / "out/settings.toml").read_text())
    assert saved["set"] == {"beta": 0.2, "desirable": 2.0} and saved["micro_batch"] == 2
    assert main([*words, "--output", output]) == 1
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--set", "beta"], 1, "--set beta: expected NAME=VALUE"),
        (["--score", "rewards.py:right"], 1, "help: write --score NAME=rewards.py:right"),
        (["--learning-rate", "1e-6"], 2, "No such option: --learning-rate. Write --lr."),
        (["--beta=0.1"], 2, "No such option: --beta. Write --set beta=…."),
        (["--set", "beta=much"], 1, "`much` is not a number"),
        (["--set", "beta=-1"], 1, "beta"),
        (["--steps", "0"], 1, "--steps 0: input should be greater than or equal to 1"),
        (["--config", "nowhere.toml"], 1, "cannot read the settings file nowhere.toml"),
        (["--resume"], 1, "add --output FOLDER"),
        (["--stepps", "3"], 2, "--steps"),
    ],
)
def test_wrong_words_on_the_command_line(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "kto", *words]) == code
    assert said in capsys.readouterr().err


def test_every_setting_is_a_flag_and_every_flag_a_setting() -> None:
    flags = {name.rstrip("_") for name in inspect.signature(command).parameters} - {"file", "config"}
    assert flags == set(RunSettings.model_fields) - {"method"}
    assert all(field.description for field in RunSettings.model_fields.values())
