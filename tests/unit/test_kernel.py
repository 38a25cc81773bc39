"""The generated row kernels under Triton's interpreter, against the torch path. None has run on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import grolang
from grolang.compiler.execute import ELEMENTWISE, Run
from grolang.compiler.fused import launch
from grolang.compiler.fused.launch import RowKernel
from grolang.compiler.kernel import EXPRESSIONS, Kernel, kernel
from grolang.language import library
from grolang.language.scopes import Scope
from tests.laws import programs

METHODS = [name for name in sorted(library.built_in()) if grolang.load(name).schedule.unit is Scope.TOKEN]
V = 37


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "BLOCK", 16)


def test_every_function_but_power_has_an_expression() -> None:
    assert set(ELEMENTWISE) - set(EXPRESSIONS) == {"power"}


@pytest.mark.parametrize("name", METHODS)
def test_a_kernel_is_written_from_the_methods_own_steps(name: str) -> None:
    found = kernel(grolang.load(name).program)
    assert found is not None
    compile(found.text, name, "exec")


def test_a_coefficient_that_needs_other_rows_has_no_kernel() -> None:
    assert kernel(grolang.load("dpo").program) is None and kernel(grolang.load("gspo").program) is None


def interpreted() -> None:
    triton: Any = pytest.importorskip("triton", reason="Triton is not installed")
    if not triton.knobs.runtime.interpret:
        pytest.skip("Triton runs on CPU tensors with TRITON_INTERPRET=1 alone")


def launched(found: Kernel, run: Run, logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """(tile, logp, lse, entropy, c) of the kernel on CPU tensors."""
    steps = run.program.steps
    known = [run.spread_to_tokens(run.values[index], steps[index].scope) for index in found.known]
    tile = logits.clone()
    rows, c = RowKernel(found.text, known)(slice(0, len(tile)), tile, targets)
    assert rows.entropy is not None
    return tile, rows.logp, rows.lse, rows.entropy, c


def same_as_torch(method: grolang.Method, batch: grolang.Batch) -> bool:
    interpreted()
    found = kernel(method.program)
    if found is None:
        return False
    make = torch.Generator().manual_seed(0)
    count = int(batch.mask.sum())
    logits = 3 * torch.randn(count, V, generator=make)
    targets = torch.randint(V, (count,), generator=make)
    log_p = logits.double().log_softmax(1)
    logp = log_p.gather(1, targets[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(1)
    zero = torch.zeros(batch.mask.shape, dtype=torch.float64)
    full = batch.replace(logp=zero.masked_scatter(batch.mask, logp), entropy=zero.masked_scatter(batch.mask, entropy))
    run = Run(method.program, full, method.name)
    (want,) = run("coefficient")
    if not bool(want.isfinite().all()) or float(want.abs().max()) > 1e6:
        return False
    tile, found_logp, lse, found_entropy, c = launched(found, run, logits, targets)
    torch.testing.assert_close(found_logp, logp.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, logits.logsumexp(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_entropy, entropy.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(c, want.float(), rtol=2e-4, atol=2e-5 * max(1.0, float(want.abs().max())))
    live = c != 0
    torch.testing.assert_close(tile[live], log_p.exp().float()[live], rtol=1e-5, atol=1e-6)
    return True


@pytest.mark.parametrize("name", METHODS)
def test_the_kernel_of_a_built_in_method_gives_what_torch_gives(name: str) -> None:
    make = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]], dtype=torch.bool)
    logp = {key: -3 * torch.rand(4, 2, generator=make).double() for key in ("logp_old", "logp_ref", "logp_sampler")}
    method = grolang.load(name)
    scores = {key: torch.rand(4, generator=make).double() for key in method.scores}
    label = torch.tensor([1.0, -1, 1, -1]).double()
    group = torch.tensor([0, 0, 1, 1])
    batch = grolang.Batch(
        mask=mask, group=group, label=label, demonstration=label * 0, scores=scores, greedy_scores=scores, **logp
    )
    assert same_as_torch(method, batch)


def test_the_kernels_of_random_methods_give_what_torch_gives(tmp_path: Path) -> None:
    compared = 0
    for seed in range(95_000, 95_060):
        program = programs.draw(seed)
        method = program.load(tmp_path)
        if method.schedule.kind == "token":
            compared += same_as_torch(method, programs.tensors(program, programs.batch(program)))
    assert compared


@pytest.mark.parametrize("name", ["grpo", "dapo", "rloo", "sft", "cispo"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_module_gives_the_same_gradients_with_kernels(
    name: str, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreted()
    make = torch.Generator().manual_seed(2)
    logp = {key: -3 * torch.rand(4, 3, generator=make) for key in ("logp_old", "logp_ref")}
    method = grolang.load(name)
    batch = grolang.Batch(
        mask=torch.rand(4, 3, generator=make) < 0.8,
        group=torch.tensor([0, 0, 1, 1]),
        demonstration=torch.ones(4),
        scores={key: torch.rand(4, generator=make) for key in method.scores},
        **logp,
    )
    hidden = torch.randn(4, 3, 8, generator=make).requires_grad_()
    weight = torch.randn(V, 8, generator=make).requires_grad_()
    targets = torch.randint(V, (4, 3), generator=make)
    found = []
    for kernels in (False, True):
        monkeypatch.setattr(launch, "usable", lambda _, kernels=kernels: kernels)
        loss = grolang.compile(method, budget=5 * V * 4, kernels=True)(hidden, weight, targets, batch, softcap=softcap)
        found.append((loss.detach(), *torch.autograd.grad(loss, (hidden, weight))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
