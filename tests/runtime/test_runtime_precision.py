"""Autocast and the scale of fp16 gradients: nearly the same numbers, nothing left out in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Write, lines, rows_of
from rich.console import Console
from safetensors.torch import load_file

from grolang import GroError
from grolang.runtime import start
from grolang.runtime.descent import FIRST, GROWTH, Scale

GIVEN = {"batch": 4, "lr": 1e-3, "max_completion": 6, "eval_rows": 0}


def run(output: Path, **given: Any) -> list[dict[str, Any]]:
    start(GIVEN | given | {"output": str(output)}, None, Console(quiet=True))
    return lines(output)


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model/model.safetensors")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_steps_on_fp32_weights(
    precision: str, tiny: str, tmp_path: Path, write: Write
) -> None:
    given = {"method": "dpo", "model": tiny, "data": write(rows_of("preference")), "steps": 3}
    whole, half = run(tmp_path / "fp32", **given), run(tmp_path / "half", precision=precision, **given)
    for one, other in zip(whole, half, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=3e-3)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-2)
        assert other["grad_norm"] != one["grad_norm"]
        assert other.get("loss_scale") == (FIRST if precision == "fp16" else None)
    assert {tensor.dtype for tensor in weights(tmp_path / "half").values()} == {torch.float32}


def test_an_overflow_is_counted_and_lowers_the_scale_also_after_a_resume(
    tiny: str, tmp_path: Path, write: Write
) -> None:
    (tmp_path / "large.py").write_text(
        "def score(completions, **columns):\n    return [1e2 * (-1) ** row for row in range(len(completions))]\n"
    )
    given = {
        "method": "rloo", "model": tiny, "data": write(rows_of("prompts")), "steps": 14, "precision": "fp16",
        "score": {"correct": f"{tmp_path / 'large.py'}:score"},
    }  # fmt: skip
    found = run(tmp_path / "whole", **given)
    left_out = sum("loss" not in line for line in found)
    assert 3 < left_out < 12 and "loss" in found[-1]
    assert [line["loss_scale"] for line in found[:4]] == [FIRST, FIRST / 2, FIRST / 4, FIRST / 8]
    assert [line["skipped"] for line in found[:4]] == [1, 2, 3, 4]
    run(tmp_path / "cut", **given | {"steps": 3})
    run(tmp_path / "cut", resume=True, steps=14)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_what_is_not_finite_at_any_scale_stops_the_run(tiny: str, tmp_path: Path, write: Write) -> None:
    (tmp_path / "huge.py").write_text(
        "def score(completions, **columns):\n    return [1e30 * (-1) ** row for row in range(len(completions))]\n"
    )
    score = {"correct": f"{tmp_path / 'huge.py'}:score"}
    data = write(rows_of("prompts"))
    with pytest.raises(GroError, match="not finite"):
        run(tmp_path / "out", method="rloo", model=tiny, data=data, steps=30, precision="fp16", score=score)
    assert len((tmp_path / "out/metrics.jsonl").read_text().splitlines()) == 16


def test_the_scale_doubles_after_many_good_steps() -> None:
    scale = Scale()
    for _ in range(GROWTH):
        assert scale.value == FIRST
        scale.moved(True)
    assert scale == Scale(2 * FIRST, 0)
    scale.moved(True)
    scale.moved(False)
    assert scale == Scale(FIRST, 0)
