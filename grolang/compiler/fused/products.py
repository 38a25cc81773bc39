"""Matrix products whose sums never leave fp32 (fp64 for fp64 inputs), whatever the operands' dtype.

The stated choice per device:
- CUDA, bf16 hidden states and head: bf16 operands, fp32 results (`out_dtype`). Logits are exact to fp32
  rounding; the softmax and c⊙H are rounded to bf16 as operands of the two backward products.
- everything else (CPU, MPS, ROCm, older GPUs and versions of torch, fp16, mixed dtypes): operands are converted to the
  sums' dtype, which is exact. fp16 takes this path because probabilities and c⊙H would underflow as operands. A CPU
  that multiplies bf16 does so 2.4 times as fast as fp32, but torch rounds its logits to bf16 there.
Whether CUDA rounds fp32 operands to TF32 is torch's own switch, off by default (`torch.set_float32_matmul_precision`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

CONVERTED_BYTES = 32 * 2**20
"""Size of a block of the head that is converted at a time; the head is never copied whole."""


@dataclass(frozen=True)
class Precision:
    """`sums`: logits, softmax, coefficients and accumulators. `operands`: what the matrix products read."""

    sums: torch.dtype
    operands: torch.dtype


def precision(hidden: Tensor, weight: Tensor) -> Precision:
    sums = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    both_bf16 = hidden.dtype == weight.dtype == torch.bfloat16
    return Precision(sums, torch.bfloat16 if both_bf16 and adds_in_fp32(hidden.device) else sums)


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


def multiply(out: Tensor, a: Tensor, b: Tensor, *, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """out = beta·out + alpha·a·b in place, summed in out's dtype; what `out` held is ignored where beta is 0.

    out [m, n], a [m, k], b [k, n]; a and b share one dtype.
    """
    if a.dtype == out.dtype:
        return out.addmm_(a, b, beta=beta, alpha=alpha)
    torch.ops.aten.addmm.dtype_out(out, a, b, out.dtype, beta=beta, alpha=alpha, out=out)
    return out


def blocks(weight: Tensor, columns: slice, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The rows `columns` of weight [V, D] in `dtype`, with the place of each block among the asked columns.

    One block, not copied, where the dtype is already right.
    """
    chosen = weight[columns]
    if chosen.dtype == dtype:
        yield slice(0, len(chosen)), chosen
        return
    for block in spans(len(chosen), max(1, CONVERTED_BYTES // (dtype.itemsize * max(1, weight.shape[1])))):
        yield block, chosen[block].to(dtype)


def spans(count: int, most: int) -> list[slice]:
    """0..count cut into the fewest slices of at most `most`, all of nearly one length."""
    pieces = -(-count // max(1, most))
    return [slice(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]
