"""The emitted file alone, with torch and nothing of grolang, gives the coefficients that grolang gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given

import grolang
import grolang.testing
from grolang.compiler.emit import emit
from grolang.language import library

PER_TOKEN = ("mask", "logp", "logp_old", "logp_ref", "logp_sampler", "entropy")


def as_dict(batch: grolang.Batch) -> dict[str, Any]:
    """A batch as the emitted file takes it."""
    found: dict[str, Any] = {name: getattr(batch, name) for name in (*PER_TOKEN, "group", "label", "demonstration")}
    found |= dict(batch.scores) | {f"greedy {name}": values for name, values in batch.greedy_scores.items()}
    if batch.mismatched is not None:
        found["mismatched"] = {name: getattr(batch.mismatched, name) for name in PER_TOKEN}
    return found


@pytest.mark.parametrize("name", sorted(library.built_in()))
def test_the_emitted_file_gives_the_same_coefficients_and_gradient(name: str) -> None:
    method = grolang.load(name)
    made: dict[str, Any] = {}
    exec(compile(emit(method.ir, method.program), name, "exec"), made)

    @given(grolang.testing.batches(method, smallest_group=2))
    def same(batch: grolang.Batch) -> None:
        assert batch.logp is not None
        expected, given_ = method.coefficients(batch), as_dict(batch)
        assert torch.equal(made["coefficients"](given_), expected)
        given_["logp"] = batch.logp.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(made["loss"](given_), given_["logp"])
        assert torch.equal(gradient, -expected)

    same()


def test_the_emitted_file_imports_nothing_but_torch(tmp_path: Path) -> None:
    method = grolang.load("kto")
    path = tmp_path / "kto_loss.py"
    path.write_text(emit(method.ir, method.program), encoding="utf-8")
    code = "import sys, kto_loss; assert not any(name.startswith('grolang') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
