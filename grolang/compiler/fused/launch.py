"""Where Triton's kernels meet the passes: on CUDA, where Triton is installed, and only when asked for.

They have run under Triton's interpreter and been compiled for GPUs, never run on one.
"""

from __future__ import annotations

import importlib.util
import linecache
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .head import Head
from .products import has_bf16_products, precision
from .rows import Rows

BLOCK = 4096
"""Columns of a row that a program holds at a time."""

WARPS = 8

TILES = {2: (128, 128, 64), 4: (64, 128, 32)}
"""Rows, columns and depth of the product that is reduced where it is formed, by an operand's bytes. Not tuned."""

OPERANDS = torch.bfloat16, torch.float16
"""Dtypes that products are formed of as they are, where hidden states and head share one; others become fp32."""

PROGRAMS = 1024
"""Programs that fill a GPU: with fewer rows the vocabulary is split. A constant, so that a sum has one order."""


def refusal(device: torch.device) -> str | None:
    """Why no kernel can run on a device, in words; None where they can."""
    if not has_bf16_products(device):
        return "they need an NVIDIA GPU of compute capability 8.0 or later"
    return None if importlib.util.find_spec("triton") is not None else "Triton is not installed"


def usable(hidden: Tensor, weight: Tensor) -> bool:
    """Whether kernels can take part: sums in fp32, on CUDA from compute capability 8.0, with Triton."""
    return precision(hidden, weight).sums == torch.float32 and refusal(hidden.device) is None


class RowKernel:
    """A generated kernel's text, and what it reads of the rows [N] beside their logits."""

    def __init__(self, text: str, known: Sequence[Tensor] = ()) -> None:
        self.rows = _module(text).rows
        self.known = [tensor.float().contiguous() for tensor in known]

    def __call__(self, rows: slice, head: Head, tile: Tensor, out: Tensor, targets: Tensor) -> tuple[Rows, Tensor]:
        """tile [n, V] of h·W of `rows` → their log-probs, entropies and c [n]; out: errors where c is not 0.

        `out` [n, V] may be the tile.
        """
        logp, lse, entropy, c = (tile.new_empty(len(tile)) for _ in range(4))
        known = [tensor[rows] for tensor in self.known]
        targets, results = targets.contiguous(), (logp, lse, entropy, c)
        bias, scalars, flags = _head(head, tile)
        grid = (len(tile),)
        _start(
            self.rows, grid, tile, out, bias, targets, *results, *known, head.vocabulary, *scalars, BLOCK=BLOCK, **flags
        )
        return Rows(logp, lse, entropy), c


def write_errors(head: Head, tile: Tensor, out: Tensor, targets: Tensor, lse: Tensor, first: int) -> None:
    """tile [n, v] of h·W in the columns from `first` → out: their errors, log Σ exp z [n] known."""
    from . import gpu

    bias, scalars, flags = _head(head, tile)
    grid = len(tile), -(-tile.shape[1] // BLOCK)
    _start(gpu.errors, grid, tile, out, bias, targets, lse, first, tile.shape[1], *scalars, BLOCK=BLOCK, **flags)


def reduced(hidden: Tensor, head: Head, targets: Tensor) -> Rows:
    """Log-probs and entropies [N] from hidden [N, D]: products and their reduction in one, no logit is written.

    No atomics: a program goes over its rows' share of the vocabulary in order, and shares are added in order.
    """
    from . import gpu

    count, depth = hidden.shape
    same = hidden.dtype == head.weight.dtype and hidden.dtype in OPERANDS
    operand = hidden.dtype if same else torch.float32
    rows, columns, deep = TILES[operand.itemsize]
    groups = -(-count // rows)
    splits = max(1, min(PROGRAMS // max(1, groups), -(-head.vocabulary // columns)))
    span = -(-head.vocabulary // (splits * columns)) * columns
    splits = -(-head.vocabulary // span)
    found = torch.empty(splits, 4, count, dtype=torch.float32, device=hidden.device)
    bias, scalars, flags = _head(head, found)
    strides = *hidden.stride(), *head.weight.stride()
    sizes = count, head.vocabulary, depth, span
    blocks = {"ROWS": rows, "COLUMNS": columns, "DEPTH": deep}
    flags["OPERAND"] = gpu.DTYPES[str(operand).removeprefix("torch.")]
    grid = groups, splits
    inputs = hidden, head.weight, bias, targets.contiguous()
    _start(gpu.reduced, grid, *inputs, found, *sizes, *strides, *scalars, **blocks, **flags)
    own, tops, totals, moments = found.unbind(1)
    top = tops.amax(0)
    fall = torch.where(totals == 0, 0, tops - top)
    total, moment = (totals * fall.exp()).sum(0), ((moments + fall * totals) * fall.exp()).sum(0)
    known = (targets >= 0) & (targets < head.vocabulary)
    logp = torch.where(known, own.sum(0) - top - total.log(), torch.nan)
    return Rows(logp, top + total.log(), total.log() - moment / total)


def _head(head: Head, anything: Tensor) -> tuple[Tensor, tuple[float, float], dict[str, Any]]:
    """What turns products into logits: bias [V], or any tensor for none; α, β; which of them count (gpu.py)."""
    capped = head.softcap is not None
    alpha = head.gain if head.softcap is None else head.scale / head.softcap
    beta = 1.0 if head.softcap is None else head.softcap / head.temperature
    bias = anything if head.bias is None else head.bias.detach().contiguous()
    return bias, (float(alpha), float(beta)), {"BIASED": head.bias is not None, "CAPPED": capped}


def _start(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run a kernel on the GPU that its first tensor lies on, whichever is current; an empty grid is no run."""
    if all(grid):
        with torch.cuda.device_of(args[0]):  # type: ignore[no-untyped-call]  # torch has no type for it
            kernel[grid](*args, num_warps=WARPS, **options)


@cache
def _module(text: str) -> ModuleType:
    """The text as a module that Triton can read the source of."""
    module = ModuleType("grolang_rows")
    module.__file__ = f"<grolang kernel {abs(hash(text))}>"
    linecache.cache[module.__file__] = (len(text), None, text.splitlines(keepends=True), module.__file__)
    exec(compile(text, module.__file__, "exec"), module.__dict__)
    return module
