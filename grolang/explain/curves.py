"""Curves of a method: ω(z) and υ(a) as functions, and the coefficient against the log-ratio of a sample.

They are numbers alone: plots.py draws them, and a report of a run may lay its own data over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from grolang.language.diagnostics import GroError
from grolang.language.facts import Facts, elementwise, value
from grolang.language.ir import Argument, Expr, MethodIR, Named, Observed, nodes

if TYPE_CHECKING:
    from grolang.compiler.batch import Batch
    from grolang.compiler.method import Method

POINTS = 241  # of a curve
SAMPLES = (("good sample", 1.0), ("bad sample", -1.0))
_WIDE = 6.0  # how far a curve goes to either side where nothing happens further out


@dataclass(frozen=True)
class Curve:
    """A line of a plot, and what it belongs to; y is NaN or infinite where the method is."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Plot:
    """Curves over one axis; `note` says what is held fixed."""

    name: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    note: str = ""


# --- ω and υ -------------------------------------------------------------------------------------------------------


def omega(method: MethodIR) -> Plot | None:
    """ω(z), once for a good and once for a bad sample where it tells them apart.

    None where it does not depend on z, or on more of the batch than z and the sign of the advantage.
    """
    return _function(method, "omega", "z", "ω(z)")


def upsilon(method: MethodIR) -> Plot | None:
    """υ(a) in the range of the advantage; None where it is a itself, or depends on more of the batch."""
    return _function(method, "upsilon", "a", "υ(a)")


def _function(method: MethodIR, name: str, x: str, y: str) -> Plot | None:
    body = method.functions[name].body
    parts = list(nodes(body))
    if isinstance(body, Argument) or not any(isinstance(part, Argument) for part in parts):
        return None
    if not all(map(elementwise, parts)):
        return None
    held = sorted({part.name for part in parts if isinstance(part, (Named, Observed)) and not _known(part, method)})

    def at(sign: float) -> Callable[[float], float]:
        def function(z: float) -> float:
            given = {("argument", name): z, ("observed", "label"): sign, ("named", "advantage"): sign}
            given |= {(kind, key): 0.0 for key in held for kind in ("named", "observed")}
            return value(body, method, given)

        return function

    inside = Facts(method, fixed=True).arguments[name]
    width = max(_width(at(sign)) for _, sign in SAMPLES)
    low, high = max(-width, inside.low), min(width, inside.high)
    if not low < high:
        low, high = -width, width
    places = tuple(low + (high - low) * step / (POINTS - 1) for step in range(POINTS))
    curves = [Curve(label, places, tuple(map(at(sign), places))) for label, sign in SAMPLES]
    if curves[0].y == curves[1].y:
        curves = [Curve("", places, curves[0].y)]
    return Plot(name, x, y, tuple(curves), f"with {' and '.join(held)} at 0" if held else "")


def _known(node: Expr, method: MethodIR) -> bool:
    """Whether a name has a value where nothing but the sign of the sample is given."""
    if isinstance(node, Observed):
        return node.name == "label"
    if not isinstance(node, Named) or node.name == "advantage":
        return True
    return all(elementwise(part) and _known(part, method) for part in nodes(method.definitions[node.name].body))


def _width(function: Callable[[float], float]) -> float:
    """How far to draw: four times the outermost jump, twice the outermost change of sign, else a fixed stretch."""
    jumps, crossings = [0.0], [0.0]
    for side in (-1.0, 1.0):
        places = [side * 10 ** (power / 24) for power in range(-24 * 5, 24 * 4)]
        values = [function(place) for place in places]
        steps = [abs(after - before) for before, after in pairwise(values)]
        for index in range(1, len(steps) - 1):
            a, b = places[index], places[index + 1]
            if steps[index] > 3 * max(steps[index - 1], steps[index + 1]) and _jumps(function, a, b):
                jumps.append(abs(b))
            elif values[index] * values[index + 1] < 0:
                crossings.append(abs(b))
    outermost = float(f"{max(4 * max(jumps), 2 * max(crossings)):.1g}")
    return outermost if max(jumps) > max(crossings) else max(_WIDE, outermost)


def _jumps(function: Callable[[float], float], a: float, b: float) -> bool:
    """Whether the step between two places is more than rounding, finite, and stays as they are brought together."""
    ya, yb = function(a), function(b)
    whole = abs(yb - ya)
    if not 1e-12 * abs(ya) < whole < math.inf:
        return False
    for _ in range(30):
        middle = (a + b) / 2
        y = function(middle)
        if abs(y - ya) > abs(yb - y):
            b, yb = middle, y
        else:
            a, ya = middle, y
    return abs(yb - ya) > 0.5 * whole


# --- the coefficient -----------------------------------------------------------------------------------------------


def coefficient(method: Method) -> Plot:
    """The coefficient of a sample of one token, as its log-prob moves away from where the policy started.

    One pair, one group, or two rows; everything else in the batch stays where it was, at one log-prob of the policy,
    the old policy and the reference.
    """
    width = _reach(method)
    base = -width - 1
    places = tuple(width * (step / 40 - 1) for step in range(81))
    curves = []
    samples = SAMPLES if set(method.data) != {"demonstrations"} else (("demonstration", 1.0),)
    for label, sign in samples:
        curves.append(Curve(label, places, tuple(_coefficient(method, base, x, sign) for x in places)))
    note = "of one token, as its log-prob leaves that of the start; all else in the batch stays"
    return Plot("coefficient", "log-ratio of the sample", "coefficient", tuple(curves), note)


def _coefficient(method: Method, base: float, x: float, sign: float) -> float:
    try:
        return float(method.coefficients(_batch(method, base, x, sign))[0, 0])
    except GroError:  # not finite there
        return math.nan


def _reach(method: Method) -> float:
    """How far the log-prob must move for z to cross what there is to see of ω."""
    plot = omega(method.ir)
    if plot is None:
        return 3.0
    step = 1e-3
    try:
        ends = [method.evaluate(_batch(method, -10.0, x, 1.0)).parts.get("z") for x in (-step, step)]
    except GroError:  # not finite there
        return 3.0
    low, high = (0.0 if part is None else float(part[0, 0]) for part in ends)
    slope = abs(high - low) / (2 * step)
    return 3.0 if slope == 0 else min(max(max(map(abs, plot.curves[0].x)) / slope, 1e-4), 2000.0)


def _batch(method: Method, base: float, x: float, sign: float) -> Batch:
    """Row 0 is the sample; the others are as many good and bad ones of its group, or of other prompts."""
    import torch

    from grolang.compiler.batch import Batch

    drawn = "prompts" in method.data
    rows = max(2, method.group) if drawn else 1 if method.data == ("demonstrations",) else 2
    signs = torch.tensor([sign * (-1) ** row for row in range(rows)], dtype=torch.float64)
    together = method.group > 1 if drawn else "preference" in method.data
    start = torch.full((rows, 1), base, dtype=torch.float64)
    now = start.clone()
    now[0, 0] += x
    mask = torch.ones(rows, 1, dtype=torch.bool)
    others = Batch(mask=mask, logp=start, logp_old=start, logp_ref=start, logp_sampler=start, entropy=-start)
    return others.replace(
        logp=now,
        group=torch.zeros(rows, dtype=torch.long) if together else torch.arange(rows),
        label=signs,
        demonstration=torch.full((rows,), float(not drawn), dtype=torch.float64),
        scores=dict.fromkeys(method.scores, (signs + 1) / 2),
        greedy_scores={name: torch.full((rows,), 0.5, dtype=torch.float64) for name in method.scores},
        mismatched=others,
    )
