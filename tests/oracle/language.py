"""A second reader of LANGUAGE.md, §3 to §6: every reduction and every aggregation row as a loop, in numpy.

Written from the page alone, to test a compiler on random expressions. A value is an array by its scope:

    token     [S, T]        sequence  [S]
    group     [S], every row holding its group's value
    batch, const            one number

Where the mask is off, and on padding rows, a result is 0 and an argument is never read. Functions are
named for the page's words; `mask` [S, T] bool, `group` [S] int, `label` [S] ±1.

Complex numbers pass through every sum, mean and std (max, min and quantile compare real parts), so a
complex step differentiates anything built here.

Readings, where the page is silent or can be read twice:

 1. `position`, `to_go` and `terminal` count completion tokens: a slot that the mask drops is no token,
    holes included.
 2. The mean of equal values is exactly that value and their std exactly 0, not the rounding of Σ/N. (The
    methods' guard `if σ > 0` is only as good as this: Σ/N makes the std of 0.1, 0.1, 0.1 positive.)
 3. `sample_std` of one value is an error (0/0), like `over others` in a group of one. So is a reduction
    of nothing.
 4. `x over others` of a token value: all tokens of the other sequences, as for `over group`.
 5. `x over batch` of a group value counts it once for each of its sequences ("over all sequences").
 6. `quantile`: "linear between neighbours" at place q·(n − 1) of the sorted values (numpy's default).
 7. `greedy(x)` puts each score's greedy value in the score's place: x is built per completion, without
    reductions.
 8. The mismatched completion of row i is that of the next row that is not padding, over the whole step. A
    row's mismatched tokens are those of the mismatched mask; a row that is padding has none.
 9. Aggregation steps after which the page does not say how to go on are errors: `over sequences` or `over
    groups` of tokens, `over sequences` after `over group`, a step after the last number.
10. A step that a penalty skips is skipped with its divisor.
11. A batch or const penalty skips every step: it has none of the axes. A group penalty under `over batch`
    is over the groups ("all that is left" of it), under `over sequences` once for each sequence (the page
    says so). A sequence penalty under `over batch` as a first step is over the sequences.
12. `mean over AXIS / N` is the mean, then divided by N.
13. Equal infinities are equal values: their mean and quantiles are that infinity, their std 0. A quantile that
    falls on a value is that value, whatever its neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .gradients import Batch, Bools, Floats, Ints

Array = NDArray[Any]
Number = Any
"""A float, or a complex number under a complex step."""

Reduction = Literal["sum", "mean", "std", "sample_std", "max", "min", "quantile"]
Scope = Literal["const", "batch", "group", "sequence", "token"]
Axis = Literal["tokens", "sequences", "group", "groups", "batch"]


# ------------------------------------------------------------------------------------------------------------
# §5 Reductions
# ------------------------------------------------------------------------------------------------------------


def reduce_values(op: Reduction, values: Sequence[Number], q: float | None = None) -> Number:
    """One number from a list: the kernel of every reduction. `q` is quantile's. ValueError on nothing."""
    n = len(values)
    if n == 0:
        raise ValueError(f"{op} of nothing")
    if op == "sum":
        total: Number = 0.0
        for value in values:
            total = total + value
        return total
    if op == "mean":
        if all(value == values[0] for value in values):
            return values[0]
        return reduce_values("sum", values) / n
    if op in ("std", "sample_std"):
        if op == "sample_std" and n == 1:
            raise ValueError("sample_std of one value divides by 0")
        if all(value == values[0] for value in values):
            return 0.0
        centre = reduce_values("mean", values)
        squares = reduce_values("sum", [(value - centre) ** 2 for value in values])
        return np.sqrt(squares / (n if op == "std" else n - 1))
    ordered = sorted(values, key=lambda value: float(np.real(value)))
    if op == "max":
        return ordered[-1]
    if op == "min":
        return ordered[0]
    if q is None or not 0 <= q <= 1:
        raise ValueError("quantile needs q in [0, 1]")
    place = q * (n - 1)
    below = min(int(place), n - 1)
    above = min(below + 1, n - 1)
    if place == below or ordered[below] == ordered[above]:
        return ordered[below]  # not inf - inf
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def over_tokens(op: Reduction, x: Array, mask: Bools, q: float | None = None) -> Array:
    """token [S, T] → sequence [S]: over each completion's tokens."""
    out = _blank(x, mask.shape[0])
    for i in rows(mask):
        out[i] = reduce_values(op, [x[i, t] for t in tokens(mask, i)], q)
    return out


