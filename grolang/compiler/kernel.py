"""One generated Triton kernel per method: what is done to a row of logits, the coefficient's expression inlined.

For coefficients that need no other row's log-prob. The expression is written from the same steps that the torch path
runs, so there is no second copy of a loss. The text needs neither torch nor Triton to be written.

It has run under Triton's interpreter only, never on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from grolang.compiler.program import MAIN, Program, Step
from grolang.language.scopes import Scope

#: one expression per function of the table that has one; `power` has none that is exact for every base
EXPRESSIONS = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "negate": "-{0}",
    "less": "tl.where({0} < {1}, 1.0, 0.0)",
    "less_equal": "tl.where({0} <= {1}, 1.0, 0.0)",
    "greater": "tl.where({0} > {1}, 1.0, 0.0)",
    "greater_equal": "tl.where({0} >= {1}, 1.0, 0.0)",
    "equal": "tl.where({0} == {1}, 1.0, 0.0)",
    "not_equal": "tl.where({0} != {1}, 1.0, 0.0)",
    "not": "tl.where({0} == 0, 1.0, 0.0)",
    "and": "tl.where({0} != 0, {1}, {0})",
    "or": "tl.where({0} != 0, {0}, {1})",
    "choose": "tl.where({0} != 0, {1}, {2})",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "log1p": "tl.where(tl.abs({0}) < 1e-3, {0} - {0} * {0} / 2 + {0} * {0} * {0} / 3, tl.log(1 + {0}))",
    "expm1": "tl.where(tl.abs({0}) < 1e-3, {0} + {0} * {0} / 2 + {0} * {0} * {0} / 6, tl.exp({0}) - 1)",
    "sqrt": "tl.sqrt({0})",
    "abs": "tl.abs({0})",
    "sign": "tl.where({0} > 0, 1.0, 0.0) - tl.where({0} < 0, 1.0, 0.0)",
    "sigmoid": "tl.sigmoid({0})",
    "logsigmoid": "tl.minimum({0}, 0.0) - tl.log(1 + tl.exp(-tl.abs({0})))",
    "softplus": "tl.maximum({0}, 0.0) + tl.log(1 + tl.exp(-tl.abs({0})))",
    "tanh": "2 * tl.sigmoid(2 * {0}) - 1",
    "relu": "tl.maximum({0}, 0.0)",
    "min": "tl.minimum({0}, {1})",
    "max": "tl.maximum({0}, {1})",
    "clip": "tl.minimum(tl.maximum({0}, {1}), {2})",
    "chain": "tl.where({0} == 0, 0.0, {0} * {1})",
    "stop": "{0}",
}

_KERNEL = '''import triton
import triton.language as tl


@triton.jit
def rows(tile, targets, logp_out, lse_out, entropy_out, c_out{known}, width, BLOCK: tl.constexpr):
    """A row a program. tile [n, V]: logits → probabilities, in place, where c is not 0."""
    row = tl.program_id(0)
    at = tile + row.to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    top = tl.full((), -float("inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    moment = tl.full((), 0.0, tl.float32)  # sum of (z - top) exp(z - top)
    for start in range(0, width, BLOCK):
        inside = start + columns < width
        z = tl.load(at + start + columns, mask=inside, other=-float("inf"))
        high = tl.maximum(top, tl.max(z, 0))
        old = tl.where(top == high, 1.0, tl.exp(top - high))
        weight = tl.exp(z - high)
        moment = tl.where(total > 0, old * (moment + tl.where(total > 0, top - high, 0.0) * total), 0.0)
        moment += tl.sum(tl.where(weight > 0, (z - high) * weight, 0.0), 0)
        total = total * old + tl.sum(weight, 0)
        top = high
    lse = top + tl.log(total)
    logp = tl.load(at + tl.load(targets + row)) - top - tl.log(total)
    entropy = tl.log(total) - moment / total
{body}
    tl.store(logp_out + row, logp)
    tl.store(lse_out + row, lse)
    tl.store(entropy_out + row, entropy)
    tl.store(c_out + row, c)
    if c != 0:
        for start in range(0, width, BLOCK):
            inside = start + columns < width
            z = tl.load(at + start + columns, mask=inside, other=-float("inf"))
            tl.store(at + start + columns, tl.exp(z - top) / total, mask=inside)
'''


@dataclass(frozen=True)
class Kernel:
    """`text` defines `rows`; `known` are the steps whose values it reads as tensors [n], in the order of arguments."""

    text: str
    known: tuple[int, ...]


def kernel(program: Program) -> Kernel | None:
    """The row kernel of a program's `coefficient`; None where it needs other rows, or a function without expression."""
    body, known, names = list[str](), list[int](), dict[int, str]()
    out = program.outputs["coefficient"]
    for index in _needed(program, out):
        step = program.steps[index]
        if step.op in ("const", "param"):
            names[index] = _number(float(step.detail[-1]))
        elif index not in program.current:
            names[index] = f"k{index}"
            known.append(index)
            body.append(f"k{index} = tl.load(known{index} + row)")
        elif (text := _text(step, names)) is None:
            return None
        else:
            names[index] = f"v{index}"
            body.append(f"v{index} = {text}")
    body.append(
        f"c = {names[out]} + 0.0 * logp" if program.steps[out].op in ("const", "param") else f"c = {names[out]}"
    )
    arguments = "".join(f", known{index}" for index in known)
    return Kernel(_KERNEL.format(known=arguments, body="\n".join(f"    {line}" for line in body)), tuple(known))


def _needed(program: Program, out: int) -> list[int]:
    """What the current policy changes on the way to `out`, and the known steps that it meets."""
    wanted = {out}
    for index in range(out, -1, -1):
        if index in wanted and index in program.current:
            wanted.update(program.steps[index].args)
    return sorted(wanted)


def _text(step: Step, names: dict[int, str]) -> str | None:
    if step.scope is not Scope.TOKEN or step.world != MAIN:
        return None
    if step.op == "load":
        return str(step.detail[0])
    if step.op not in EXPRESSIONS:
        return None
    return EXPRESSIONS[step.op].format(*(names[argument] for argument in step.args))


def _number(value: float) -> str:
    return f'float("{value}")' if math.isinf(value) else f"({value!r})"
