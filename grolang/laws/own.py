"""A loss of one's own, written in PyTorch, held against a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from grolang.compiler.batch import Batch
from grolang.compiler.method import Method
from grolang.language.diagnostics import GroError
from grolang.language.ir import MethodIR
from grolang.laws.claims import Verdict, agree, search

Loss = Callable[[Batch], Tensor]

_STRAY = (
    "the loss has a gradient where the mask is off (row {row}, slot {slot}): a slot without a token, which would be "
    "learned from; multiply by `batch.mask` before anything is summed"
)


@dataclass(frozen=True, eq=False)
class Own:
    """`left`: the coefficients of a method; `right`: minus the gradient of a loss in the log-probs."""

    method: Method
    loss: Loss
    tolerance: float
    within: st.SearchStrategy[Batch]
    smallest: int

    @property
    def name(self) -> str:
        """The method's."""
        return self.method.name

    @property
    def methods(self) -> tuple[MethodIR, ...]:
        """The one method."""
        return (self.method.ir,)

    @property
    def reads(self) -> frozenset[str]:
        """What the method uses: a loss does not say what it reads."""
        return frozenset(name for name, _ in self.method.program.loads("coefficient")) | {"logp"}

    def batches(self) -> st.SearchStrategy[Batch]:
        """Those that were asked for."""
        return self.within

    def tensors(self, batch: Batch, seed: int = 0) -> tuple[Tensor, Tensor, str]:
        """Both [S, T]. Raises AssertionError where the loss is no scalar or pushes slots that hold no token."""
        assert batch.logp is not None
        try:
            left = self.method.coefficients(batch)
        except GroError as error:
            if error.diagnostics[0].code != "E902":
                raise
            left = torch.full_like(batch.logp, torch.nan)
        live = batch.logp.detach().clone().requires_grad_()
        value = self.loss(batch.replace(logp=live))
        if not isinstance(value, Tensor) or value.ndim:
            raise AssertionError(
                f"a loss is a tensor without axes (end with a sum or mean); this one is {_shown(value)}"
            )
        (right,) = torch.autograd.grad(value, live, allow_unused=True) if value.requires_grad else (None,)
        if right is None:
            return left, torch.zeros_like(left), ""
        stray = ((right.abs() > 0) & ~batch.mask).nonzero()  # no NaN: that is told by the comparison
        if len(stray):
            raise AssertionError(_STRAY.format(row=int(stray[0, 0]), slot=int(stray[0, 1])))
        return left, torch.where(batch.mask, -right, 0).to(left), ""

    def comparable(self, left: Tensor, right: Tensor) -> bool:
        """Where the method is not finite nothing is said; a loss that alone is not finite is wrong."""
        return bool(torch.isfinite(left).all())

    def agree(self, left: Tensor, right: Tensor) -> bool:
        """Equal to the tolerance."""
        return bool(torch.isfinite(right).all()) and agree(left, right, self.tolerance)


def _shown(value: object) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def check_loss(
    loss: Loss,
    method: Method,
    within: st.SearchStrategy[Batch],
    *,
    smallest: int,
    examples: int,
    seed: int,
    tolerance: float,
) -> Verdict:
    """`held` on so many batches, or `failed` with a small one; its groups keep `smallest` rows."""
    return search(Own(method, loss, tolerance, within, smallest), examples=examples, seed=seed)
