"""The emitted file alone, with torch and nothing of grolang, gives the coefficients that grolang gives."""

from __future__ import annotations

import inspect
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


def emitted(method: grolang.Method) -> dict[str, Any]:
    """The names of the emitted file."""
    made: dict[str, Any] = {}
    exec(compile(emit(method.ir, method.text), method.name, "exec"), made)
    return made


def accepted(made: dict[str, Any], values: dict[str, float]) -> dict[str, float]:
    """The parameters that the file takes; a keyword of Python, or a name that the file uses itself, gets a `_`."""
    spelled = values | {f"{name}_": value for name, value in values.items()}
    return {name: spelled[name] for name in list(inspect.signature(made["loss"]).parameters)[1:]}


def moved(method: grolang.Method) -> dict[str, float]:
    """Another value for each parameter that the emitted file lets one set."""
    rows = method.ir.parameters.values()
    near = {row.name: [row.value * factor for factor in (1.25, 0.75)] for row in rows if row.value != 0}
    bounds = {row.name: row.interval for row in rows}
    return {name: next(value for value in values if value in bounds[name]) for name, values in near.items()}


@pytest.mark.parametrize("name", sorted(library.built_in()))
def test_the_emitted_file_gives_the_same_coefficients_and_gradient(name: str) -> None:
    method = grolang.load(name)
    made, other = emitted(method), moved(method)
    replaced = method.replace(**other)

    @given(grolang.testing.batches(method, smallest_group=2))
    def same(batch: grolang.Batch) -> None:
        assert batch.logp is not None
        expected, given_ = method.coefficients(batch), as_dict(batch)
        assert torch.equal(made["coefficients"](given_), expected)
        assert torch.equal(made["coefficients"](given_, **accepted(made, other)), replaced.coefficients(batch))
        given_["logp"] = batch.logp.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(made["loss"](given_), given_["logp"])
        assert torch.equal(gradient, -expected)

    same()


def test_the_recipe_for_micro_batches_in_the_docstring_gives_the_gradient_of_the_whole_step() -> None:
    method = grolang.load("dpo")
    made = emitted(method)
    line = next(line.strip() for line in made["__doc__"].splitlines() if ".backward()" in line and "part" in line)
    torch.manual_seed(0)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    batch = {
        "mask": torch.ones(4, 3, dtype=torch.bool),
        "group": torch.tensor([0, 0, 1, 1]),
        "label": torch.tensor([1.0, -1.0, -1.0, 1.0]),
        "logp": (-weight.exp()).detach(),
        "logp_ref": torch.full((4, 3), -1.0, dtype=torch.float64),
    }
    c = made["coefficients"](batch)
    for part in ([0, 2], [1], [3]):
        exec(line, {"c": c, "part": part, "batch": batch, "logp": (-weight.exp())[part]})
    (whole,) = torch.autograd.grad(made["loss"](batch | {"logp": -weight.exp()}), weight)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, whole)


def test_the_emitted_file_refuses_half_a_pair() -> None:
    made = emitted(grolang.load("dpo"))
    batch = {name: torch.zeros(1, 2) for name in ("logp", "logp_ref")}
    batch |= {"mask": torch.ones(1, 2, dtype=torch.bool), "group": torch.tensor([0]), "label": torch.ones(1)}
    with pytest.raises(ValueError, match="each group must be a pair"):
        made["coefficients"](batch)


def test_what_a_parameter_of_0_drops_is_not_asked_of_the_batch() -> None:
    method = grolang.load("grpo", beta=0)
    made = emitted(method)
    assert "logp_ref" not in made["__doc__"] and "Written for beta = 0" in made["__doc__"]
    assert "logp_ref" in emitted(grolang.load("grpo"))["__doc__"]


def test_the_docstring_names_paper_version_shapes_and_use() -> None:
    text = emitted(grolang.load("kto"))["__doc__"]
    for word in ("Ethayarajh et al. (2024), arXiv:2402.01306", grolang.__version__, "loss(batch).backward()"):
        assert word in text
    assert '["mismatched"]["mask"]' in text and "[S, T]  bool: completion tokens" in text


def test_the_emitted_files_are_clean_python(tmp_path: Path) -> None:
    """No name that is not defined, no import that is not used, no line too long to read."""
    for name in library.built_in():
        method = grolang.load(name)
        (tmp_path / f"{name}.py").write_text(emit(method.ir, method.text), encoding="utf-8")
    rules = ("--isolated", "--select", "F,E", "--ignore", "F841", "--line-length", "125", "--target-version", "py310")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", *rules, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_emitted_file_imports_nothing_but_torch(tmp_path: Path) -> None:
    method = grolang.load("kto")
    path = tmp_path / "kto_loss.py"
    path.write_text(emit(method.ir), encoding="utf-8")
    code = "import sys, kto_loss; assert not any(name.startswith('grolang') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