def over_group(op: Reduction, x: Array, mask: Bools, group: Ints, q: float | None = None) -> Array:
    """sequence [S] or token [S, T] → group [S]: over the group's sequences, or over all its tokens."""
    out = _blank(x, mask.shape[0])
    for members in groups(mask, group).values():
        value = reduce_values(op, _values(x, mask, members), q)
        for i in members:
            out[i] = value
    return out


def over_others(op: Reduction, x: Array, mask: Bools, group: Ints, q: float | None = None) -> Array:
    """sequence [S] or token [S, T] → sequence [S]: over the group's others. ValueError on a group of one."""
    out = _blank(x, mask.shape[0])
    for members in groups(mask, group).values():
        if len(members) == 1:
            raise ValueError("a group of one has no others")
        for i in members:
            out[i] = reduce_values(op, _values(x, mask, [j for j in members if j != i]), q)
    return out


def over_others_compared(
    op: Reduction, compare: Callable[[int, int], Number], mask: Bools, group: Ints, q: float | None = None
) -> Array:
    """→ sequence [S]: over the comparisons of each sequence i with the others j of its group.

    `compare(i, j)` is the value of a comparison: what stands in `own(…)` is row i's, the rest row j's.
    """
    out = np.zeros(mask.shape[0], dtype=np.complex128)
    for members in groups(mask, group).values():
        if len(members) == 1:
            raise ValueError("a group of one has no others")
        for i in members:
            out[i] = reduce_values(op, [compare(i, j) for j in members if j != i], q)
    return out if np.any(out.imag) else out.real


def over_batch(op: Reduction, x: Array, mask: Bools, q: float | None = None) -> Number:
    """group or sequence [S], or token [S, T] → batch: over all sequences, or over all tokens."""
    return reduce_values(op, _values(x, mask, rows(mask)), q)


# ------------------------------------------------------------------------------------------------------------
# §5 Pairs, other completions, places in the completion; §4 the counted observables
# ------------------------------------------------------------------------------------------------------------


def opposite(x: Array, mask: Bools, group: Ints) -> Array:
    """sequence → sequence [S]: the other response's value. ValueError where a group is not a pair."""
    out = _blank(x, mask.shape[0])
    for members in groups(mask, group).values():
        if len(members) != 2:
            raise ValueError("opposite: the group is not a pair")
        first, second = members
        out[first], out[second] = x[second], x[first]
    return out


def chosen(x: Array, mask: Bools, group: Ints, label: Floats) -> Array:
    """sequence → group [S]: the value of the pair's response with label +1."""
    return _response(x, mask, group, label, +1)


def rejected(x: Array, mask: Bools, group: Ints, label: Floats) -> Array:
    """sequence → group [S]: the value of the pair's response with label −1."""
    return _response(x, mask, group, label, -1)


def greedy(
    expression: Callable[[Mapping[str, Floats]], Array],
    greedy_scores: Mapping[str, Floats],
    mask: Bools,
    group: Ints,
) -> Array:
    """→ group [S]: `expression` of the greedy scores. ValueError where the rows of a group differ."""
    values = expression(greedy_scores)
    out = _blank(values, mask.shape[0])
    for members in groups(mask, group).values():
        for i in members:
            if values[i] != values[members[0]]:
                raise ValueError("greedy: the rows of one prompt carry different greedy scores")
            out[i] = values[i]
    return out


