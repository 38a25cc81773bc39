"""Row work on a GPU: what rows.py does, as Triton functions, with the head's bias, scale and softcap on the way.

The only file that needs Triton. It is imported by launch.py when a kernel runs, and by the generated kernels.
It has run under Triton's interpreter only, and been compiled for GPUs; it has never run on one.

z = α·(h·Wᵥ + bᵥ), or β·tanh(α·(h·Wᵥ + bᵥ)) under a softcap. Offsets into [N, V] and [V, D] are 64 bits wide.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

DTYPES = {"float32": tl.float32, "bfloat16": tl.bfloat16, "float16": tl.float16}


@triton.jit
def log1p(x):
    """log(1 + x) to fp32's digits: what 1 + x lost to rounding is put back."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.where(tl.abs(x) > 1.0, tl.log(u), tl.log(u) * (x / (u - 1.0))))


@triton.jit
def expm1(x):
    """exp(x) − 1 to fp32's digits, the same way."""
    u = tl.exp(x)
    return tl.where(u == 1.0, x, tl.where(tl.abs(x) > 1.0, u - 1.0, (u - 1.0) * (x / tl.log(u))))


@triton.jit
def tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    s = x * x
    near = x * (1.0 - s * (1.0 / 3.0 - s * (2.0 / 15.0 - s * (17.0 / 315.0))))
    return tl.where(tl.abs(x) < 0.2, near, tl.where(x < 0, -far, far))


@triton.jit
def lower(x, y):
    """min(x, y), and NaN where either is, as torch's."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def higher(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def logit(product, bias, columns, inside, alpha, beta, BIASED: tl.constexpr, CAPPED: tl.constexpr):
    """z of the products h·Wᵥ."""
    z = product
    if BIASED:
        z += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    z = z * alpha
    if CAPPED:
        z = beta * tanh(z)
    return z


@triton.jit
def more(top, total, moment, z):
    """max z, Σ exp(z − top) and Σ (z − top) exp(z − top) of rows [m] so far, and of z [m, n] with them."""
    high = tl.maximum(top, tl.max(z, 1))
    base = tl.where(high == -float("inf"), 0.0, high)
    fall = tl.where(total == 0, 0.0, top - base)  # nothing so far: top is −∞
    shrink = tl.exp(fall)
    apart = z - base[:, None]
    e = tl.exp(apart)
    moment = shrink * (moment + fall * total) + tl.sum(tl.where(e == 0, 0.0, apart * e), 1)
    return high, total * shrink + tl.sum(e, 1), moment


@triton.jit
def error(z, top, total, logp, own, beta, CAPPED: tl.constexpr):
    """(p − e_y) · slope: p = exp(z − top) / total, and expm1(log p) where the column is the row's own."""
    e = tl.where(own, expm1(logp), tl.exp(z - top) / total)
    if CAPPED:
        t = z / beta
        e = e * (1.0 - t * t)
    return e


@triton.jit
def read(
    tile, bias, target, start, width, alpha, beta, BIASED: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr
):
    """Own logit, max, Σ and moment of `more` of rows [m] that begin at tile + start; NaN for a target out of range."""
    known = (target >= 0) & (target < width)
    own = logit(
        tl.load(tile + start + target, mask=known, other=float("nan")), bias, target, known, alpha, beta, BIASED, CAPPED
    )
    top = tl.zeros_like(own) - float("inf")
    total = tl.zeros_like(own)
    moment = tl.zeros_like(own)
    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)[None, :]
        inside = columns < width
        product = tl.load(tile + start[:, None] + columns, mask=inside, other=0.0)
        z = tl.where(inside, logit(product, bias, columns, inside, alpha, beta, BIASED, CAPPED), -float("inf"))
        top, total, moment = more(top, total, moment, z)
    tl.debug_barrier()  # every warp has read the row, the target's place too, before any writes over it
    return own, top, total, moment


@triton.jit
def write(
    tile,
    out,
    bias,
    target,
    start,
    width,
    top,
    total,
    logp,
    live,
    alpha,
    beta,
    BIASED: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out: the errors of the rows that are live [m]; it may be the tile."""
    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)[None, :]
        inside = (columns < width) & live[:, None]
        place = start[:, None] + columns
        product = tl.load(tile + place, mask=inside, other=0.0)
        z = logit(product, bias, columns, inside, alpha, beta, BIASED, CAPPED)
        own = columns == target[:, None]
        e = error(z, top[:, None], total[:, None], logp[:, None], own, beta, CAPPED)
        tl.store(out + place, e.to(out.dtype.element_ty), mask=inside)


@triton.jit
def errors(
    tile,
    out,
    bias,
    targets,
    lse,
    first,
    width,
    alpha,
    beta,
    BIASED: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out: the errors of the columns from `first`, where the rows' log Σ exp z is known. A block of a row a program."""
    row = tl.program_id(0) + tl.arange(0, 1)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = columns < width
    place = (row.to(tl.int64) * width)[:, None] + columns
    product = tl.load(tile + place, mask=inside, other=0.0)
    z = logit(product, bias, first + columns, inside, alpha, beta, BIASED, CAPPED)
    base = tl.load(lse + row)[:, None]
    own = first + columns == tl.load(targets + row)[:, None]
    e = error(z, base, 1.0, z - base, own, beta, CAPPED)
    tl.store(out + place, e.to(out.dtype.element_ty), mask=inside)


@triton.jit
def reduced(
    hidden,
    weight,
    bias,
    targets,
    found,
    count,
    width,
    depth,
    span,
    hidden_row,
    hidden_column,
    weight_row,
    weight_column,
    alpha,
    beta,
    BIASED: tl.constexpr,
    CAPPED: tl.constexpr,
    OPERAND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """found [splits, 4, N]: own logit (0 where not in this split), max, Σ and moment of `more`; no logit is written.

    A program takes ROWS rows and the `span` columns of its split, COLUMNS of them at a time. Products are summed in
    fp32, of OPERANDs; ieee: fp32 operands are not rounded.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < count
    target = tl.load(targets + row, mask=there, other=-1)
    left = hidden + (row.to(tl.int64) * hidden_row)[:, None]
    own = tl.zeros([ROWS], tl.float32)
    top = own - float("inf")
    total = tl.zeros([ROWS], tl.float32)
    moment = tl.zeros([ROWS], tl.float32)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, width)
    for first in range(begin, end, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = column < end
        right = weight + (column.to(tl.int64) * weight_row)[None, :]
        product = tl.zeros([ROWS, COLUMNS], tl.float32)
        for at in range(0, depth, DEPTH):
            k = at + tl.arange(0, DEPTH)
            far = k.to(tl.int64)
            a = tl.load(left + (far * hidden_column)[None, :], mask=there[:, None] & (k < depth)[None, :], other=0.0)
            b = tl.load(right + (far * weight_column)[:, None], mask=(k < depth)[:, None] & inside[None, :], other=0.0)
            product = tl.dot(a.to(OPERAND), b.to(OPERAND), product, input_precision="ieee")
        columns = column[None, :]
        z = logit(product, bias, columns, inside[None, :], alpha, beta, BIASED, CAPPED)
        z = tl.where(inside[None, :], z, -float("inf"))
        own += tl.sum(tl.where(columns == target[:, None], z, 0.0), 1)
        top, total, moment = more(top, total, moment, z)
    place = found + tl.program_id(1).to(tl.int64) * 4 * count + row
    tl.store(place, own, mask=there)
    tl.store(place + count, top, mask=there)
    tl.store(place + 2 * count, total, mask=there)
    tl.store(place + 3 * count, moment, mask=there)
