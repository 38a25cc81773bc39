"""Whole runs on a GPU: `make gpu`. Skipped elsewhere, and never run so far.

Each is a process of its own: the same command with the GPU hidden is the run on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHORT = ["--steps", "3", "--eval-rows", "8", "--batch", "4", "--max-completion", "12", "--track", "none"]
TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]


def run(output: Path, *words: str, gpus: str | None = None, launcher: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The figures of each step."""
    command = [sys.executable, *launcher, "-m", "grolang", "run", *words, "--output", str(output)]
    env = os.environ | ({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus})
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def assert_alike(one: list[dict[str, Any]], other: list[dict[str, Any]], tolerance: float) -> None:
    for a, b in zip(one, other, strict=True):
        for name in ("loss", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=tolerance, abs=tolerance), (a["step"], name)


@pytest.mark.parametrize("kernels", ["off", "on"])
@pytest.mark.parametrize("method", ["dpo", "kto", "sft", "rpo"])
def test_the_run_on_a_gpu_is_the_run_on_the_cpu(method: str, kernels: str, tmp_path: Path) -> None:
    """Of rows of the data; what is drawn can part at a token whose share rounding decides."""
    words = [method, *SHORT, "--precision", "fp32"]
    there = run(tmp_path / "gpu", *words, "--kernels", kernels)
    assert json.loads((tmp_path / "gpu/run.json").read_text())["device"].startswith("cuda")
    assert_alike(there[:1], run(tmp_path / "cpu", *words, gpus="")[:1], 1e-3)


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16"])
@pytest.mark.parametrize("flags", [(), ("--lora", "4"), ("--checkpointing",), ("--compile",), ("--packing", "off")])
def test_a_run_that_draws_and_what_may_be_asked_of_it(flags: tuple[str, ...], precision: str, tmp_path: Path) -> None:
    found = run(tmp_path / "out", "grpo", *SHORT, "--precision", precision, *flags)
    assert len(found) == 3


def test_a_run_is_continued(tmp_path: Path) -> None:
    words = ["dpo", *SHORT, "--precision", "fp32", "--attention", "eager", "--lora", "4", "--lora-dropout", "0.2"]
    whole = run(tmp_path / "whole", *words)
    run(tmp_path / "cut", *words, "--steps", "2")
    assert_alike(run(tmp_path / "cut", "--resume", "--steps", "3"), whole, 1e-6)


@pytest.mark.parametrize("shard", [(), ("--shard",)])
def test_two_gpus_give_the_gradient_of_one(shard: tuple[str, ...], tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    words = ["dpo", *SHORT, "--precision", "fp32"]
    two = run(tmp_path / "two", *words, *shard, launcher=TWO)
    assert_alike(two, run(tmp_path / "one", *words, gpus="0"), 1e-3)