def mismatched(expression: Callable[[Mapping[str, Any]], Array], batch: Batch) -> Array:
    """→ sequence [S]: `expression`, of mask and log-probs, for the completion of another prompt."""
    values = expression(batch["mismatched"])
    out = _blank(values, batch["mask"].shape[0])
    for i in rows(batch["mask"]):
        out[i] = values[i]
    return out


def mismatched_row(mask: Bools) -> Ints:
    """[S]: the row whose completion stands under prompt i, (i + 1) mod m of the m sequences; padding −1."""
    out = np.full(mask.shape[0], -1, dtype=np.int64)
    real = rows(mask)
    for place, i in enumerate(real):
        out[i] = real[(place + 1) % len(real)]
    return out


def terminal(x: Array, mask: Bools) -> Array:
    """sequence [S] → token [S, T]: x on the last completion token, 0 elsewhere."""
    out = _blank(x, *mask.shape)
    for i in rows(mask):
        out[i, tokens(mask, i)[-1]] = x[i]
    return out


def to_go(x: Array, g: float, mask: Bools) -> Array:
    """token → token [S, T]: Σ_{k≥t} g^(k−t) x_k over the completion's tokens, k − t counted in tokens."""
    out = _blank(x, *mask.shape)
    for i in rows(mask):
        slots = tokens(mask, i)
        for here, t in enumerate(slots):
            out[i, t] = reduce_values(
                "sum", [g ** (there - here) * x[i, slots[there]] for there in range(here, len(slots))]
            )
    return out


def position(mask: Bools) -> Floats:
    """token [S, T]: 0 for the first completion token, 1 for the second."""
    out = np.zeros(mask.shape)
    for i in rows(mask):
        for place, t in enumerate(tokens(mask, i)):
            out[i, t] = place
    return out


def length(mask: Bools) -> Floats:
    """sequence [S]: completion tokens."""
    out = np.zeros(mask.shape[0])
    for i in rows(mask):
        out[i] = len(tokens(mask, i))
    return out


def group_size(mask: Bools, group: Ints) -> Floats:
    """group [S]: sequences of the group, padding rows not counted."""
    out = np.zeros(mask.shape[0])
    for members in groups(mask, group).values():
        for i in members:
            out[i] = len(members)
    return out


def logp_old(batch: Batch) -> Floats:
    """token [S, T]: the old policy's log-probs; for a demonstration `logp` (§4)."""
    out = np.zeros(batch["mask"].shape)
    for i in rows(batch["mask"]):
        shown = "demonstration" in batch and bool(batch["demonstration"][i])
        for t in tokens(batch["mask"], i):
            out[i, t] = batch["logp"][i, t] if shown else batch["logp_old"][i, t]
    return out


def to_token_scope(x: Array | float, mask: Bools) -> Array:
    """Any value as token values [S, T]: what an operation of a coarse value with a token value means (§4)."""
    x = np.asarray(x)
    out = _blank(x, *mask.shape)
    for i in rows(mask):
        for t in tokens(mask, i):
            out[i, t] = x[i, t] if x.ndim == 2 else x[i] if x.ndim == 1 else x[()]
    return out


# ------------------------------------------------------------------------------------------------------------
# §5 Functions: each on arrays, stable at both ends
# ------------------------------------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    """σ(x) = 1/(1 + e^−x) = exp(−log(1 + e^−x))."""
    return np.asarray(np.exp(-np.logaddexp(0, -np.asarray(x))))


def logsigmoid(x: Array) -> Array:
    """log σ(x) = −log(1 + e^−x)."""
    return np.asarray(-np.logaddexp(0, -np.asarray(x)))


def softplus(x: Array) -> Array:
    """log(1 + e^x)."""
    return np.asarray(np.logaddexp(0, x))


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.asarray(np.maximum(x, 0))


def clip(x: Array, lo: Array, hi: Array) -> Array:
    """min(max(x, lo), hi)."""
    return np.asarray(np.minimum(np.maximum(x, lo), hi))


