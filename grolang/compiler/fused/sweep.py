"""One reused tile of logits that moves over the rows: the state that all token-chunk passes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from grolang.language.diagnostics import GroError

from .head import ALL, Head, hidden_gradient, logits, project
from .launch import RowKernel, reduced
from .pages import on_huge_pages
from .products import Precision, multiply, precision, rounds, spans
from .rows import LN2, Rows, compact, errors, exponentials, narrowed, taken

BUDGET = 256 * 2**20
BUDGET_ON_GPU = 2**30
"""Bytes of logits that may live at once where the caller names none. On a GPU chunks must be some 1000 rows high, or
the head's gradient in fp32, read and written once a chunk, takes longer than the products."""

ROWS_ON_CPU, ROWS_CONVERTED = 384, 1024
"""Rows of a chunk beyond which a CPU's matrix products gain nothing, and where each chunk converts the head to fp32;
elsewhere only the budget counts."""

PAGE, LINE = 4096, 64
"""Bytes: rows of whole pages fall on the same few lines of a CPU's cache, and its products lose a twentieth."""


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
    """Accumulators of zeros for what of the head is trained."""

    def zeros(parameter: Tensor | None) -> Tensor | None:
        if parameter is None or not parameter.requires_grad:
            return None
        return on_huge_pages(torch.empty(parameter.shape, dtype=dtype, device=parameter.device)).zero_()

    return Sums(zeros(head.weight), zeros(head.bias))


def finished(hidden: Tensor, head: Head, d_hidden: Tensor, sums: Sums) -> Gradients:
    """The gradients, each rounded once to what `Gradients` promises."""
    return Gradients(
        d_hidden.to(stored(hidden.dtype)),
        None if sums.weight is None else sums.weight.to(stored(head.weight.dtype)),
        None if sums.bias is None or head.bias is None else sums.bias.to(stored(head.bias.dtype)),
    )


def stored(parameter: torch.dtype) -> torch.dtype:
    """The dtype in which a parameter's gradient is handed out, as `Gradients` promises."""
    return torch.float32 if parameter == torch.float16 else parameter


