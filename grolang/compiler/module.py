"""The compiled loss: from hidden states to a scalar with exact gradients, never holding [S, T, V] logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from grolang.compiler.batch import Batch
from grolang.compiler.forming import Forming
from grolang.compiler.fused import KEEP, Head, attach
from grolang.compiler.method import Method
from grolang.compiler.operator import enrolled, loss
from grolang.language.diagnostics import GroError


class Compiled(nn.Module):
    """One fused loss for any method.

    module(hidden [S, T, D], head_weight [V, D], targets [S, T], batch) → scalar, where hidden[s, t] is the state
    that predicts targets[s, t]. Its gradients in hidden, head_weight and bias are those of −Σ c log π with the
    coefficients c of `Method.coefficients`, held fixed. Positions where `batch.mask` is off never reach the head, nor
    do tokens that cannot matter (a coefficient of 0 whatever the policy says: see `Method.dead`).

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

    `budget` bounds the bytes of one chunk of logits (None: 256 MiB, on a GPU 1 GiB), `keep` those of the softmax that a
    free schedule keeps (in the model's dtype, bfloat16 for 16 bits). `kernels` takes Triton kernels on CUDA, of which
    the one for rows is generated from the method; they have run under Triton's interpreter, never on a GPU.
    `batch.logp` is not read; `batch.entropy` is computed where the method uses it and the batch has none.
    """

    def __init__(self, method: Method, *, budget: int | None = None, keep: int = KEEP, kernels: bool = False) -> None:
        super().__init__()
        self.method = method
        self.budget = budget
        self.keep = keep
        self.kernels = kernels
        self._number = enrolled(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch has no type for it
        self._number = enrolled(self)  # a copy is a module of its own

    def extra_repr(self) -> str:
        """Name and schedule, for torch's printing of modules."""
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
        inputs = (hidden, head_weight, bias)
        asked = [torch.is_grad_enabled() and one is not None and one.requires_grad for one in inputs]
        if torch.compiler.is_compiling():
            return loss(self._number, hidden, head, targets, batch, asked)
        value, grads = self.formed(hidden.detach(), head, targets, batch, any(asked))
        return attach(value, inputs, grads) if any(asked) else value

    @torch.no_grad()
    def formed(
        self, hidden: Tensor, head: Head, targets: Tensor, batch: Batch, trained: bool
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The loss and its gradients in hidden, head_weight and bias."""
        forming = Forming(self.method, batch, double=hidden.dtype == torch.float64)
        slots = forming.slots
        states = hidden.flatten(0, 1).index_select(0, slots)
        chosen = targets.flatten().index_select(0, slots)
        _known(chosen, head.vocabulary)
        if not trained:
            forming.read(forming.tokens, states, head, chosen, budget=self.budget, kernels=self.kernels)
            return forming.loss(), ()
        made = forming.form(
            forming.tokens, states, head, chosen, budget=self.budget, keep=self.keep, kernels=self.kernels
        ).gradients
        whole = made.hidden.new_zeros(hidden.shape)
        whole.flatten(0, 1).index_copy_(0, slots, made.hidden)
        return forming.loss(), (whole, made.weight, made.bias)


def _fits(hidden: Tensor, targets: Tensor, batch: Batch) -> None:
    shape = list(batch.mask.shape)
    if hidden.ndim != 3 or list(hidden.shape[:2]) != shape or list(targets.shape) != shape:
        message = f"hidden must be [S, T, D] and targets [S, T] with [S, T] = {shape}, as the mask"
        found = f"found hidden {list(hidden.shape)} and targets {list(targets.shape)}"
        raise GroError.plain(f"{message}; {found}", help="hidden[s, t] is the state that predicts targets[s, t]")


def _known(targets: Tensor, vocabulary: int) -> None:
    """GroError where a target is no token. A GPU is not waited for: there the kernel that reads the targets says so."""
    if targets.device.type != "cpu":
        return
    wrong = targets[(targets < 0) | (targets >= vocabulary)]
    if len(wrong):
        message = f"targets must be tokens of the head, 0 to {vocabulary - 1}, where the mask is on; found"
        raise GroError.plain(f"{message} {int(wrong[0])}", help="switch the mask off where there is nothing to learn")


def compile(method: Method, *, budget: int | None = None, keep: int = KEEP, kernels: bool = False) -> Compiled:
    """The method as one fused torch module; see `Compiled`."""
    return Compiled(method, budget=budget, keep=keep, kernels=kernels)