def choose(a: Array, condition: Array, b: Array) -> Array:
    """`a if condition else b`, element by element; what stands in the branch not taken does not matter."""
    return np.asarray(np.where(np.asarray(condition) != 0, a, b))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "sign": np.sign,
    "sigmoid": sigmoid,
    "logsigmoid": logsigmoid,
    "softplus": softplus,
    "tanh": np.tanh,
    "relu": relu,
    "min": np.minimum,
    "max": np.maximum,
    "clip": clip,
}
"""The page's functions by name."""


# ------------------------------------------------------------------------------------------------------------
# §6 Aggregation
# ------------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """`sum|mean over AXIS [/ divisor]`."""

    op: Literal["sum", "mean"]
    axis: Axis
    divisor: float = 1.0


def aggregations(max_length: float = 1.0) -> dict[str, list[Step]]:
    """Every row of §6's table, the default of §2 under `default`; `max_length` is Dr. GRPO's parameter."""
    return {
        "default": [Step("sum", "tokens"), Step("mean", "sequences")],
        "rloo": [Step("sum", "tokens"), Step("mean", "sequences")],
        "grpo": [Step("mean", "tokens"), Step("mean", "sequences")],
        "dapo": [Step("mean", "batch")],
        "dr_grpo": [Step("sum", "tokens", max_length), Step("mean", "sequences")],
        "dpo": [Step("sum", "tokens"), Step("sum", "group"), Step("mean", "groups")],
    }


def aggregate(values: Array | float, scope: Scope, steps: Sequence[Step], mask: Bools, group: Ints) -> Number:
    """One number from values of a scope, step by step from the tokens up (§6).

    Token values take every step. Coarser values (a penalty's) skip the steps over axes that they do not have:

    scope          over tokens  over group                over sequences        over groups  over batch
    token          yes          yes (tokens if still so)  after over tokens     after group  all that is left
    sequence       skipped      its sequences             all sequences         after group  all that is left
    group          skipped      skipped                   once per sequence     all groups   all groups (left)
    batch, const   skipped      skipped                   skipped               skipped      skipped

    ValueError where the steps leave no single number for token values.
    """
    _check_steps(steps)
    if scope in ("batch", "const"):
        return np.asarray(values)[()]
    x = np.asarray(values)
    member_lists = groups(mask, group)
    token_left: list[tuple[int, Number]] = []  # (row, value): while tokens are left
    row_left: list[tuple[int, Number]] = []  # (row, value): while sequences are left
    group_left: list[tuple[int, Number]] = []  # (group, value): while groups are left
    if scope == "token":
        token_left = [(i, x[i, t]) for i in rows(mask) for t in tokens(mask, i)]
    elif scope == "sequence":
        row_left = [(i, x[i]) for i in rows(mask)]
    else:
        group_left = [(g, x[members[0]]) for g, members in member_lists.items()]
    number: Number = None
    for step in steps:
        if step.axis == "tokens":
            if scope == "token":
                row_left = [(i, _step(step, [v for j, v in token_left if j == i])) for i in rows(mask)]
                token_left = []
        elif step.axis == "group":
            if scope != "group":
                left = token_left or row_left
                of_group = {g: [v for i, v in left if i in members] for g, members in member_lists.items()}
                group_left = [(g, _step(step, found)) for g, found in of_group.items()]
                token_left, row_left = [], []
        elif step.axis == "sequences":
            if scope == "group":
                number = _step(step, [v for g, v in group_left for _ in member_lists[g]])
            else:
                number = _step(step, [v for _, v in row_left])
        elif step.axis == "groups":
            number = _step(step, [v for _, v in group_left])
        else:
            number = _step(step, [v for _, v in token_left or row_left or group_left])
    return number


def weights(steps: Sequence[Step], mask: Bools, group: Ints) -> Floats:
    """[S, T]: what the aggregate multiplies each token's value by, found by aggregating a 1 on it alone."""
    out = np.zeros(mask.shape)
    for i in rows(mask):
        for t in tokens(mask, i):
            alone = np.zeros(mask.shape)
            alone[i, t] = 1.0
            out[i, t] = aggregate(alone, "token", steps, mask, group)
    return out


