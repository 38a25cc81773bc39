"""DeepSpeed's ZeRO in two real processes (gloo): the run of one, in every stage, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Write, rows_of
from safetensors.torch import load_file
from test_runtime_processes import environment, free_port, launch, lines
from test_runtime_processes import flags as fp64

from grolang.language.diagnostics import GroError
from grolang.runtime import sharding, zero
from grolang.runtime.processes import this_process
from grolang.runtime.settings import read_settings

installed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="no deepspeed: pip install 'grolang[deepspeed]'")


def flags(*given: Any) -> dict[str, Any]:
    """Five rows a step in micro-batches of two: the processes have unlike numbers of rows."""
    return fp64(*given) | {"precision": "fp32", "micro_batch": 2, "weight_decay": 0.1, "max_grad_norm": 0.1}


def launch_zero(flags: dict[str, Any], stage: int) -> None:
    """Through accelerate's launcher, in two processes; in stage 3 also the smallest weights are shared out."""
    config = Path(flags["output"]).parent / "deepspeed.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}))
    how = ["--deepspeed_config_file", str(config)] if stage == 3 else ["--zero_stage", str(stage)]
    words = ["--use_deepspeed", *how, "--num_processes", "2", "--num_machines", "1"]
    words += ["--main_process_port", str(free_port()), "-m", "grolang", "run"]
    for name, value in flags.items():
        flag = [] if name == "method" else ["--" + name.replace("_", "-")]
        value = "=".join(*value.items()) if isinstance(value, dict) else value
        words += flag if value is True else [*flag, str(value)]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *words],
        env=environment(), capture_output=True, text=True, timeout=480,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def same_run(one: dict[str, Any], many: dict[str, Any], name: str = "model") -> None:
    for first, second in zip(lines(one["output"]), lines(many["output"]), strict=True):
        assert second == pytest.approx(first | {"seconds": second["seconds"]}, rel=1e-4, abs=1e-6)
    ours, theirs = (load_file(Path(run["output"], f"model/{name}.safetensors")) for run in (one, many))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@installed
@pytest.mark.parametrize(
    ("stage", "method", "kind", "more"),
    [
        (1, "dpo", "preference", {}),
        (2, "gro", "prompts", {"score": {"correct": "length"}}),  # groups of equal rewards are run through no model
        (3, "grpo", "prompts", {"checkpointing": True}),
        (3, "gro", "prompts", {"score": {"correct": "length"}}),
        (3, "dpo", "preference", {}),
        (3, "kto", "unpaired", {"lora": 4}),
    ],
)
def test_shared_out_by_deepspeed_it_is_the_run_of_one(
    stage: int, method: str, kind: str, more: dict[str, Any], tiny: str, tmp_path: Path, write: Write
) -> None:
    """The same metrics and weights; a checkpoint that DeepSpeed and one process can go on from, and the other way."""
    data = write(rows_of(kind))
    one, many = (flags(tiny, data, method, tmp_path / name) | more for name in ("one", "many"))
    launch(one)
    launch(many | {"steps": 1})
    launch_zero({"output": many["output"], "resume": True, "steps": 2}, stage)
    launch_zero({"output": many["output"], "resume": True, "steps": 3}, stage)
    launch({"output": many["output"], "resume": True, "steps": 4})
    same_run(one, many, "adapter_model" if more.get("lora") else "model")


@pytest.mark.slow
@installed
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_that_is_not_finite_leaves_nothing_behind(stage: int, tiny: str, tmp_path: Path, write: Write) -> None:
    """The gradients that DeepSpeed holds when σ turns out to be 0 in one group are gone in the next step."""
    method = tmp_path / "spread.gro"
    method.write_text(
        "method spread\ndata prompts\ngroup 2\nscore correct\nreward = correct\n"
        "advantage = (reward - mean(reward over group)) / std(reward over group)\n"
    )
    (tmp_path / "scores.py").write_text(
        "def score(prompts, completions, **columns):\n"
        "    equal = ('2+0=', '2+1=', '2+2=')\n"
        "    return [1.0 if p in equal else float(sum(map(ord, c))) for p, c in zip(prompts, completions)]\n"
    )
    more = {"on_nonfinite": "skip", "score": {"correct": f"{tmp_path / 'scores.py'}:score"}, "steps": 8, "eval_rows": 0}
    data = write(rows_of("prompts"))
    one, many = (flags(tiny, data, str(method), tmp_path / name) | more for name in ("one", "many"))
    launch(one)
    launch_zero(many, stage)
    left_out = [line["skipped"] for line in lines(one["output"])]
    assert 0 < left_out[-2] <= left_out[-1] < 8, left_out
    same_run(one, many)


def test_what_deepspeed_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(GroError, match="leave out --shard"):
        sharding.wanted(True, this_process())
    monkeypatch.setattr("grolang.runtime.adapters.find_spec", lambda name: None)
    with pytest.raises(GroError, match=r"pip install 'grolang\[deepspeed\]'"):
        zero.check(read_settings("preference", {"method": "dpo"}))
    monkeypatch.setattr("grolang.runtime.adapters.find_spec", lambda name: name)
    with pytest.raises(GroError, match="the weights that DeepSpeed shares out are fp32"):
        zero.check(read_settings("preference", {"method": "dpo", "precision": "fp16"}))
