"""Where a generated row kernel meets the passes: on CUDA, where Triton is installed, and only when asked for.

It has run under Triton's interpreter alone, never on a GPU.
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

from .rows import Rows

BLOCK = 4096
"""Columns that a program holds at a time."""


def usable(hidden: Tensor) -> bool:
    """Whether row kernels take part: fp32 arithmetic on CUDA, with Triton."""
    return hidden.is_cuda and hidden.dtype != torch.float64 and importlib.util.find_spec("triton") is not None


class RowKernel:
    """A kernel's text, and what it reads of the rows [N] beside their logits."""

    def __init__(self, text: str, known: Sequence[Tensor]) -> None:
        self.rows = _module(text).rows
        self.known = [tensor.float().contiguous() for tensor in known]

    def __call__(self, rows: slice, tile: Tensor, targets: Tensor) -> tuple[Rows, Tensor]:
        """tile [n, V] of `rows`: logits → probabilities where c is not 0; their log-probs, entropies and c [n]."""
        logp, lse, entropy, c = (tile.new_empty(len(tile)) for _ in range(4))
        if len(tile):
            known = [tensor[rows] for tensor in self.known]
            launch: Any = self.rows[(len(tile),)]
            launch(tile, targets, logp, lse, entropy, c, *known, tile.shape[1], BLOCK=BLOCK)
        return Rows(logp, lse, entropy), c


@cache
def _module(text: str) -> ModuleType:
    """The text as a module that Triton can read the source of."""
    module = ModuleType("grolang_rows")
    module.__file__ = f"<grolang kernel {abs(hash(text))}>"
    linecache.cache[module.__file__] = (len(text), None, text.splitlines(keepends=True), module.__file__)
    exec(compile(text, module.__file__, "exec"), module.__dict__)
    return module
