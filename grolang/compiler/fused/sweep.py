"""One reused tile of logits that moves over the rows: the state that all token-chunk passes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from grolang.language.diagnostics import GroError

from .head import Head, hidden_gradient, logits
from .launch import RowKernel
from .products import Precision, multiply, precision, spans
from .rows import Rows, compact, errors, log_probabilities, probabilities, with_entropy

BUDGET = 256 * 2**20
"""Bytes of logits that may live at once."""

ROWS_ON_CPU = 1024
"""Rows of a chunk beyond which a CPU's matrix products gain nothing; elsewhere only the budget counts."""


class Gradients(NamedTuple):
    """Gradients of −Σ c·logp: hidden [N, D], weight [V, D] and bias [V], None where the head's is frozen.

    In the parameters' dtypes, but fp32 for fp16 parameters: a loss scaler's factor comes before the rounding.
    """

    hidden: Tensor
    weight: Tensor | None
    bias: Tensor | None


class Sums(NamedTuple):
    """Accumulators of the head's gradients in the sums' dtype; None where frozen."""

    weight: Tensor | None
    bias: Tensor | None


FROZEN = Sums(None, None)
"""Of a head that is not trained."""


def zero_sums(head: Head, dtype: torch.dtype) -> Sums:
    def zeros(parameter: Tensor | None) -> Tensor | None:
        if parameter is None or not parameter.requires_grad:
            return None
        return torch.zeros(parameter.shape, dtype=dtype, device=parameter.device)

    return Sums(zeros(head.weight), zeros(head.bias))


def finished(hidden: Tensor, head: Head, d_hidden: Tensor, sums: Sums) -> Gradients:
    """The gradients, each rounded once to what `Gradients` promises."""
    return Gradients(
        d_hidden.to(stored(hidden.dtype)),
        None if sums.weight is None else sums.weight.to(stored(head.weight.dtype)),
        None if sums.bias is None or head.bias is None else sums.bias.to(stored(head.bias.dtype)),
    )


def stored(parameter: torch.dtype) -> torch.dtype:
    return torch.float32 if parameter == torch.float16 else parameter


