"""Whole runs on a GPU that is not there (tests/device_guard.py): no tensor is on the wrong device, the numbers are
those of a run on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import Write, lines, rows_of
from rich.console import Console
from torch import Tensor

from grolang import GroError
from grolang.compiler.fused import launch, sweep
from grolang.compiler.fused.products import Precision
from grolang.runtime import sampling, start
from tests import device_guard

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

GIVEN: dict[str, Any] = {
    "batch": 2,
    "micro_batch": 4,
    "lr": 1e-3,
    "max_completion": 5,
    "eval_rows": 2,
    "steps": 2,
    "kernels": "off",
}
REWARD = "def score(completions, **_):\n    return [float(sum(map(ord, one)) % 7) for one in completions]\n"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """accelerate remembers the device that it saw first."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def run(output: Path, **given: Any) -> list[dict[str, Any]]:
    start(GIVEN | given | {"output": str(output)}, None, Console(quiet=True))
    return lines(output)


def compared(folder: Path, tolerance: float = 1e-4, *, resume: bool = False, **given: Any) -> None:
    """The same run on both devices; with `resume` the second half of it from a checkpoint."""
    here = run(folder / "cpu", **given)
    AcceleratorState._reset_state(True)
    with device_guard.cuda() as seen:
        there = run(folder / "cuda", **given | {"steps": 1 if resume else 2})
        there = run(folder / "cuda", resume=True, steps=2) if resume else there
    assert sum(seen.syncs.values()) > 100 and len(here) == len(there) == 2  # it was there, and not here
    for one, other in zip(here, there, strict=True):
        for name in ("loss", "grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=tolerance, abs=tolerance), name


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("preference", {"resume": True}),
    "kto": ("unpaired", {"micro_batch": 1}),
    "grpo": ("prompts", {"updates": 2, "checkpointing": True, "group": 2}),
    "remax": ("prompts", {"replay": 1, "top_k": 20, "stop": ["x"]}),
    "tis": ("prompts", {"packing": "off", "temperature": 0.8}),
    "sft": ("demonstrations", {"lora": 2, "lora_dropout": 0.1, "resume": True}),
}
FAST = "dpo", "kto", "grpo"


@pytest.mark.parametrize("method", [one if one in FAST else pytest.param(one, marks=pytest.mark.slow) for one in CASES])
def test_a_run_on_a_gpu_is_the_run_on_the_cpu(method: str, tiny: str, tmp_path: Path, write: Write) -> None:
    kind, more = CASES[method]
    given = {"method": method, "model": tiny, "data": write(rows_of(kind)), "precision": "fp32", **more}
    if kind == "prompts":
        given["score"] = {"correct": write(REWARD, "rewards.py") + ":score"}
    compared(tmp_path, **given)


def test_bf16_is_what_a_gpu_takes_by_itself(tiny: str, tmp_path: Path, write: Write) -> None:
    compared(tmp_path, 5e-3, method="dpo", model=tiny, data=write(rows_of("preference")))


@pytest.mark.skipif(not device_guard.ADDS_IN_FP32, reason="products of this torch cannot add to fp32")
def test_in_bf16_the_head_and_what_draws_read_bf16(
    tiny: str, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, draws, formed, chosen = [], [], sweep.precision, sampling.uniform

    def head(hidden: Tensor, weight: Tensor) -> Any:
        heads.append(formed(hidden, weight))
        return heads[-1]

    def draw(*args: Any) -> Tensor:
        draws.append(torch.is_autocast_enabled("cuda"))
        return chosen(*args)

    monkeypatch.setattr(sweep, "precision", head)
    monkeypatch.setattr(sampling, "uniform", draw)
    score = {"correct": write(REWARD, "rewards.py") + ":score"}
    with device_guard.cuda():
        run(tmp_path / "out", method="grpo", model=tiny, data=write(rows_of("prompts")), score=score, group=2)
    assert draws and all(draws)
    fp32, bf16 = (Precision(torch.float32, one) for one in (torch.float32, torch.bfloat16))
    checks = heads.index(bf16)  # that the head is known is tried in the weights' own dtype
    assert set(heads[:checks]) == {fp32} and set(heads[checks:]) == {bf16}


def test_a_run_goes_on_without_kernels_that_fail_on_a_trial(
    tiny: str, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(launch.RowKernel, "__call__", lambda *_: 1 / 0)
    given = {"method": "sft", "model": tiny, "data": write(rows_of("demonstrations")), "eval_rows": 0}
    with device_guard.cuda():
        run(tmp_path / "out", **given, kernels="auto")
        with pytest.raises(GroError, match="--kernels on: ZeroDivisionError"):
            run(tmp_path / "on", **given, kernels="on")
    assert json.loads((tmp_path / "out/run.json").read_text())["kernels"] == "torch"
