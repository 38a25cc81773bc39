"""The compiled loss: from hidden states to a scalar with exact gradients, never holding [S, T, V] logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grolang.compiler.batch import Batch
from grolang.compiler.blame import not_finite
from grolang.compiler.execute import Run
from grolang.compiler.fused import (
    BUDGET,
    Head,
    Pass,
    attach,
    factored_pass,
    forward,
    frozen_logps,
    logps,
    single_pass,
    surrogate,
)
from grolang.compiler.method import Method
from grolang.language.diagnostics import GroError
from grolang.language.scopes import Scope


class Compiled(nn.Module):
    """One fused loss for any method.

    module(hidden [S, T, D], head_weight [V, D], targets [S, T], batch) → scalar, where hidden[s, t] is the state
    that predicts targets[s, t]. Its gradients in hidden, head_weight and bias are those of −Σ c log π with the
    coefficients c of `Method.coefficients`, held fixed. Positions where `batch.mask` is off never reach the head.

    The schedule follows from the scope at which a coefficient needs the current log-probs (`method.needs.scope`):

    ============================ ================================================================ ============
    scope                        passes                                                           cost
    ============================ ================================================================ ============
    none, token                  log-probs, coefficients and gradients while each chunk lives     6 NDV
    sequence, group              the same, chunks made of whole sequences or groups               6 NDV
    batch                        log-probs, coefficients, then gradients that recompute           8 NDV
    any, head not trained        gradient directions with the log-probs                           4 NDV
    no gradient asked            log-probs                                                        2 NDV
    ============================ ================================================================ ============

    `budget` bounds the bytes of one chunk of logits. `batch.logp` is not read; `batch.entropy` is computed where
    the method uses it and the batch has none.
    """

    def __init__(self, method: Method, *, budget: int = BUDGET) -> None:
        super().__init__()
        self.method = method
        self.budget = budget

    def extra_repr(self) -> str:
        return f"{self.method.name}, scope={self.method.needs.scope}"

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
        run = Run(self.method.program, _arithmetic(batch, hidden), self.method.name)
        row, slot = run.layout.places
        order = self._order(run)
        place = (run.layout.rows[row] * batch.mask.shape[1] + slot)[order]
        states = hidden.flatten(0, 1).index_select(0, place)
        return self._loss(run, states, head, targets.flatten().index_select(0, place), order)

    def _order(self, run: Run) -> Tensor:
        """Tokens sorted so that what must be together stands together."""
        row = run.layout.places[0]
        if self.method.needs.scope != "group":
            return torch.arange(row.numel(), device=row.device)
        run.need_groups(Scope.GROUP)
        return torch.argsort(run.layout.groups[1][row], stable=True)

    def _loss(self, run: Run, hidden: Tensor, head: Head, targets: Tensor, order: Tensor) -> Tensor:
        scope = self.method.needs.scope
        entropy = self.method.needs.entropy and run.batch.entropy is None
        parts = (hidden, head.weight, head.bias)
        head_trained = any(part is not None and part.requires_grad for part in parts[1:])
        if not torch.is_grad_enabled() or not (hidden.requires_grad or head_trained):
            found = logps(hidden, head, targets, entropy=entropy, budget=self.budget)
            return self._value(run, *(_placed(one, order) for one in found))
        if not head_trained:
            logp, uncertainty = frozen_logps(hidden, head, targets, entropy=entropy, budget=self.budget)
            value = self._value(run, _placed(logp.detach(), order), _placed(uncertainty, order))
            return attach(value, (logp,), (-_coefficients(run)[order].to(logp.dtype),))
        if scope == "batch" or (entropy and scope in ("sequence", "group")):
            rows = forward(hidden, head, targets, entropy=entropy, budget=self.budget)
            value = self._value(run, _placed(rows.logp, order), _placed(rows.entropy, order))
            below = surrogate(hidden, head, targets, _coefficients(run)[order], known=rows, budget=self.budget)
            return below + (value - below.detach().to(value.dtype))
        made = self._one_pass(run, hidden, head, targets, order, entropy)
        value = self._value(run, _placed(made.rows.logp, order), _placed(made.rows.entropy, order))
        return attach(value, parts, made.gradients)

    def _one_pass(self, run: Run, hidden: Tensor, head: Head, targets: Tensor, order: Tensor, entropy: bool) -> Pass:
        """Gradients while each chunk's logits live; rows that a chunk does not hold cannot matter to it."""
        filled = torch.full((order.numel(),), -1.0, dtype=run.dtype, device=hidden.device)
        uncertain = torch.ones_like(filled) if entropy else None

        def coefficient(rows: slice, logp: Tensor, uncertainty: Tensor | None = None) -> Tensor:
            filled[order[rows]] = logp.to(run.dtype)
            if uncertain is not None and uncertainty is not None:
                uncertain[order[rows]] = uncertainty.to(run.dtype)
            run.now(filled, uncertain)
            (value,) = run("coefficient")
            return value.expand(order.numel())[order[rows]].to(logp.dtype)

        scope = self.method.needs.scope
        if scope in ("none", "token"):
            return single_pass(hidden, head, targets, coefficient, entropy=entropy, budget=self.budget)
        row = run.layout.places[0][order]
        unit = row if scope == "sequence" else run.layout.groups[1][row]
        return factored_pass(hidden, head, targets, None, unit, coefficient, budget=self.budget)

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


def _coefficients(run: Run) -> Tensor:
    if not run.layout.rows.numel():
        return torch.zeros(0, dtype=run.dtype, device=run.device)
    return run("coefficient")[0]


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


def compile(method: Method, *, budget: int = BUDGET) -> Compiled:
    """The method as one fused torch module; see `Compiled`."""
    return Compiled(method, budget=budget)
