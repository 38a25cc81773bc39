"""One pass where a row's coefficient needs no other row's log-prob: 6NDV, one chunk of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .exact import exact
from .head import Head
from .launch import RowKernel
from .rows import Rows
from .sweep import Gradients, Sweep, finished, row_chunks, zero_sums


class Pass(NamedTuple):
    """What one pass gave: logp, lse, entropy [N], the coefficients c [N] that it used, the gradients."""

    rows: Rows
    coefficients: Tensor
    gradients: Gradients


@exact
def single_pass(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    coefficient: Callable[[slice, Tensor, Tensor | None], Tensor] | None,
    *,
    kernel: RowKernel | None = None,
    entropy: bool = False,
    budget: int | None = None,
) -> Pass:
    """log-probs, coefficients and the gradients of −Σ c·logp, c held fixed, while each chunk of logits lives.

    coefficient(rows, logp, entropy) → c gets the rows of a chunk as a slice of 0..N and their log-probs (and
    entropies, or None) [n], and returns c [n]. Coefficients known beforehand are the case `lambda rows, *_:
    c[rows]`. None leaves them to the `kernel`, which makes them in one go with log-probs and errors. 6NDV; 4NDV
    with a frozen head; 2NDV for rows with c = 0, which leave before the backward products.
    """
    chunks = row_chunks(hidden, head, budget)
    sweep = Sweep(hidden, head, targets, chunks, entropy=entropy, kernel=kernel)
    sums = zero_sums(head, sweep.precise.sums)
    d_hidden = torch.zeros(hidden.shape, dtype=sweep.precise.sums, device=hidden.device)
    coefficients = torch.empty_like(sweep.logp)
    for rows in chunks:
        c = sweep.read(rows)
        if coefficient is not None:
            found = sweep.seen(rows)
            c = coefficient(rows, found.logp, found.entropy)
        assert c is not None, "bug in grolang: neither a coefficient nor a kernel that has one"
        coefficients[rows] = c
        sweep.add(rows, coefficients[rows], d_hidden, sums)
    return Pass(sweep.seen(), coefficients, finished(hidden, head, d_hidden, sums))
