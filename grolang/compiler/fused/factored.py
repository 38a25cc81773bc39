"""One pass where a coefficient needs the log-probs of its whole unit (sequence, pair, group, batch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grolang.language.diagnostics import GroError

from .exact import exact
from .head import Head
from .launch import RowKernel
from .products import spans
from .recompute import add_recomputed
from .single import Pass
from .sweep import FROZEN, Sums, Sweep, chunk_limit, finished, row_limit, zero_sums

Scale = Callable[[slice, Tensor, Tensor | None], Tensor]

KEEP = 256 * 2**20
"""Bytes of softmax that may be kept from a unit's log-probs to its gradients."""


@exact
def factored_pass(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    weights: Tensor | None,
    unit: Tensor,
    scale: Scale,
    *,
    part: Tensor | None = None,
    entropy: bool = False,
    budget: int | None = None,
    keep: int = KEEP,
    kernel: RowKernel | None = None,
) -> Pass:
    """log-probs and the gradients of −Σ c·logp for c_i = s_i · w_i, s a function of the logp of i's unit.

    unit [N] names each row's unit; the rows of one unit stand together. weights w [N] are known beforehand;
    None says that c does not factor, and `scale` then returns c itself.
    scale(rows, logp, entropy) → s [n] gets a slice of 0..N that holds whole units, its log-probs [n] and entropies
    (or None). s has one value within a `part` [N], which names runs of rows within a unit and is the unit where
    left out; any values where weights is None. c is 0 where w is, whatever s.

    Units are packed into chunks: 6NDV, rows with c = 0 cost 2NDV. A unit that the budget cannot hold streams
    through the tile with coefficients w, the head's gradient going to a [V, D] scratch for each part, and all is
    scaled by s when the unit is complete: still 6NDV; rows with w = 0 cost 2NDV, and s = 0 drops the part. Where
    c does not factor, the softmax of such a unit's rows is kept as far as `keep` bytes go, in the model's dtype
    (bfloat16 for 16 bits): 6NDV; what is neither kept nor in the tile still is recomputed: 8NDV. With a frozen
    head rows are scaled one by one, so that any c streams: 4NDV. A `kernel` does the row work; its coefficients
    are w, or 1 where there are no weights.
    """
    most = row_limit(hidden, head, budget)
    soft = chunk_limit(hidden, head, budget)
    packs = pack(unit_slices(unit), soft)
    cuts: dict[int, list[list[slice]]] = {}  # of a pack larger than the tile: the pieces of each of its parts
    for rows in packs:
        if length(rows) > most:
            parts = [rows] if part is None or weights is None else unit_slices(part[rows], rows.start)
            cuts[rows.start] = [within(one, soft) for one in parts]
    chunks = [chunk for rows in packs for cut in cuts.get(rows.start, [[rows]]) for chunk in cut]
    work = _Units(Sweep(hidden, head, targets, chunks, entropy=entropy, kernel=kernel), weights, scale)
    for rows in packs:
        if rows.start not in cuts:
            work.in_one_chunk(rows)
        elif weights is None and work.sums != FROZEN:
            work.kept(rows, cuts[rows.start][0], keep)
        else:
            work.streamed(rows, cuts[rows.start])
    return Pass(work.sweep.seen(), work.coefficients, finished(hidden, head, work.d_hidden, work.sums))