def coefficients(pushes: Array | float, steps: Sequence[Step], mask: Bools, group: Ints) -> Floats:
    """[S, T]: aggregated credit·ω·υ, `pushes` being that product at any scope. 0 where the mask is off."""
    out = np.zeros(mask.shape)
    token_weights, token_pushes = weights(steps, mask, group), to_token_scope(pushes, mask)
    for i in rows(mask):
        for t in tokens(mask, i):
            out[i, t] = token_weights[i, t] * token_pushes[i, t]
    return out


def penalty_coefficients(
    penalty: Callable[[Array], Array | Number],
    scope: Scope,
    steps: Sequence[Step],
    mask: Bools,
    group: Ints,
    logp: Floats,
) -> Floats:
    """[S, T]: −∂(aggregated penalty)/∂logp by a complex step, exact to rounding.

    `penalty` maps complex logp [S, T] to values of `scope`, built from analytic functions (no abs, no
    conjugate) and this module's reductions. Whatever is under `sg` in it must be computed from the real
    logp.
    """
    out = np.zeros(mask.shape)
    h = 1e-30
    with np.errstate(all="ignore"):
        for i in rows(mask):
            for t in tokens(mask, i):
                stepped = logp.astype(np.complex128)
                stepped[i, t] += 1j * h
                out[i, t] = -float(np.imag(aggregate(penalty(stepped), scope, steps, mask, group))) / h
    return out


# ------------------------------------------------------------------------------------------------------------
# Who is in the batch
# ------------------------------------------------------------------------------------------------------------


def tokens(mask: Bools, i: int) -> list[int]:
    """The slots of row i's completion tokens, in order."""
    return [t for t in range(mask.shape[1]) if mask[i, t]]


def rows(mask: Bools) -> list[int]:
    """The rows that are sequences: a row whose mask is all off is padding (§9)."""
    return [i for i in range(mask.shape[0]) if tokens(mask, i)]


def groups(mask: Bools, group: Ints) -> dict[int, list[int]]:
    """Prompt id → its sequences; a padding row is in no group, whatever its id."""
    out: dict[int, list[int]] = {}
    for i in rows(mask):
        out.setdefault(int(group[i]), []).append(i)
    return out


def _values(x: Array, mask: Bools, members: Iterable[int]) -> list[Number]:
    """The members' values, one each for a sequence value, all their tokens' for a token value."""
    if x.ndim == 1:
        return [x[i] for i in members]
    return [x[i, t] for i in members for t in tokens(mask, i)]


def _blank(x: Array, *shape: int) -> Array:
    """Zeros, complex if x is, float64 otherwise."""
    return np.zeros(shape, dtype=np.complex128 if np.iscomplexobj(x) else np.float64)


def _response(x: Array, mask: Bools, group: Ints, label: Floats, sign: int) -> Array:
    """The value of the one response of each pair whose label has this sign, on both rows."""
    out = _blank(x, mask.shape[0])
    for members in groups(mask, group).values():
        found = [i for i in members if label[i] * sign > 0]
        if len(members) != 2 or len(found) != 1:
            raise ValueError("the group is not one chosen and one rejected response")
        for i in members:
            out[i] = x[found[0]]
    return out


def _step(step: Step, values: Sequence[Number]) -> Number:
    """One step on the values that it runs over."""
    return reduce_values(step.op, values) / step.divisor


def _check_steps(steps: Sequence[Step]) -> None:
    """ValueError unless the steps run from the tokens up to one number."""
    left = "tokens"
    for step in steps:
        if left == "tokens" and step.axis == "tokens":
            left = "sequences"
        elif left in ("tokens", "sequences") and step.axis == "group":
            left = "groups"
        elif (left != "one" and step.axis == "batch") or (left != "tokens" and step.axis == left):
            left = "one"
        else:
            raise ValueError(f"over {step.axis}: {left} are left")
    if left != "one":
        raise ValueError(f"the steps leave {left}, not one number")