def row_limit(hidden: Tensor, head: Head, budget: int | None) -> int:
    """Rows of [·, V] that the budget holds, at least 1."""
    if budget is None:
        budget = BUDGET_ON_GPU if hidden.is_cuda else BUDGET
    return max(1, budget // max(1, head.vocabulary * bytes_per_logit(head, precision(hidden, head.weight))))


def bytes_per_logit(head: Head, precise: Precision) -> int:
    """The tile, its slopes under a softcap, and its copy where a GPU's products read narrower operands."""
    tiles = 1 if head.softcap is None else 2
    copied = precise.operands != precise.sums and not rounds(head.weight.device)
    return tiles * precise.sums.itemsize + (precise.operands.itemsize if copied else 0)


def row_chunks(hidden: Tensor, head: Head, budget: int | None) -> list[slice]:
    """All rows, a chunk at a time."""
    return spans(len(hidden), chunk_limit(hidden, head, budget))


def chunk_limit(hidden: Tensor, head: Head, budget: int | None) -> int:
    """Rows that a chunk should have at most."""
    most = row_limit(hidden, head, budget)
    if hidden.device.type != "cpu":
        return most
    converted = head.weight.dtype != precision(hidden, head.weight).sums
    return min(most, ROWS_CONVERTED if converted else ROWS_ON_CPU)


class Sweep:
    """The tile, and what it has learnt about the rows it has been over.

    `read` and `read_log_probs` go over a slice of rows and fill logp, lse [N] (and entropy); `add` turns the errors
    that `read` has just left into gradients. A generated `kernel` does the row work in place of rows.py.
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        targets: Tensor,
        chunks: Sequence[slice],
        *,
        entropy: bool = False,
        kernel: RowKernel | None = None,
    ) -> None:
        check(hidden, head, targets)
        self.hidden, self.head, self.targets, self.kernel = hidden, head, targets, kernel
        self.precise = precision(hidden, head.weight)
        height = max((chunk.stop - chunk.start for chunk in chunks), default=0)
        empty = hidden.new_empty(0, dtype=self.precise.sums)
        self.tile = (
            tiled(empty, height, head.vocabulary) if kernel is None else empty.new_empty(height, head.vocabulary)
        )
        self.errors, self.slope = self.tile, None
        if kernel is not None:
            if self.precise.operands != self.precise.sums:
                self.errors = torch.empty_like(self.tile, dtype=self.precise.operands)
        elif head.softcap is not None:
            self.slope = torch.empty_like(self.tile)
        self.base2 = replace(head, temperature=head.temperature * LN2)
        self.logp = hidden.new_empty(len(hidden), dtype=self.precise.sums)
        self.lse, self.top = torch.empty_like(self.logp), torch.empty_like(self.logp)
        self.total = torch.ones_like(self.logp)
        self.entropy = torch.empty_like(self.logp) if entropy else None

    def read(self, rows: slice) -> Tensor | None:
        """Leave the errors of `rows`. A kernel gives c [n] (None without one), and no errors where it is 0."""
        size, targets = rows.stop - rows.start, self.targets[rows]
        tile, c = self.tile[:size], None
        if self.kernel is not None:
            project(self.head, self._states(rows), tile)
            found, c = self.kernel(rows, self.head, tile, self.errors[:size], targets)
            self._note(rows, found)
        else:
            slope = None if self.slope is None else self.slope[:size]
            self._spread(rows, tile, slope)
            errors(tile, targets, self.logp[rows], self.total[rows], slope)
        return c

    def read_log_probs(self, rows: slice) -> None:
        """Cheaper than `read`, and no `add` may follow."""
        if self.kernel is not None:
            self._note(rows, reduced(self.hidden[rows], self.head, self.targets[rows]))
        else:
            self._spread(rows, self.tile[: rows.stop - rows.start], None)

    def add(self, rows: slice, coefficients: Tensor, d_hidden: Tensor, sums: Sums, kept: Tensor | None = None) -> None:
        """Add the gradients of −Σ c·logp over `rows`: to `sums`, and d_hidden [N, D].

        The rows just read, or any whose errors [n, V] were `kept`, in whatever dtype; either are used up, and the
        tile. Rows with c = 0 are dropped before the products and left as they are in d_hidden.
        """
        found = self.errors[: rows.stop - rows.start] if kept is None else kept
        order = compact(coefficients != 0, found)
        if len(order) == 0:
            return
        places, found = order + rows.start, found[: len(order)]
        c = coefficients[order] / self.total[places]
        if found.dtype != self.precise.operands or sums.bias is not None:
            found = widened(found, self.tile)
        add_bias(found, c, self.head, sums.bias)
        targets = self.targets[places]
        own = taken(found, targets) if self.rounded else None
        operand = as_operand(found, self.precise)
        product = hidden_gradient(self.head, operand, d_hidden.new_empty(len(order), d_hidden.shape[1]))
        if sums.weight is not None:
            scaled = weighted(self.hidden[places], c, self.precise)
            multiply(sums.weight, operand.T, scaled, alpha=self.head.gain, beta=1.0, rounded=True)
        if own is not None:
            add_own(self.head, own, self.hidden[places], targets, c, product, sums.weight)
        d_hidden.index_copy_(0, places, product.mul_(c.unsqueeze(1)))

    def seen(self, rows: slice = ALL) -> Rows:
        """What is known of rows that were read."""
        return Rows(self.logp[rows], self.lse[rows], None if self.entropy is None else self.entropy[rows])

    @property
    def rounded(self) -> bool:
        """Whether the backward products' results are rounded, so that the targets' own errors keep out of them."""
        return self.precise.operands != self.precise.sums and rounds(self.hidden.device)

    def _states(self, rows: slice) -> Tensor:
        return self.hidden[rows].to(self.precise.operands)

    def _spread(self, rows: slice, tile: Tensor, slope: Tensor | None) -> None:
        logits(self.base2, self._states(rows), tile, slope)
        logp, top, total, entropy = exponentials(tile, self.targets[rows], self.entropy is not None)
        self.top[rows], self.total[rows] = top, total
        self._note(rows, Rows(logp, LN2 * top + total.log(), entropy))

    def _note(self, rows: slice, found: Rows) -> None:
        self.logp[rows], self.lse[rows] = found.logp, found.lse
        if self.entropy is not None and found.entropy is not None:
            self.entropy[rows] = found.entropy


def widened(errors: Tensor, tile: Tensor) -> Tensor:
    """errors in the tile's dtype: copied into the tile where they are narrower."""
    return errors if errors.dtype == tile.dtype else tile[: len(errors)].copy_(errors)


def tiled(like: Tensor, rows: int, columns: int) -> Tensor:
    """[rows, columns] with their gaps, not filled."""
    return on_huge_pages(like.new_empty(rows, columns + gap(like, columns)))[:, :columns]


def gap(like: Tensor, columns: int) -> int:
    """Numbers to leave out between the rows of a tile: a cache line on a CPU, where rows would be whole pages."""
    pages = columns * like.itemsize % PAGE == 0
    return LINE // like.itemsize if pages and like.device.type == "cpu" else 0


def weighted(hidden: Tensor, c: Tensor, precise: Precision) -> Tensor:
    """c ⊙ H as an operand: scaling H instead of the tile saves a pass over the tile."""
    return (hidden.to(precise.sums) * c.unsqueeze(1)).to(precise.operands)


def as_operand(errors: Tensor, precise: Precision) -> Tensor:
    """errors as the backward products read them, in a CPU's tile in place."""
    if errors.dtype == precise.operands:
        return errors
    return narrowed(errors, precise.operands) if errors.device.type == "cpu" else errors.to(precise.operands)


def add_own(
    head: Head, own: Tensor, hidden: Tensor, targets: Tensor, c: Tensor, d_states: Tensor, d_weight: Tensor | None
) -> None:
    """Add what the targets' `own` errors [n] give: to d_states [n, D], without c, and to d_weight[targets], with it."""
    own = own.to(d_states.dtype).unsqueeze(1)
    d_states.addcmul_(head.weight[targets].to(own.dtype), own, value=head.gain)
    if d_weight is not None:
        d_weight.index_add_(0, targets, hidden.to(own.dtype) * (own * c.unsqueeze(1)), alpha=head.gain)


def add_bias(tile: Tensor, c: Tensor, head: Head, out: Tensor | None) -> None:
    """out [v] += gain · Σ c · errors [n, v], where the bias is trained."""
    if out is not None:
        out.addmv_(tile.T, c, alpha=head.gain)


def check(hidden: Tensor, head: Head, targets: Tensor) -> None:
    """GroError unless hidden is [N, D] and targets [N], for this head's D."""
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