class _Units:
    """The gradients so far, and the three ways to add those of a unit."""

    def __init__(self, sweep: Sweep, weights: Tensor | None, scale: Scale) -> None:
        self.sweep, self.scale = sweep, scale
        self.w = None if weights is None else weights.to(sweep.precise.sums)
        self.sums = zero_sums(sweep.head, sweep.precise.sums)
        self.d_hidden = torch.zeros(sweep.hidden.shape, dtype=sweep.precise.sums, device=sweep.hidden.device)
        self.coefficients = torch.empty_like(sweep.logp)
        self.scratch: list[Sums] = []

    def learn(self, rows: slice) -> Tensor:
        """Set the coefficients of whole units whose log-probs are known; give s."""
        found = self.sweep.seen(rows)
        s = self.scale(rows, found.logp, found.entropy).to(self.sweep.precise.sums)
        self.coefficients[rows] = s if self.w is None else torch.where(self.w[rows] == 0, 0, s * self.w[rows])
        return s

    def add(self, rows: slice) -> None:
        self.sweep.add(rows, self.coefficients[rows], self.d_hidden, self.sums)

    def in_one_chunk(self, rows: slice) -> None:
        self.sweep.read(rows)
        self.learn(rows)
        self.add(rows)

    def streamed(self, rows: slice, cuts: Sequence[Sequence[slice]]) -> None:
        """With coefficients w, scaled by s afterwards: states row by row, the head's gradient part by part."""
        sweep, frozen = self.sweep, self.sums == FROZEN
        w = torch.ones_like(sweep.logp[rows]) if self.w is None else self.w[rows]
        while len(self.scratch) < len(cuts):
            self.scratch.append(zero_sums(sweep.head, sweep.precise.sums))
        for cut, scratch in zip(cuts, self.scratch):
            clear(scratch)
            for piece in cut:
                sweep.read(piece)
                sweep.add(piece, w[shifted(piece, rows)], self.d_hidden, scratch)
        s = self.learn(rows)
        self.d_hidden[rows] *= torch.where(self.coefficients[rows] == 0, 0, s)[:, None]
        for cut, scratch in zip([] if frozen else cuts, self.scratch):
            here = slice(cut[0].start, cut[-1].stop)
            one = single_value(s[shifted(here, rows)])
            if bool(self.coefficients[here].any()):
                add_scaled(self.sums, scratch, one)

    def kept(self, rows: slice, cut: Sequence[slice], room: int) -> None:
        """Any coefficients: the first pieces' errors are kept, the last one's are still in the tile."""
        sweep, kept = self.sweep, list[Tensor]()
        *before, last = cut
        both = torch.promote_types(sweep.hidden.dtype, sweep.head.weight.dtype)
        dtype = torch.bfloat16 if both.itemsize == 2 else sweep.precise.sums
        for piece in before:
            room -= length(piece) * sweep.head.vocabulary * dtype.itemsize
            if room >= 0:
                sweep.read(piece)
                kept.append(sweep.errors[: length(piece)].to(dtype, copy=True))
            else:
                sweep.read_log_probs(piece)
        sweep.read(last)
        self.learn(rows)
        self.add(last)
        for piece, errors in zip(before, kept):
            sweep.add(piece, self.coefficients[piece], self.d_hidden, self.sums, errors)
        if before[len(kept) :]:
            rest = slice(before[len(kept)].start, last.start)
            add_recomputed(sweep, rest, self.coefficients[rest], self.d_hidden[rest], self.sums)


def unit_slices(unit: Tensor, start: int = 0) -> list[slice]:
    """The rows of each unit, in order, counted from `start`. GroError where a unit's rows do not stand together."""
    ids, counts = torch.unique_consecutive(unit, return_counts=True)
    if len(ids.unique()) < len(ids):
        raise GroError.plain("the rows of one unit must stand together", help="sort the rows by unit")
    stops: list[int] = (counts.cumsum(0) + start).tolist()
    return [slice(one, stop) for one, stop in zip([start, *stops], stops, strict=False)]


def pack(units: Sequence[slice], most: int) -> list[slice]:
    """Neighbouring units joined while they hold at most `most` rows together; a longer unit stands alone."""
    packs: list[slice] = []
    for one in units:
        if packs and one.stop - packs[-1].start <= most:
            packs[-1] = slice(packs[-1].start, one.stop)
        else:
            packs.append(one)
    return packs


def within(rows: slice, most: int) -> list[slice]:
    """Rows cut into the fewest slices of at most `most`."""
    return [slice(rows.start + s.start, rows.start + s.stop) for s in spans(length(rows), most)]


def shifted(rows: slice, base: slice) -> slice:
    """Rows as they are counted from the start of `base`."""
    return slice(rows.start - base.start, rows.stop - base.start)


def length(rows: slice) -> int:
    return int(rows.stop - rows.start)


def single_value(s: Tensor) -> float:
    """The scale that all rows of a part have, NaN included; GroError where they differ."""
    if not bool(((s == s[0]) | s.isnan() & s[0].isnan()).all()):
        raise GroError.plain(
            "the scale of one unit must be one value for all of its rows: this coefficient does not factor",
            help="pass weights=None, and return the coefficients themselves from scale",
        )
    return float(s[0])


def clear(sums: Sums) -> None:
    """Set all to 0."""
    for one in sums:
        if one is not None:
            one.zero_()


def add_scaled(sums: Sums, other: Sums, s: float) -> None:
    """sums += s · other, in place."""
    for one, part in zip(sums, other, strict=True):
        if one is not None and part is not None:
            one.add_(part, alpha=s)
