"""`--kernels`: a run through the generated Triton kernels, under Triton's interpreter, is the run through torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Write, lines, rows_of
from rich.console import Console

from grolang import GroError
from grolang.compiler.fused import launch
from grolang.runtime import start

GIVEN: dict[str, Any] = {"batch": 2, "lr": 1e-4, "max_completion": 3, "eval_rows": 0, "steps": 2, "track": "none"}
REWARD = "def marks(completions, **_):\n    return [float(sum(map(ord, one)) % 7) for one in completions]\n"


def run(output: Path, **given: Any) -> list[dict[str, Any]]:
    start(GIVEN | given | {"output": str(output)}, None, Console(quiet=True))
    return lines(output)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was started, of CPU tensors that are taken for CUDA's."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton runs on CPU tensors with TRITON_INTERPRET=1 alone")
    monkeypatch.setattr(launch, "refusal", lambda _: None)
    monkeypatch.setattr(launch, "BLOCK", 512)
    started: list[str] = []

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*words: Any, **more: Any) -> Any:
            started.append(name)
            return function(*words, **more)

        return noted

    monkeypatch.setattr(launch.RowKernel, "__call__", noting("rows", launch.RowKernel.__call__))
    monkeypatch.setattr(launch, "reduced", noting("reduced", launch.reduced))
    return started


@pytest.mark.parametrize(
    ("method", "kind", "more"),
    [
        ("dpo", "preference", {}),  # factored, and log-probs of the reference
        ("grpo", "prompts", {"group": 3, "updates": 2}),
        ("dpo", "preference", {"micro_batch": 1}),  # two passes: the coefficients are known in the second
    ],
)
def test_the_run_is_that_of_torch(
    method: str, kind: str, more: dict[str, Any], tiny: str, tmp_path: Path, write: Write, launched: list[str]
) -> None:
    given = {"method": method, "model": tiny, "data": write(rows_of(kind)), **more}
    if kind == "prompts":
        given["score"] = {"correct": write(REWARD, "rewards.py") + ":marks"}
    theirs = run(tmp_path / "off", **given, kernels="off")
    assert not launched
    ours = run(tmp_path / "on", **given)
    assert set(launched) == {"rows", "reduced"}
    for one, other in zip(ours, theirs, strict=True):
        for name in set(one) - {"seconds"}:
            if name.endswith(("/zeros", "/accuracies", "/accuracy")):  # signs of what is 0 but for rounding
                continue
            assert one[name] == pytest.approx(other[name], rel=2e-3, abs=1e-5), name
    told = [json.loads((tmp_path / name / "run.json").read_text())["kernels"] for name in ("off", "on")]
    assert told == ["torch", "triton"]


def test_without_an_nvidia_gpu_kernels_are_refused_where_they_are_asked_for(
    tiny: str, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"method": "sft", "model": tiny, "data": write(rows_of("demonstrations")), "kernels": "on"}
    if not torch.cuda.is_available():
        with pytest.raises(GroError, match=r"--kernels on: they need an NVIDIA GPU of compute capability 8\.0"):
            run(tmp_path / "out", **given)
    monkeypatch.setattr(launch, "refusal", lambda _: None)
    with pytest.raises(GroError, match="--kernels on: they have no float64\n help: leave it out"):
        run(tmp_path / "out", **given, precision="fp64")
    assert not (tmp_path / "out").exists()
