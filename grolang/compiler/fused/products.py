"""Matrix products whose sums never leave fp32 (fp64 for fp64 inputs), whatever the operands' dtype.

The stated choice per device:
- CUDA, bf16 hidden states and head: bf16 operands, fp32 results (`out_dtype`). Logits are exact to fp32
  rounding; the softmax and c⊙H are rounded to bf16 as operands of the two backward products.
- a CPU that multiplies bf16, the same inputs: torch has no fp32 results of bf16 operands there. Logits are products
  of the same numbers in fp32, as exact; the two backward products read the softmax and c⊙H in bf16, and a chunk's
  result is rounded to bf16 once before it is added up in fp32. The targets' own errors keep out of both roundings.
- everything else (other CPUs, MPS, ROCm, older GPUs and versions of torch, fp16, mixed dtypes): operands are converted
  to the sums' dtype, which is exact. fp16 takes this path because probabilities and c⊙H would underflow as operands.
Whether CUDA rounds fp32 operands to TF32 is torch's own switch, off by default (`torch.set_float32_matmul_precision`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

CONVERTED_BYTES = 8 * 2**20
"""Size of a block of the head, or of its gradient, that is converted at a time; neither is ever copied whole. From
32 MiB on an allocator takes fresh pages for each block, seven times the time of filling them."""


_TURN = Lock()  # at a setting of the whole process


@dataclass(frozen=True)
class Precision:
    """`sums`: logits, softmax, coefficients and accumulators. `operands`: what the matrix products read."""

    sums: torch.dtype
    operands: torch.dtype


def precision(hidden: Tensor, weight: Tensor) -> Precision:
    sums = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    both_bf16 = hidden.dtype == weight.dtype == torch.bfloat16
    fast = both_bf16 and (adds_in_fp32(hidden.device) or rounds(hidden.device))
    return Precision(sums, torch.bfloat16 if fast else sums)


def rounds(device: torch.device) -> bool:
    """Whether products of bf16 are fast but given in bf16 only: CPUs with units for them."""
    return device.type == "cpu" and cpu_multiplies_bf16()


@cache
def cpu_multiplies_bf16() -> bool:
    """AVX512_BF16 or AMX. Without, torch's products of bf16 are slower than those of fp32."""
    return has_onednn() and bool({"avx512_bf16", "amx_bf16"} & cpu_units())


@cache
def onednn_is_exact() -> bool:
    """Whether `by_onednn` rounds no operands, on CPUs where it is faster: AVX512_BF16 without AMX. It is tried."""
    if not has_onednn() or "avx512_bf16" not in cpu_units() or {"amx_bf16", "amx_tile"} & cpu_units():
        return False
    number = 1 + 2.0**-20  # bf16 has 8 binary digits
    a, b = torch.full((64, 256), number), torch.eye(256)
    with by_onednn():
        return all(bool((one == number).all()) for one in (a @ b, a @ b.T, b @ a.T))


def has_onednn() -> bool:
    """Whether torch is built with it and can be told how it may read fp32: from 2.9 on."""
    return hasattr(torch.backends.mkldnn, "matmul") and bool(torch._C._has_mkldnn)


def cpu_units() -> set[str]:
    """Names of what this CPU has, as far as torch tells."""
    asked = getattr(torch.cpu, "get_capabilities", dict)
    return {name for name, there in asked().items() if there is True}


@cache
def adds_in_fp32(device: torch.device) -> bool:
    """Whether addmm takes an fp32 accumulator to bf16 operands (`out_dtype`), as newer CUDA builds do. It is tried."""
    if not has_bf16_products(device):
        return False
    ones, sums = torch.ones(8, 8, device=device, dtype=torch.bfloat16), torch.ones(8, 8, device=device)
    try:
        return bool((multiply(sums, ones, ones, beta=1.0) == 9).all())
    except (AttributeError, RuntimeError, TypeError):  # the operator is not there, or wants the accumulator in bf16
        return False


@cache
def has_bf16_products(device: torch.device) -> bool:
    """NVIDIA's GPUs from compute capability 8.0 on: what torch's products of bf16 and the Triton kernels need."""
    return device.type == "cuda" and torch.version.cuda is not None and torch.cuda.get_device_capability(device)[0] >= 8


def multiply(
    out: Tensor, a: Tensor, b: Tensor, *, alpha: float = 1.0, beta: float = 0.0, rounded: bool = False
) -> Tensor:
    """out = beta·out + alpha·a·b in place, summed in out's dtype; what `out` held is ignored where beta is 0.

    out [m, n], a [m, k], b [k, n]; a and b share one dtype. `rounded` lets a·b be rounded to that dtype first, where
    the device is faster so.
    """
    if a.dtype == out.dtype:
        with by_onednn() if out.device.type == "cpu" and onednn_is_exact() else nullcontext():
            return out.addmm_(a, b, beta=beta, alpha=alpha)
    if not rounds(out.device):
        torch.ops.aten.addmm.dtype_out(out, a, b, out.dtype, beta=beta, alpha=alpha, out=out)
    elif rounded:
        for block in spans(len(out), converted(out.shape[1], out.dtype)):
            part = out[block]
            (part.mul_(beta) if beta else part.zero_()).add_((a[block] @ b).to(out.dtype), alpha=alpha)
    else:
        a = a.to(out.dtype)
        for block in spans(b.shape[1], converted(len(b), out.dtype)):
            with by_onednn():
                out[:, block].addmm_(a, b[:, block].to(out.dtype), beta=beta, alpha=alpha)
    return out


@contextmanager
def by_onednn() -> Iterator[None]:
    """A CPU's products of fp32 go to oneDNN, which may read the operands as bf16 where that is faster.

    With AMX it is: for numbers that bf16 holds. With AVX512_BF16 alone it keeps fp32, and takes a seventh less time
    than the library that torch asks otherwise. The setting is one of the whole process, and put back; losses of two
    threads take turns at it.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # torch has no type for it
    with _TURN:
        before = matmul.fp32_precision
        matmul.fp32_precision = "bf16"
        try:
            yield
        finally:
            matmul.fp32_precision = before


def blocks(weight: Tensor, columns: slice, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The rows `columns` of weight [V, D] in `dtype`, with the place of each block among the asked columns.

    One block, not copied, where the dtype is already right.
    """
    chosen = weight[columns]
    if chosen.dtype == dtype:
        yield slice(0, len(chosen)), chosen
        return
    for block in spans(len(chosen), converted(weight.shape[1], dtype)):
        yield block, chosen[block].to(dtype)


def converted(width: int, dtype: torch.dtype) -> int:
    """Rows of that width that are converted at a time."""
    return max(1, CONVERTED_BYTES // (dtype.itemsize * max(1, width)))


def spans(count: int, most: int) -> list[slice]:
    """0..count cut into the fewest slices of at most `most`, all of nearly one length."""
    pieces = -(-count // max(1, most))
    return [slice(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]
