"""Triton's kernels against torch's operations on a few rows, before a run relies on them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .forward import forward
from .head import Head
from .launch import RowKernel
from .single import single_pass

ROWS, WIDTH, WORDS = 20, 64, 4100
"""Of the trial: more words than a program holds at a time, and no multiple of any block."""

NEAR = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Relative differences (Frobenius) that rounding explains."""


@cache
def failure(device: torch.device, dtype: torch.dtype, text: str) -> str | None:
    """What goes wrong with kernels there, in words; None where log-probs, entropies and gradients are torch's.

    `text` is that of a row kernel without coefficients (kernel.PLAIN): whatever a method inlines comes on top.
    """
    try:
        with_kernels = _numbers(device, dtype, RowKernel(text))
    except Exception as error:  # whatever a compiler, a driver or a card raises
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    names = (
        "log-probs",
        "entropies",
        "log-probs",
        "entropies",
        "states' gradients",
        "head's gradients",
        "bias' gradients",
    )
    for name, one, other in zip(names, with_kernels, _numbers(device, dtype, None), strict=True):
        apart = float((one - other).norm() / other.norm())
        if not apart <= NEAR[dtype]:
            return f"on a trial {name} differ from torch's by {apart:.1g}"
    return None


def _numbers(device: torch.device, dtype: torch.dtype, kernel: RowKernel | None) -> list[Tensor]:
    make = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make).to(device, dtype)

    head = Head(drawn(WORDS, WIDTH).requires_grad_(), drawn(WORDS).requires_grad_(), softcap=20.0, temperature=0.7)
    hidden, c = drawn(ROWS, WIDTH) / 4, torch.arange(ROWS, device=device, dtype=torch.float32) % 5 - 2
    targets = torch.arange(ROWS, device=device) * (WORDS // ROWS)
    alone = forward(hidden, head, targets, entropy=True, kernels=kernel is not None)
    made = single_pass(hidden, head, targets, lambda rows, *_: c[rows], kernel=kernel, entropy=True)
    found = [alone.logp, alone.entropy, made.rows.logp, made.rows.entropy, *made.gradients]
    return [one.double() for one in found if one is not None]
