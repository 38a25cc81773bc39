"""One pass where a coefficient needs the log-probs of its whole unit (sequence, pair, group): 6NDV."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grolang.language.diagnostics import GroError

from .exact import exact
from .head import Head
from .products import spans
from .recompute import add_recomputed
from .rows import Rows
from .single import Pass
from .sweep import BUDGET, ROWS_ON_CPU, Sums, Sweep, finished, row_limit, zero_sums

Scale = Callable[[slice, Tensor], Tensor]


@exact
def factored_pass(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    weights: Tensor | None,
    unit: Tensor,
    scale: Scale,
    *,
    entropy: bool = False,
    budget: int = BUDGET,
) -> Pass:
    """log-probs and the gradients of −Σ c·logp for c_i = s_u(i) · w_i, s_u a function of the logp of unit u.

    unit [N] names each row's unit; the rows of one unit stand together. weights w [N] are known beforehand;
    None says that c does not factor, and `scale` then returns c itself.
    scale(rows, logp) → s [n] gets a slice of 0..N that holds whole units, and its log-probs [n]; it returns
    s per row, one value within a unit (any values where weights is None).

    Units are packed into chunks: 6NDV, rows with c = 0 cost 2NDV. A unit that the budget cannot hold streams
    through the tile with coefficients w, the head's gradient going to one [V, D] scratch, and both are
    scaled by s when it is complete: still 6NDV; rows with w = 0 cost 2NDV, and s = 0 drops the unit. Where c
    does not factor, such a unit is recomputed: 8NDV for it.
    """
    most = row_limit(hidden, head, budget)
    soft = min(most, ROWS_ON_CPU) if hidden.device.type == "cpu" else most
    units = unit_slices(unit)
    packs = pack(units, soft)
    pieces = {rows.start: within(rows, soft) for rows in packs if length(rows) > most}
    sweep = Sweep(
        hidden,
        head,
        targets,
        [chunk for rows in packs for chunk in pieces.get(rows.start, [rows])],
        entropy=entropy,
    )
    sums = zero_sums(head, sweep.precise.sums)
    scratch: Sums | None = None
    d_hidden = torch.zeros(hidden.shape, dtype=sweep.precise.sums, device=hidden.device)
    coefficients = torch.empty_like(sweep.logp)
    w = None if weights is None else weights.to(sweep.precise.sums)
    for rows in packs:
        if rows.start not in pieces:
            sweep.read(rows)
            s = scale(rows, sweep.logp[rows])
            coefficients[rows] = s if w is None else s * w[rows]
            sweep.add(rows, coefficients[rows], d_hidden, sums)
        elif w is None:
            for piece in pieces[rows.start]:
                sweep.read_log_probs(piece)
            coefficients[rows] = c = scale(rows, sweep.logp[rows]).to(sweep.precise.sums)
            space = sweep.tile, sweep.slope
            add_recomputed(hidden[rows], head, targets[rows], c, sweep.lse[rows], d_hidden[rows], sums, space)
        else:
            scratch = zero_sums(head, sweep.precise.sums) if scratch is None else cleared(scratch)
            for piece in pieces[rows.start]:
                sweep.read(piece)
                sweep.add(piece, w[piece], d_hidden, scratch)
            s_unit = single_value(scale(rows, sweep.logp[rows]))
            coefficients[rows] = s_unit * w[rows]
            d_hidden[rows] *= s_unit
            if s_unit != 0:
                add_scaled(sums, scratch, s_unit)
    found = Rows(sweep.logp, sweep.lse, sweep.entropy)
    return Pass(found, coefficients, finished(hidden, head, d_hidden, sums))


def unit_slices(unit: Tensor) -> list[slice]:
    """The rows of each unit, in order. Raises GroError where a unit's rows do not stand together."""
    ids, counts = torch.unique_consecutive(unit, return_counts=True)
    if len(ids.unique()) < len(ids):
        raise GroError.plain("the rows of one unit must stand together", help="sort the rows by unit")
    stops: list[int] = counts.cumsum(0).tolist()
    return [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


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
    return [slice(rows.start + s.start, rows.start + s.stop) for s in spans(length(rows), most)]


def length(rows: slice) -> int:
    return int(rows.stop - rows.start)


def single_value(s: Tensor) -> float:
    if not bool(((s == s[0]) | s.isnan() & s[0].isnan()).all()):
        raise GroError.plain(
            "the scale of one unit must be one value for all of its rows: this coefficient does not factor",
            help="pass weights=None, and return the coefficients themselves from scale",
        )
    return float(s[0])


def cleared(sums: Sums) -> Sums:
    for one in sums:
        if one is not None:
            one.zero_()
    return sums


def add_scaled(sums: Sums, other: Sums, s: float) -> None:
    for one, part in zip(sums, other, strict=True):
        if one is not None and part is not None:
            one.add_(part, alpha=s)
