"""Which tokens can matter at all, as far as can be told before the policy is run.

A token is live where its coefficient is not 0 for certain, or where another number that is asked for may change with
its log-prob. The rest need not be run: with an advantage of 0 a coefficient is 0 whatever the policy says.

Doubt is carried through the program in place of the numbers: 1 where a value is not known yet, 0 where it is. It ends
where something known decides, a factor of 0 or a condition; what it came from is found by following it back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from grolang.compiler.execute import Run
from grolang.compiler.program import MAIN, Step
from grolang.compiler.reductions import discounted, reduced, unreduced
from grolang.language.scopes import Scope


def live_tokens(run: Run, unknown: Callable[[str, str], bool], reports: tuple[str, ...] = ()) -> Tensor:
    """[N] bool: tokens that may matter to the gradient, to the loss or to these reports.

    `run` holds any finite numbers where unknown(name, world) says that the batch does not know a tensor yet.
    """
    own = ("coefficient", "score_coefficient")
    outputs = (*own, "penalty", *reports)
    run(*outputs)
    with torch.enable_grad():
        doubt = _Doubt(run, unknown)
        if not (doubt.source * 1).requires_grad:  # within an operator torch records nothing: all that is lost is time
            return torch.ones_like(doubt.source, dtype=torch.bool)
        doubts = doubt(*outputs)
        works = torch.zeros(doubt.source.shape, dtype=torch.bool, device=run.device)
        for name, found in zip(own, doubts):
            works |= (run.values[run.program.outputs[name]] != 0) | (found != 0)
        total = torch.stack([found.sum() for found in doubts]).sum()
    if not total.requires_grad:
        return works
    (back,) = torch.autograd.grad(total, doubt.source, allow_unused=True)
    return works if back is None else works | (back != 0)


class _Doubt(Run):
    """A run whose values say whether they are known; differentiable, so that doubt can be traced to its tokens."""

    def __init__(self, known: Run, unknown: Callable[[str, str], bool]) -> None:
        super().__init__(known.program, known.batch, known.method)
        self.layout, self.known, self.unknown = known.layout, known, unknown
        self.source = torch.ones(self.layout.size(Scope.TOKEN), dtype=self.dtype, device=self.device)
        self.source.requires_grad_()

    def _step(self, step: Step) -> Tensor:
        found = self._doubt(step)
        if found.requires_grad:  # 0 or 1 at every step, forwards and backwards: nothing vanishes or overflows
            found = found / found.detach().clamp(min=torch.finfo(found.dtype).tiny)
            found.register_hook(_known)  # type: ignore[no-untyped-call]  # torch has no type for it
        return found

    def _doubt(self, step: Step) -> Tensor:
        args = [self.values[argument] for argument in step.args]
        numbers = [self.known.values[argument] for argument in step.args]
        match step.op:
            case "const" | "param" | "count":
                return torch.zeros_like(self.known._step(step))
            case "load" if not self.unknown(str(step.detail[0]), step.world):
                return torch.zeros_like(self.known._step(step))
            case "load":
                return self.source if step.world == MAIN else torch.ones_like(self.known._step(step))
            case "spread" | "opposite" | "chosen" | "rejected" | "swapped":
                return super()._step(step)
            case "reduce":
                return super()._step(replace(step, detail=("sum", *step.detail[1:])))
            case "to_go" | "so_far":
                return discounted(
                    args[0], torch.ones_like(args[1]), self.layout_of(step.world), backward=step.op == "so_far"
                )
            case "unreduce":
                index, there = self._children(step, self.program.steps[step.args[1]].scope)
                x, out, adjoint = args[:3]
                either = (out + adjoint).reshape(-1) + reduced("sum", x, index, there, ())
                either = torch.where(_zero(adjoint, numbers[2]).reshape(-1), 0, either)
                return unreduced("sum", x, out, either, index, there, ())
            case "choose":
                condition, then, otherwise = args
                taken = torch.where(numbers[0] != 0, then, otherwise)
                return torch.where(condition == 0, taken, condition + then + otherwise)
            case "and" | "or":
                last = (numbers[0] != 0) == (step.op == "and")  # the second operand is the result
                return torch.where(args[0] == 0, torch.where(last, args[1], 0), args[0] + args[1])
            case "multiply" | "chain" | "divide":
                gone = _zero(args[0], numbers[0])
                if step.op != "divide":
                    gone = gone | _zero(args[1], numbers[1])
                return torch.where(gone, 0, args[0] + args[1])
        total = args[0]
        for other in args[1:]:
            total = total + other
        return total


def _known(grad: Tensor) -> Tensor:
    """1 where anything flows back, else 0."""
    return (grad != 0).to(grad.dtype)


def _zero(doubt: Tensor, number: Tensor) -> Tensor:
    """Where a value is 0 for certain."""
    return (doubt == 0) & (number == 0)
