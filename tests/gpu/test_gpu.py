"""What only a GPU can show: `make gpu`. Skipped elsewhere, and never run so far.

The fused passes with torch's products alone and with Triton's kernels, against plain logits in float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import grolang
from grolang.compiler.fused import Head, factored_pass, launch, logps, single_pass
from grolang.compiler.fused.launch import RowKernel
from grolang.compiler.kernel import PLAIN
from tests.unit.test_fused import HEADS, Case, assert_gradients, assert_near, plain
from tests.unit.test_kernel import batch_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICE = "cuda"
N, D, V = 300, 100, 5003
BUDGET = 70 * V * 6
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 3e-3, torch.float16: 5e-6}
KERNELS = [False, True]


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def drawn(kind: str, dtype: torch.dtype, *, bias: bool = True) -> Case:
    """Peaked logits, ragged coefficients of which a third are 0, on the CPU."""
    make = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=make)

    hidden = (normal(N, D) / 2).to(dtype).requires_grad_()
    weight, b = normal(V, D).to(dtype).requires_grad_(), normal(V).to(dtype).requires_grad_()
    c = normal(N) * (torch.rand(N, generator=make) < 0.67)
    return Case(hidden, Head(weight, b if bias else None, **HEADS[kind]), torch.randint(V, (N,), generator=make), c)


def moved(one: Case) -> Case:
    bias = None if one.head.bias is None else one.head.bias.detach().to(DEVICE).requires_grad_()
    head = replace(one.head, weight=one.head.weight.detach().to(DEVICE).requires_grad_(), bias=bias)
    return Case(one.hidden.detach().to(DEVICE), head, one.targets.to(DEVICE), one.c.to(DEVICE))


def gradients(way: str, one: Case, kernels: bool) -> Any:
    if kernels and not launch.usable(one.hidden, one.head.weight):
        pytest.skip("Triton is not installed")
    kernel = RowKernel(PLAIN.text) if kernels else None
    states = one.hidden, one.head, one.targets
    c = one.c.float()
    if way == "single":
        return single_pass(*states, lambda rows, *_: c[rows], kernel=kernel, budget=BUDGET).gradients
    unit = torch.arange(N, device=DEVICE) // 100
    s = torch.tensor([2.0, -0.5, 3.0], device=DEVICE)[unit]
    if way == "factored":
        return factored_pass(*states, c / s, unit, lambda rows, *_: s[rows], kernel=kernel, budget=BUDGET).gradients
    sizes = {"budget": BUDGET, "keep": 70 * V * 4}
    return factored_pass(*states, None, unit * 0, lambda rows, *_: c[rows], kernel=kernel, **sizes).gradients  # type: ignore[arg-type]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("way", ["single", "factored", "free"])
def test_every_pass_gives_the_gradients_of_plain_logits(way: str, kind: str, dtype: torch.dtype, kernels: bool) -> None:
    one = drawn(kind, dtype)
    first, second = (gradients(way, moved(one), kernels) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b), "two runs differ"
    found = type(first)(*(one.cpu() for one in first))
    assert_gradients(found, plain(one)[2], TOLERANCE[dtype])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", HEADS)
def test_log_probs_and_entropy(kind: str, dtype: torch.dtype, bias: bool, kernels: bool) -> None:
    one = drawn(kind, dtype, bias=bias)
    there = moved(one)
    logp, entropy, _ = plain(one)
    found = [
        logps(there.hidden, there.head, there.targets, entropy=True, budget=BUDGET, kernels=kernels) for _ in range(2)
    ]
    assert found[0][1] is not None and found[1][1] is not None
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert_near(found[0][0].cpu(), logp, 5e-6)
    assert_near(found[0][1].cpu(), entropy, 5e-6)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["grpo", "sft", "cispo", "dpo", "kto", "gspo", "orpo"])
def test_the_module_gives_what_it_gives_on_the_cpu(name: str, dtype: torch.dtype, compiled: bool) -> None:
    method = grolang.load(name)
    batch, make = batch_of(method), torch.Generator().manual_seed(2)
    hidden = torch.randn(4, 3, 64, generator=make).to(dtype)
    weight = (torch.randn(1001, 64, generator=make) / 8).to(dtype)
    targets = torch.randint(1001, (4, 3), generator=make)
    found = []
    for device, exact in (("cpu", torch.float64), (DEVICE, dtype)):
        module: Any = grolang.compile(method, budget=4 * 1001 * 6, keep=0, kernels=True)
        if compiled and device == DEVICE:
            module = torch.compile(module)
        leaves = [one.to(device, exact).requires_grad_() for one in (hidden, weight)]
        loss = module(*leaves, targets.to(device), batch.to(device), softcap=10.0)
        found.append([loss.detach().cpu(), *(one.cpu() for one in torch.autograd.grad(loss, leaves))])
    for one, other in zip(*found, strict=True):
        assert_near(other, one, 1e-5 if dtype == torch.float32 else 1e-2)


def test_offsets_beyond_32_bits() -> None:
    """A tile, and a head, of more than 2³¹ numbers: the last rows and words are as alone."""
    rows, words = 17_000, 131_072
    if torch.cuda.mem_get_info()[0] < 28 * 2**30:
        pytest.skip("needs 28 GiB of the GPU's memory")
    tile = torch.randn(rows, words, device=DEVICE)
    last, targets = tile[-3:].clone(), torch.full((rows,), words - 1, device=DEVICE)
    head = Head(torch.empty(words, 8, device=DEVICE))
    kernel = RowKernel(PLAIN.text)
    whole, _ = kernel(slice(0, rows), head, tile, tile, targets)
    alone, _ = kernel(slice(0, 3), head, last, last, targets[:3])
    assert torch.equal(whole.logp[-3:], alone.logp) and torch.equal(tile[-3:], last)
    del tile
    weight = torch.randn(2**18, 2**13 + 8, device=DEVICE, dtype=torch.bfloat16)
    states = torch.randn(5, weight.shape[1], device=DEVICE, dtype=torch.bfloat16) / 50
    targets = torch.arange(len(weight) - 5, len(weight), device=DEVICE)
    found, _ = logps(states, Head(weight), targets, kernels=True)
    expected, _ = logps(states, Head(weight), targets)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_gpu_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    one = drawn("capped", torch.bfloat16)
    other = replace(one.head, weight=one.head.weight.detach().to("cuda:1"), bias=one.head.bias.detach().to("cuda:1"))  # type: ignore[union-attr]
    found, _ = logps(one.hidden.detach().to("cuda:1"), other, one.targets.to("cuda:1"), kernels=True)
    assert_near(found.cpu(), plain(one)[0], 5e-6)