def row_limit(hidden: Tensor, head: Head, budget: int) -> int:
    """Rows of [·, V] that the budget holds, at least 1."""
    return max(1, budget // max(1, head.vocabulary * bytes_per_logit(head, precision(hidden, head.weight))))


def bytes_per_logit(head: Head, precise: Precision) -> int:
    """The tile, its slopes under a softcap, and its copy where the products read narrower operands."""
    tiles = 1 if head.softcap is None else 2
    return tiles * precise.sums.itemsize + (precise.operands.itemsize if precise.operands != precise.sums else 0)


def row_chunks(hidden: Tensor, head: Head, budget: int) -> list[slice]:
    most = row_limit(hidden, head, budget)
    return spans(len(hidden), min(most, ROWS_ON_CPU) if hidden.device.type == "cpu" else most)


class Sweep:
    """The tile, and what it has learnt about the rows it has been over.

    `read` and `read_log_probs` load the tile with a slice of rows and fill logp, lse [N] (and entropy); `add`
    turns the tile that `read` has just loaded into gradients.
    """

    def __init__(
        self, hidden: Tensor, head: Head, targets: Tensor, chunks: Sequence[slice], *, entropy: bool = False
    ) -> None:
        check(hidden, head, targets)
        self.hidden, self.head, self.targets = hidden, head, targets
        self.precise = precision(hidden, head.weight)
        height = max((chunk.stop - chunk.start for chunk in chunks), default=0)
        self.tile = hidden.new_empty(height, head.vocabulary, dtype=self.precise.sums)
        self.slope = None if head.softcap is None else torch.empty_like(self.tile)
        self.logp = hidden.new_empty(len(hidden), dtype=self.precise.sums)
        self.lse = torch.empty_like(self.logp)
        self.entropy = torch.empty_like(self.logp) if entropy else None

    def read(self, rows: slice) -> None:
        """Load the probabilities of `rows`."""
        tile, targets = self._logits(rows), self.targets[rows]
        self._note(rows, probabilities(tile, targets) if self.entropy is None else with_entropy(tile, targets))

    def read_by(self, kernel: RowKernel, rows: slice) -> Tensor:
        """`read` by a generated kernel, which gives their coefficients [n] too."""
        found, c = kernel(rows, self._logits(rows), self.targets[rows])
        self._note(rows, found)
        return c

    def read_log_probs(self, rows: slice) -> None:
        """Load the log-probs of `rows`: cheaper than `read`, and no `add` may follow."""
        if self.entropy is not None:
            self.read(rows)
        else:
            self._note(rows, log_probabilities(self._logits(rows), self.targets[rows]))

    def add(self, rows: slice, coefficients: Tensor, d_hidden: Tensor, sums: Sums) -> None:
        """Add the gradients of −Σ c·logp over `rows`, the ones just read: to `sums`, and d_hidden [N, D].

        Rows with c = 0 are dropped before the products and left as they are in d_hidden. The tile is used up.
        """
        size = rows.stop - rows.start
        order = compact(coefficients != 0, self.tile[:size], *(() if self.slope is None else (self.slope[:size],)))
        places, c = order + rows.start, coefficients[order]
        slope = None if self.slope is None else self.slope[: len(order)]
        tile = errors(self.tile[: len(order)], self.targets[places], self.logp[places], slope)
        self._products(tile, places, c, d_hidden, sums)

    def errors(self, rows: slice) -> Tensor:
        """The tile of `rows`, the ones just read, as errors: what `add_errors` takes."""
        size = rows.stop - rows.start
        slope = None if self.slope is None else self.slope[:size]
        return errors(self.tile[:size], self.targets[rows], self.logp[rows], slope)

    def add_errors(self, rows: slice, kept: Tensor, coefficients: Tensor, d_hidden: Tensor, sums: Sums) -> None:
        """`add` for errors [n, V] that were kept, in any dtype. They and the tile are used up."""
        order = compact(coefficients != 0, kept)
        tile = kept[: len(order)]
        if tile.dtype != self.precise.sums:
            tile = self.tile[: len(order)].copy_(tile)
        self._products(tile, order + rows.start, coefficients[order], d_hidden, sums)

    def _products(self, tile: Tensor, places: Tensor, c: Tensor, d_hidden: Tensor, sums: Sums) -> None:
        if len(places) == 0:
            return
        add_bias(tile, c, self.head, sums.bias)
        tile = tile.to(self.precise.operands)
        product = hidden_gradient(self.head, tile, d_hidden.new_empty(len(places), d_hidden.shape[1]))
        d_hidden.index_copy_(0, places, product.mul_(c.unsqueeze(1)))
        if sums.weight is not None:
            scaled = weighted(self.hidden[places], c, self.precise)
            multiply(sums.weight, tile.T, scaled, alpha=self.head.gain, beta=1.0)

    def _logits(self, rows: slice) -> Tensor:
        size = rows.stop - rows.start
        slope = None if self.slope is None else self.slope[:size]
        return logits(self.head, self.hidden[rows].to(self.precise.operands), self.tile[:size], slope)

    def _note(self, rows: slice, found: Rows) -> None:
        self.logp[rows], self.lse[rows] = found.logp, found.lse
        if self.entropy is not None and found.entropy is not None:
            self.entropy[rows] = found.entropy


def weighted(hidden: Tensor, c: Tensor, precise: Precision) -> Tensor:
    """c ⊙ H as an operand: scaling H instead of the tile saves a pass over the tile."""
    return (hidden.to(precise.sums) * c.unsqueeze(1)).to(precise.operands)


def add_bias(tile: Tensor, c: Tensor, head: Head, out: Tensor | None) -> None:
    if out is not None:
        out.addmv_(tile.T, c, alpha=head.gain)


def check(hidden: Tensor, head: Head, targets: Tensor) -> None:
    if hidden.dim() != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise GroError.plain(
            f"expected hidden states [N, {head.weight.shape[1]}] for this head, found {list(hidden.shape)}",
            help="keep the valid tokens only: hidden[mask]",
        )
    if targets.shape != hidden.shape[:1]:
        raise GroError.plain(
            f"expected targets [{len(hidden)}], one per row of hidden states, found {list(targets.shape)}",
            help="keep the valid tokens only: targets[mask]",
        )
