"""One generated Triton kernel per method: what is done to a row of logits, the coefficient's expression inlined.

c is what its schedule knows while the row's logits are there: the coefficient itself (none, token), the weight w of
c = s · w (factored), or 1, with the coefficient to come (free). Its expression is written from the same steps that the
torch path runs, so there is no second copy of a loss. The text needs neither torch nor Triton to be written.

It has run under Triton's interpreter only, and been compiled for GPUs; it has never run on one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from grolang.compiler.program import MAIN, Program, Step
from grolang.language.functions import DENIED, FUNCTIONS
from grolang.language.scopes import Scope

#: one expression per function of the table that has one; `power` has none that is exact for every base
EXPRESSIONS = {
    **{name: f"{{0}} {FUNCTIONS[name].symbol} {{1}}" for name in ("add", "subtract", "multiply", "divide")},
    **{name: f"tl.where({{0}} {FUNCTIONS[name].symbol} {{1}}, 1.0, 0.0)" for name in DENIED},
    "negate": "-{0}",
    "not": "tl.where({0} == 0, 1.0, 0.0)",
    "and": "tl.where({0} != 0, {1}, {0})",
    "or": "tl.where({0} != 0, {0}, {1})",
    "choose": "tl.where({0} != 0, {1}, {2})",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "log1p": "log1p({0})",
    "expm1": "expm1({0})",
    "sqrt": "tl.sqrt({0})",
    "abs": "tl.abs({0})",
    "sign": "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, {0}))",
    "sigmoid": "tl.sigmoid({0})",
    "logsigmoid": "tl.minimum({0}, 0.0) - log1p(tl.exp(-tl.abs({0})))",
    "softplus": "tl.maximum({0}, 0.0) + log1p(tl.exp(-tl.abs({0})))",
    "tanh": "tanh({0})",
    "relu": "tl.where({0} < 0, 0.0, {0})",
    "min": "lower({0}, {1})",
    "max": "higher({0}, {1})",
    "clip": "lower(higher({0}, {1}), {2})",
    "chain": "tl.where({0} == 0, 0.0, {0} * {1})",
    "stop": "{0}",
}

_KERNEL = '''import triton
import triton.language as tl

from grolang.compiler.fused.gpu import expm1, higher, log1p, lower, read, tanh, write


@triton.jit
def rows(
    tile, out, bias, targets, logp_out, lse_out, entropy_out, c_out{known},
    width, alpha, beta, BIASED: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):
    """A row a program. tile [n, V] of h·W → out [n, V]: errors, where c is not 0. Both may be one."""
    row = tl.program_id(0) + tl.arange(0, 1)
    start = row.to(tl.int64) * width
    target = tl.load(targets + row)
    own, top, total, moment = read(tile, bias, target, start, width, alpha, beta, BIASED, CAPPED, BLOCK)
    logp = own - top - tl.log(total)
    entropy = tl.log(total) - moment / total
{body}
    tl.store(logp_out + row, logp)
    tl.store(lse_out + row, top + tl.log(total))
    tl.store(entropy_out + row, entropy)
    tl.store(c_out + row, c)
    write(tile, out, bias, target, start, width, top, total, logp, c != 0, alpha, beta, BIASED, CAPPED, BLOCK)
'''


@dataclass(frozen=True)
class Kernel:
    """`text` defines `rows`; `known` are the steps whose values it reads as tensors [n], in the order of arguments."""

    text: str
    known: tuple[int, ...]


def kernel(program: Program, output: str) -> Kernel | None:
    """The row kernel with this output as c; None where it needs other rows, or a function without expression."""
    body, known, names = list[str](), list[int](), dict[int, str]()
    out = program.outputs[output]
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
    return Kernel(_written(body, known, names[out]), tuple(known))


def _written(body: list[str], known: Sequence[int], c: str) -> str:
    lines = [*body, f"c = tl.zeros_like(logp) + {c}"]
    arguments = "".join(f", known{index}" for index in known)
    return _KERNEL.format(known=arguments, body="\n".join(f"    {line}" for line in lines))


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


PLAIN = Kernel(_written([], [], "1.0"), ())
"""Of coefficients that the kernel does not make: errors of every row."""
