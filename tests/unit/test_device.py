"""The compiled loss on a GPU that is not there (tests/device_guard.py), and that guard itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import grolang
from grolang.compiler.forming import kernel_failure
from grolang.compiler.fused import Rows, launch
from grolang.compiler.fused.products import precision
from grolang.compiler.method import from_source
from grolang.language.source import Source
from tests import device_guard
from tests.device_guard import DEVICE, OnCuda
from tests.unit.test_kernel import batch_of

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

S, T, D, V = 4, 3, 16, 101
METHODS = ["sft", "grpo", "dpo", "kto", "orpo", "gmpo", "gro", "bco"]  # every schedule; free ones by every unit


def drawn(dtype: torch.dtype, *, frozen: bool) -> list[Tensor]:
    make = torch.Generator().manual_seed(2)
    hidden, weight, bias = (torch.randn(*shape, generator=make) / 3 for shape in ((S, T, D), (V, D), (V,)))
    return [hidden.to(dtype).requires_grad_(), *(one.to(dtype).requires_grad_(not frozen) for one in (weight, bias))]


def formed(name: str, inputs: list[Tensor], batch: grolang.Batch, kernels: bool = False, **more: Any) -> list[Tensor]:
    """Loss and gradients of a module whose chunks hold two rows, and which keeps the softmax of one chunk."""
    module = grolang.compile(grolang.load(name), budget=2 * V * 6, keep=2 * V * 2, kernels=kernels)
    targets = torch.arange(S * T, device=inputs[0].device).view(S, T) % V
    hidden, weight, bias = inputs
    loss = module(hidden, weight, targets, batch, bias=bias, **more)
    return [loss.detach(), *torch.autograd.grad(loss, [one for one in inputs if one.requires_grad])]


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_the_loss_on_a_gpu_is_the_loss_on_the_cpu(name: str, dtype: torch.dtype, frozen: bool) -> None:
    inputs, batch = drawn(dtype, frozen=frozen), batch_of(grolang.load(name))
    options: dict[str, Any] = {"softcap": 5.0, "scale": 0.7, "temperature": 1.3}
    expected = formed(name, inputs, batch, **options)
    with device_guard.cuda():
        there = [one.detach().to(DEVICE).requires_grad_(one.requires_grad) for one in inputs]
        found = [one.cpu() for one in formed(name, there, batch.to(DEVICE), **options)]
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype
        error = (other.double() - one.double()).norm() / one.double().norm().clamp(min=1e-30)
        assert error < (1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("name", ["grpo", "dpo", "gro"])
def test_kernels_read_and_write_on_the_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(launch, "BLOCK", 64)
    inputs, batch = drawn(torch.float32, frozen=False), batch_of(grolang.load(name))
    expected = formed(name, inputs, batch)
    with device_guard.cuda():
        there = [one.detach().to(DEVICE).requires_grad_() for one in inputs]
        found = [one.cpu() for one in formed(name, there, batch.to(DEVICE), kernels=True)]
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_entropies_and_log_probs_alone() -> None:
    text = "method m\ndata prompts\nadvantage = 1\nomega(z) = 1 + entropy\nmeasure = logp\nanchor = 0\n"
    text += "aggregate = sum over tokens, sum over group, mean over groups\n"
    method = from_source(Source("m.gro", text))
    hidden, weight, _ = drawn(torch.bfloat16, frozen=True)
    batch, targets = batch_of(method), torch.zeros(S, T, dtype=torch.long)
    module = grolang.compile(method, budget=2 * V * 6)
    for wanted in (False, True):
        expected = module(hidden.detach().requires_grad_(wanted), weight, targets, batch)
        with device_guard.cuda():
            there = [one.detach().to(DEVICE) for one in (hidden, weight, targets)]
            found = module(there[0].requires_grad_(wanted), *there[1:], batch.to(DEVICE)).detach().cpu()
        assert torch.allclose(found, expected, rtol=1e-5)


def test_a_tensor_on_the_wrong_device_is_an_error() -> None:
    here = torch.arange(3.0)
    with device_guard.cuda() as seen:
        there = here.to(DEVICE)
        assert there.is_cuda and there.device == DEVICE and isinstance(there * torch.tensor(2.0), OnCuda)
        assert there[torch.tensor([2, 0])].tolist() == [2, 0]  # indices alone may lie on the CPU
        for wrong in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: there.gather(0, torch.zeros(1, dtype=torch.long)),
            lambda: here.clone().mul_(there),
            lambda: torch.where(here > 0, there, 0),
            lambda: torch.mm(there[None], here[:, None]),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert sum(seen.syncs.values()) == 3  # to the device, the indices there, their list back


def test_autocast_is_that_of_the_device() -> None:
    with device_guard.cuda(), torch.autocast("cuda", torch.bfloat16):
        one = torch.ones(2, 2, device="cuda")
        assert (one @ one).dtype == torch.bfloat16 and (one @ one).exp().dtype == torch.float32
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_kernels_are_for_gpus_that_have_bf16() -> None:
    with device_guard.cuda((7, 5)):
        one = torch.ones(2, 2, device="cuda")
        assert not launch.usable(one, one)


@pytest.mark.parametrize("name", METHODS)
def test_within_a_chunk_the_cpu_waits_for_no_more_than_the_number_of_rows(name: str) -> None:
    """Of which the coefficient is not 0; what the method computes makes it wait once a batch, not once a chunk."""
    method, waits = grolang.load(name), []
    for rows in (12, 3):
        inputs, batch = drawn(torch.float32, frozen=False), batch_of(method)
        with device_guard.cuda() as seen:
            there = [one.detach().to(DEVICE).requires_grad_() for one in inputs[:2]]
            targets, moved = torch.zeros(S, T, dtype=torch.long, device=DEVICE), batch.to(DEVICE)
            seen.syncs.clear()
            grolang.compile(method, budget=rows * V * 4)(*there, targets, moved)
            waits.append(seen.syncs)
    more = {line.split()[1].partition(":")[0]: count for line, count in (waits[1] - waits[0]).items()}
    assert set(more) <= {"rows.py", "factored.py"}, more  # the latter for units that no chunk holds
    assert more["rows.py"] <= 2 * 3


@pytest.mark.skipif(not device_guard.ADDS_IN_FP32, reason="products of this torch cannot add to fp32")
def test_a_torch_whose_products_cannot_add_to_fp32_takes_fp32_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("self and mat2 must have the same dtype")

    with device_guard.cuda():
        one = torch.ones(2, 2, device="cuda", dtype=torch.bfloat16)
        assert precision(one, one).operands == torch.bfloat16
    monkeypatch.setitem(device_guard._CUDA_ONLY, torch.ops.aten.addmm.dtype_out, refused)
    with device_guard.cuda():
        assert precision(one, one).operands == torch.float32


def test_kernels_are_tried_before_they_are_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    with device_guard.cuda():
        assert kernel_failure(DEVICE, torch.float32) is None
    whole = launch.reduced

    def wrong(*words: Any) -> Rows:
        found = whole(*words)
        return found._replace(logp=found.logp + 0.1)

    monkeypatch.setattr(launch, "reduced", wrong)
    with device_guard.cuda():
        assert kernel_failure(DEVICE, torch.float32) == "on a trial log-probs differ from torch's by 0.008"
    monkeypatch.setattr(launch.RowKernel, "__call__", lambda *_: 1 / 0)
    with device_guard.cuda():
        assert kernel_failure(DEVICE, torch.float32) == "ZeroDivisionError: division by zero"
