"""The compiled loss: from hidden states to a scalar with exact gradients, never holding [S, T, V] logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grolang.compiler.batch import Batch
from grolang.compiler.blame import not_finite
from grolang.compiler.execute import Run
from grolang.compiler.fused import BUDGET, KEEP, Head, Pass, attach, factored_pass, logps, single_pass
from grolang.compiler.method import Method
from grolang.language.diagnostics import GroError
from grolang.language.scopes import Scope


class Compiled(nn.Module):
    """One fused loss for any method.

    module(hidden [S, T, D], head_weight [V, D], targets [S, T], batch) → scalar, where hidden[s, t] is the state
    that predicts targets[s, t]. Its gradients in hidden, head_weight and bias are those of −Σ c log π with the
    coefficients c of `Method.coefficients`, held fixed. Positions where `batch.mask` is off never reach the head.

    How is read off the method (`method.schedule.kind`):

    ========== ================================================================================= ============
    schedule   passes                                                                            cost
    ========== ================================================================================= ============
    none       log-probs and gradients while each chunk of logits lives                          6 NDV
    token      the same, coefficients between the two                                            6 NDV
    factored   gradients with w while each chunk lives, scaled by s when the unit is complete    6 NDV
    free       a unit that a chunk holds, the same; else log-probs, then gradients from the      6 to 8 NDV
               softmax that was kept, recomputing what was not
    any        of a head that is not trained                                                     4 NDV
    any        without gradient                                                                  2 NDV
    ========== ================================================================================= ============

    `budget` bounds the bytes of one chunk of logits, `keep` those of the softmax that a free schedule keeps (in the
    model's dtype, bfloat16 for 16 bits). `batch.logp` is not read; `batch.entropy` is computed where the method uses
    it and the batch has none.
    """

    def __init__(self, method: Method, *, budget: int = BUDGET, keep: int = KEEP) -> None:
        super().__init__()
        self.method = method
        self.budget = budget
        self.keep = keep

    def extra_repr(self) -> str:
        return f"{self.method.name}, schedule={self.method.schedule.kind}"

    def forward(
        self,
        hidden: Tensor,
        head_weight: Tensor,
        targets: Tensor,
        batch: Batch,
        *,
        bias: Tensor | None = None,
        scale: float = 1.0,
        softcap: float | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """The loss. Raises GroError for shapes that do not fit and for a coefficient that is not finite."""
        _fits(hidden, targets, batch)
        head = Head(head_weight, bias, scale, softcap, temperature)
        run = Run(self.method.schedule.program, _arithmetic(batch, hidden), self.method.name)
        row, slot = run.layout.places
        order = self._order(run)
        place = (run.layout.rows[row] * batch.mask.shape[1] + slot)[order]
        states = hidden.flatten(0, 1).index_select(0, place)
        return self._loss(run, states, head, targets.flatten().index_select(0, place), order)

    def _order(self, run: Run) -> Tensor:
        """Tokens sorted so that what must be together stands together."""
        row = run.layout.places[0]
        if self.method.schedule.unit is not Scope.GROUP:
            return torch.arange(row.numel(), device=row.device)
        run.need_groups(Scope.GROUP)
        return torch.argsort(run.layout.groups[1][row], stable=True)

    def _loss(self, run: Run, hidden: Tensor, head: Head, targets: Tensor, order: Tensor) -> Tensor:
        entropy = self.method.needs.entropy and run.batch.entropy is None
        parts = (hidden, head.weight, head.bias)
        if not torch.is_grad_enabled() or not any(part is not None and part.requires_grad for part in parts):
            logp, uncertainty = logps(hidden, head, targets, entropy=entropy, budget=self.budget)
            return self._value(run, _placed(logp, order), _placed(uncertainty, order))
        made = self._one_pass(run, hidden, head, targets, order, entropy)
        value = self._value(run, _placed(made.rows.logp, order), _placed(made.rows.entropy, order))
        return attach(value, parts, made.gradients)

    def _one_pass(self, run: Run, hidden: Tensor, head: Head, targets: Tensor, order: Tensor, entropy: bool) -> Pass:
        """Gradients while each chunk's logits live; rows that a chunk does not hold cannot matter to it."""
        plan, count = self.method.schedule, order.numel()
        output = "scale" if plan.kind == "factored" else "coefficient"
        filled = torch.full((count,), -1.0, dtype=run.dtype, device=hidden.device)
        uncertain = torch.ones_like(filled) if entropy else None

        def evaluate(rows: slice, logp: Tensor, uncertainty: Tensor | None) -> Tensor:
            filled[order[rows]] = logp.to(run.dtype)
            if uncertain is not None and uncertainty is not None:
                uncertain[order[rows]] = uncertainty.to(run.dtype)
            run.now(filled, uncertain)
            return run.per_token(output)[order[rows]].to(logp.dtype)

        if plan.unit is Scope.TOKEN:
            return single_pass(hidden, head, targets, evaluate, entropy=entropy, budget=self.budget)
        weights = run.per_token("weight")[order] if plan.kind == "factored" and count else None
        unit, part = (run.layout.parent(Scope.TOKEN, scope)[order] for scope in (plan.unit, plan.part))
        return factored_pass(
            hidden,
            head,
            targets,
            weights,
            unit,
            evaluate,
            part=part,
            entropy=entropy,
            budget=self.budget,
            keep=self.keep,
        )

    def _value(self, run: Run, logp: Tensor | None, entropy: Tensor | None) -> Tensor:
        """The loss's value, once all log-probs are known; a coefficient that is not finite is an error."""
        assert logp is not None
        if not run.layout.rows.numel():
            return torch.zeros((), dtype=run.dtype, device=run.device)
        run.now(logp, entropy)
        coefficient, score, penalty = run("coefficient", "score_coefficient", "penalty")
        if not bool(torch.isfinite(coefficient).all()):
            raise not_finite(run, "coefficient", self.method.sources)
        return penalty - (score * logp.to(run.dtype)).sum()


def _placed(values: Tensor | None, order: Tensor) -> Tensor | None:
    """Values in the order of the batch again."""
    return None if values is None else torch.empty_like(values).index_copy_(0, order, values)


def _arithmetic(batch: Batch, hidden: Tensor) -> Batch:
    """The batch with a `logp` of the arithmetic's dtype, to be filled by the module."""
    double = hidden.dtype == torch.float64 or batch.dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    return batch.replace(logp=torch.zeros(batch.mask.shape, dtype=dtype, device=batch.mask.device))


def _fits(hidden: Tensor, targets: Tensor, batch: Batch) -> None:
    shape = list(batch.mask.shape)
    if hidden.ndim != 3 or list(hidden.shape[:2]) != shape or list(targets.shape) != shape:
        message = f"hidden must be [S, T, D] and targets [S, T] with [S, T] = {shape}, as the mask"
        found = f"found hidden {list(hidden.shape)} and targets {list(targets.shape)}"
        raise GroError.plain(f"{message}; {found}", help="hidden[s, t] is the state that predicts targets[s, t]")


def compile(method: Method, *, budget: int = BUDGET, keep: int = KEEP) -> Compiled:
    """The method as one fused torch module; see `Compiled`."""
    return Compiled(method, budget=budget, keep=keep)
