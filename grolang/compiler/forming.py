"""A method's gradient from hidden states: its schedule, run on a batch with the fused passes."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from grolang.compiler.batch import Batch
from grolang.compiler.blame import not_finite
from grolang.compiler.dead import live_tokens
from grolang.compiler.execute import Run
from grolang.compiler.fused import KEEP, Head, Pass, factored_pass, launch, logps, single_pass
from grolang.compiler.fused.launch import RowKernel
from grolang.compiler.fused.sweep import row_limit
from grolang.compiler.fused.trial import failure
from grolang.compiler.kernel import PLAIN, kernel
from grolang.compiler.method import Method
from grolang.compiler.program import MAIN
from grolang.language.scopes import Scope

FILLER = -1.0
"""A log-prob that stands for one that is not known, where it cannot matter."""

VALUE = ("coefficient", "score_coefficient", "penalty")
"""What the loss and its gradient are made of."""


def plain_kernel() -> RowKernel:
    """The row kernel that knows no coefficient: its errors are those of c = 1."""
    return RowKernel(PLAIN.text)


def kernel_failure(device: torch.device, dtype: torch.dtype) -> str | None:
    """What goes wrong with Triton's kernels on a device, in words; None where a trial gives what torch gives."""
    return failure(device, dtype, PLAIN.text)


class Forming:
    """A method on a whole batch whose current log-probs come part by part.

    `tokens` [n] are the valid tokens that can matter, as places in row-major order among all N valid ones, sorted
    so that what the schedule wants together stands together. `form` takes any of them that are whole units, and may
    be called again for others; `loss` is known when all have been seen.
    """

    def __init__(self, method: Method, batch: Batch, *, double: bool = False, entropy: bool = False) -> None:
        self.method, self.plan = method, method.schedule
        dtype = torch.float64 if double else batch.dtype
        filler = torch.full(batch.mask.shape, FILLER, dtype=dtype, device=batch.mask.device)
        self.run = run = Run(self.plan.program, batch.replace(logp=filler), method.name)
        count = run.layout.size(Scope.TOKEN)
        self.logp = filler.new_full((count,), FILLER)
        used = ("entropy", MAIN) in self.plan.program.loads(*VALUE)
        self.entropy = -self.logp if entropy or (used and batch.entropy is None) else None
        run.now(self.logp, self.entropy)

    @cached_property
    def tokens(self) -> Tensor:
        """[n]: see above; with groups as units a group's tokens stand together."""
        run, own = self.run, ("logp",) if self.entropy is None else ("logp", "entropy")
        live = torch.ones(len(self.logp), dtype=torch.bool, device=run.device)
        if len(live):
            live = live_tokens(run, lambda name, world: name in own and world == MAIN)
        if self.plan.unit is not Scope.GROUP:
            return live.nonzero()[:, 0]
        run.need_groups(Scope.GROUP)
        order = torch.argsort(run.layout.groups[1][run.layout.places[0]], stable=True)
        return order[live[order]]

    @property
    def slots(self) -> Tensor:
        """Where `tokens` stand in a flattened [S, T]."""
        row, slot = (index[self.tokens] for index in self.run.layout.places)
        return self.run.layout.rows[row] * self.run.batch.mask.shape[1] + slot

    def form(
        self,
        at: Tensor,
        hidden: Tensor,
        head: Head,
        targets: Tensor,
        *,
        budget: int | None = None,
        keep: int = KEEP,
        kernels: bool = False,
    ) -> Pass:
        """Gradients of hidden [n, D] and the head, from the tokens `at` [n] alone; whole units of them, together."""
        run, plan = self.run, self.plan
        weights = run.per_token("weight")[at] if plan.kind == "factored" and len(at) else None
        if weights is not None and not bool(torch.isfinite(weights).all()):
            weights = None  # where s is 0 c may be 0 all the same: such a batch is formed as one that does not factor
        output = "coefficient" if weights is None else "scale"

        def evaluate(rows: slice, logp: Tensor, entropy: Tensor | None) -> Tensor:
            self._learn(at[rows], logp, entropy)
            return run.per_token(output)[at[rows]].to(logp.dtype)

        asked = self.entropy is not None
        row_kernel, whole = None, False
        if kernels and launch.usable(hidden, head.weight):
            inlined = "coefficient" if plan.unit is Scope.TOKEN else "weight" if weights is not None else None
            row_kernel, whole = self._kernel(at, inlined)
        if plan.unit is Scope.TOKEN:
            weigh = None if whole else evaluate
            made = single_pass(hidden, head, targets, weigh, kernel=row_kernel, entropy=asked, budget=budget)
            self._learn(at, made.rows.logp, made.rows.entropy)
            return made
        unit, part = (run.layout.parent(Scope.TOKEN, scope)[at] for scope in (plan.unit, plan.part))
        return factored_pass(
            hidden,
            head,
            targets,
            weights,
            unit,
            evaluate,
            part=part,
            entropy=asked,
            budget=budget,
            keep=keep,
            kernel=row_kernel,
        )

    def beyond(self, at: Tensor, hidden: Tensor, head: Head, budget: int | None) -> bool:
        """Whether one of these units is larger than the tile: then `form` takes memory beside it, a [V, D] or two."""
        if self.plan.unit is Scope.TOKEN or not len(at):
            return False
        _, counts = torch.unique_consecutive(
            self.run.layout.parent(Scope.TOKEN, self.plan.unit)[at], return_counts=True
        )
        return int(counts.max()) > row_limit(hidden, head, budget)

    def _kernel(self, at: Tensor, output: str | None) -> tuple[RowKernel, bool]:
        """The generated row kernel of an output for the tokens `at`, and whether it makes their coefficients."""
        program, run = self.plan.program, self.run
        if output is not None and self.entropy is None and ("entropy", MAIN) in program.loads(output):
            output = None  # the batch brings entropies, and a kernel knows none but those of its rows
        found = None if output is None else kernel(program, output)
        if output is None or found is None:
            return plain_kernel(), False
        run(output)
        known = (run.at_tokens(index)[at] for index in found.known)
        return RowKernel(found.text, list(known)), output == "coefficient"

    def read(
        self,
        at: Tensor,
        hidden: Tensor,
        head: Head,
        targets: Tensor,
        *,
        budget: int | None = None,
        kernels: bool = False,
    ) -> None:
        """Log-probs of the tokens `at` [n], where no gradient is wanted."""
        asked = self.entropy is not None
        self._learn(at, *logps(hidden, head, targets, entropy=asked, budget=budget, kernels=kernels))

    def _learn(self, at: Tensor, logp: Tensor, entropy: Tensor | None) -> None:
        self.logp[at] = logp.to(self.logp.dtype)
        if self.entropy is not None and entropy is not None:
            self.entropy[at] = entropy.to(self.logp.dtype)
        self.run.now(self.logp, self.entropy)

    def loss(self) -> Tensor:
        """−Σ score coefficient · logp + penalty; a coefficient that is not finite is an error (E902)."""
        if not self.run.layout.rows.numel():
            return self.logp.new_zeros(())
        coefficient, score, penalty = self.run(*VALUE)
        if not bool(torch.isfinite(coefficient).all()):
            raise not_finite(self.run, "coefficient", self.method.sources)
        return penalty - (score * self.logp).sum()
