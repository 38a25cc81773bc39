"""Running a program: one torch function per kind of step.

Every value is a tensor of its step's scope: 0-d for const and batch, [G], [R] or [N] for the rest (layout.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from grolang.compiler.batch import PER_TOKEN, Batch
from grolang.compiler.layout import Layout, pair_rows, whole_pairs
from grolang.compiler.program import MAIN, MISMATCHED, Program, Step
from grolang.compiler.reductions import discounted, reduced, unreduced
from grolang.language.diagnostics import GroError
from grolang.language.scopes import Scope

_SUPPLIERS = {
    "logp": "the policy's forward pass",
    "logp_old": "the policy that the step started from",
    "logp_ref": "the reference model",
    "logp_sampler": "the sampling engine",
    "entropy": "the policy's forward pass",
    "label": "the data's `label` column, or which response of a pair it is",
    "demonstration": "which rows are demonstrations",
    "group": "the prompt of each sequence",
    "mismatched": "a pass over the completions of other prompts",
}


def _truth(test: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: test(a, b).to(a.dtype)


def _chain(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a == 0, torch.zeros_like(a), a * b)


def _sign(x: Tensor) -> Tensor:
    """With the sign of NaN NaN: torch gives 0."""
    return torch.where(x.isnan(), x, torch.sign(x))


ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.div,
    "power": torch.pow,
    "negate": torch.neg,
    "less": _truth(torch.lt),
    "less_equal": _truth(torch.le),
    "greater": _truth(torch.gt),
    "greater_equal": _truth(torch.ge),
    "equal": _truth(torch.eq),
    "not_equal": _truth(torch.ne),
    "not": lambda a: (a == 0).to(a.dtype),
    "and": lambda a, b: torch.where(a != 0, b, a),
    "or": lambda a, b: torch.where(a != 0, a, b),
    "choose": lambda c, a, b: torch.where(c != 0, a, b),
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "sign": _sign,
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
    "softplus": lambda x: -F.logsigmoid(-x),
    "tanh": torch.tanh,
    "relu": torch.relu,
    "min": torch.minimum,
    "max": torch.maximum,
    "clip": lambda x, lo, hi: torch.minimum(torch.maximum(x, lo), hi),
    "chain": _chain,
    "stop": torch.detach,
}


class Run:
    """The values of a program's steps on one batch."""

    def __init__(
        self, program: Program, batch: Batch, method: str, arbitrary: Callable[[str, int], Tensor] | None = None
    ) -> None:
        self.program = program
        self.batch = batch
        self.method = method
        self.dtype = batch.dtype
        self.device = batch.mask.device
        rows = batch.mask.any(1).nonzero()[:, 0]
        self.layout = Layout(batch.mask, batch.group, rows)
        self._pairs: dict[str, Tensor] = {}
        self._current: dict[str, Tensor] = {}
        self._arbitrary = arbitrary
        self.values: dict[int, Tensor] = {}

    def __call__(self, *outputs: str) -> list[Tensor]:
        """The values of these outputs."""
        for index in self.program.reachable(*outputs):
            if index not in self.values:
                self.values[index] = self._step(self.program.steps[index])
        return [self.values[self.program.outputs[name]] for name in outputs]

    def now(self, logp: Tensor, entropy: Tensor | None) -> None:
        """Set the policy's log-probs and entropies [N] in place of the batch's, and forget what came from others."""
        self._current = {"logp": logp.to(self.dtype)}
        if entropy is not None:
            self._current["entropy"] = entropy.to(self.dtype)
        for index in self.program.current:
            self.values.pop(index, None)

    def per_token(self, output: str) -> Tensor:
        """An output at each valid token [N]."""
        self(output)
        return self.at_tokens(self.program.outputs[output])

    def at_tokens(self, index: int) -> Tensor:
        """The value of a step that has run at each valid token [N]."""
        return self._spread(self.values[index], self.program.steps[index].scope, Scope.TOKEN, self.layout)

    def per_slot(self, output: str) -> Tensor:
        """An output as [S, T], 0 where the mask is off."""
        return self.to_slots(self.per_token(output))

    def to_slots(self, values: Tensor) -> Tensor:
        """Values of the valid tokens [N] as [S, T], 0 where the mask is off."""
        whole = values.new_zeros(self.batch.mask.shape)
        row, slot = self.layout.places
        whole[self.layout.rows[row], slot] = values
        return whole

    def to_rows(self, value: Tensor) -> Tensor:
        """A sequence value as [S], 0 for padding rows."""
        whole = value.new_zeros(self.batch.mask.shape[0])
        whole[self.layout.rows] = value
        return whole

    # --- steps --------------------------------------------------------------------------------------------------

    def _step(self, step: Step) -> Tensor:
        args = [self.values[argument] for argument in step.args]
        match step.op:
            case "const" | "param":
                value = float(step.detail[-1])
                if abs(value) > torch.finfo(self.dtype).max:
                    value = math.copysign(math.inf, value)
                return torch.full((), value, dtype=self.dtype, device=self.device)  # a GPU is not waited for
            case "load" if str(step.detail[0]).startswith("any ") and self._arbitrary is not None:
                drawn = self._arbitrary(
                    f"{step.detail[0]} {step.world}", self._size(self.layout_of(step.world), step.scope)
                )
                return drawn.to(self.dtype).reshape(() if step.scope <= Scope.BATCH else (-1,))
            case "load":
                return self._load(str(step.detail[0]), step.world)
            case "count":
                return self._count(step)
            case "spread":
                scope = self.program.steps[step.args[0]].scope
                return self._spread(args[0], scope, step.scope, self.layout_of(step.world))
            case "reduce":
                if step.detail[0] == "quantile" and not 0 <= float(args[1]) <= 1:
                    message = f"the `q` of a quantile lies between 0 and 1, not {float(args[1]):g}"
                    raise GroError.plain(message, help="0.5 is the median", code="E505")
                index, there = self._children(step, step.scope)
                return reduced(str(step.detail[0]), args[0], index, there, args[1:]).reshape(
                    () if step.scope <= Scope.BATCH else (-1,)
                )
            case "unreduce":
                parent = self.program.steps[step.args[1]].scope
                index, there = self._children(step, parent)
                return unreduced(str(step.detail[0]), args[0], args[1], args[2], index, there, args[3:])
            case "to_go" | "so_far":
                return discounted(args[0], args[1], self.layout_of(step.world), backward=step.op == "so_far")
            case "opposite" | "chosen" | "rejected":
                return args[0][self._pair(step.op)]
            case "swapped":
                return args[0][self.layout.swapped]
            case op:
                return ELEMENTWISE[op](*args)

    def layout_of(self, world: str) -> Layout:
        """Of the batch itself, or of the mismatched completions."""
        return self.layout if world == MAIN else self._mismatched

    @cached_property
    def _mismatched(self) -> Layout:
        return Layout(self._batch(MISMATCHED).mask, None, self.layout.rows)

    def _batch(self, world: str) -> Batch:
        found = self.batch if world == MAIN else self.batch.mismatched
        if found is None:
            raise self.missing("mismatched")
        return found

    def missing(self, name: str, prefix: str = "") -> GroError:
        """E901: what the batch lacks, and what supplies it."""
        supplier = _SUPPLIERS.get(name, f"the score function `{name.removeprefix('greedy ')}`")
        shown = name
        if name.startswith("greedy "):
            shown = f"greedy_scores['{name.removeprefix('greedy ')}']"
        elif name not in _SUPPLIERS:
            shown = f"scores['{name}']"
        message = f"`{self.method}` needs `{prefix}{shown}`, and the batch has none"
        return GroError.plain(message, help=f"pass it to Batch(…); it comes from {supplier}", code="E901")

    def _load(self, name: str, world: str) -> Tensor:
        layout, batch = self.layout_of(world), self._batch(world)
        if name == "position":
            return layout.position.to(self.dtype)
        if name == "last token":
            return layout.last.to(self.dtype)
        if world == MAIN and name in self._current:
            return self._current[name]
        if name in ("label", "demonstration", *PER_TOKEN):
            found = getattr(batch, name)
        elif name.startswith("greedy "):
            found = batch.greedy_scores.get(name.removeprefix("greedy "))
        else:
            found = batch.scores.get(name)
        if found is None:
            raise self.missing(name, "mismatched." if world == MISMATCHED else "")
        found = found.detach()[layout.rows]
        if name in PER_TOKEN:
            found = found[layout.places]
        values: Tensor = found.to(self.dtype)
        if name == "label" and not bool((values.abs() == 1).all()):
            raise GroError.plain("`label` must be +1 or -1 in every row", help="map true to 1 and false to -1")
        if name == "demonstration" and not bool(((values == 0) | (values == 1)).all()):
            raise GroError.plain("`demonstration` must be 1 or 0 in every row", help="1 marks a demonstration")
        return values

    def _count(self, step: Step) -> Tensor:
        layout = self.layout_of(step.world)
        if step.scope <= Scope.BATCH:
            return torch.full((), self._size(layout, step.child), dtype=self.dtype, device=self.device)
        self.need_groups(step.scope, step.child)
        return layout.children(step.child, step.scope)[1].sum(1).to(self.dtype)

    def _size(self, layout: Layout, scope: Scope) -> int:
        self.need_groups(scope)
        return layout.size(scope)

    def need_groups(self, *scopes: Scope) -> None:
        """Where one of these scopes is that of groups, the batch must say which sequences belong together."""
        if not {Scope.GROUP, Scope.COMPARISON}.isdisjoint(scopes) and self.batch.group is None:
            raise self.missing("group")

    def _spread(self, value: Tensor, scope: Scope, to: Scope, layout: Layout) -> Tensor:
        if scope == to:
            return value
        self.need_groups(scope, to)
        if scope <= Scope.BATCH:
            return value.expand(layout.size(to))
        return value[layout.parent(to, scope)]

    def _children(self, step: Step, parent: Scope) -> tuple[Tensor, Tensor]:
        self.need_groups(parent, step.child, Scope.GROUP if step.others else step.child)
        index, there = self.layout_of(step.world).children(step.child, parent, step.others)
        if step.others and not bool(there.any(1).all()):
            alone = int((~there.any(1)).nonzero()[0, 0])
            ids, group = self.layout.groups
            message = f"`over others` in a group of one: group {int(ids[group[alone]])} has a single sequence"
            raise GroError.plain(message, help="draw at least 2 completions per prompt", code="E903")
        return index, there

    def _pair(self, op: str) -> Tensor:
        """Which row each value is taken from; found out once."""
        if op in self._pairs:
            return self._pairs[op]
        self.need_groups(Scope.GROUP)
        label = self._load("label", MAIN)
        whole = whole_pairs(self.layout, label)
        if not bool(whole.all()):
            ids, _ = self.layout.groups
            bad = int(ids[int((~whole).nonzero()[0, 0])])
            message = f"group {bad} is not a pair: it needs one sequence with label +1 and one with label -1"
            raise GroError.plain(message, help="keep both responses of a pair in one batch", code="E904")
        self._pairs[op] = pair_rows(self.layout, label, op)
        return self._pairs[op]
