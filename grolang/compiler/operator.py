"""The fused loss as one operator of torch's, so that torch.compile takes it into its graph whole.

Nothing else needs it: outside of torch.compile the module calls `Formed` itself. The operator takes tensors and
numbers only, so a batch travels as its tensors with their names, and the module that knows the method by a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from grolang.compiler.batch import Batch
from grolang.compiler.fused import Head
from grolang.compiler.fused.sweep import stored

Formed = Callable[[Tensor, Head, Tensor, Batch, bool], tuple[Tensor, Sequence["Tensor | None"]]]
"""hidden, head, targets, batch, whether gradients are wanted → the loss, its gradients in hidden, weight and bias."""

_NUMBERS = count()
_KNOWN: WeakValueDictionary[int, Any] = WeakValueDictionary()


def enrolled(module: Any) -> int:
    """A number for a module whose `formed` is a `Formed`, as long as it lives."""
    number = next(_NUMBERS)
    _KNOWN[number] = module
    return number


def loss(number: int, hidden: Tensor, head: Head, targets: Tensor, batch: Batch, trained: list[bool]) -> Tensor:
    """The loss of a module, with its gradients where hidden, weight and bias are `trained`."""
    tensors = batch.flat()
    parts = (head.weight, head.bias, head.scale, head.softcap, head.temperature)
    found: tuple[Tensor, ...] = torch.ops.grolang.loss(
        hidden, targets, *parts, list(tensors.values()), ",".join(tensors), trained, number
    )
    return found[0]


_SCHEMA = (
    "(Tensor hidden, Tensor targets, Tensor weight, Tensor? bias, float scale, float? softcap, float temperature, "
    "Tensor[] tensors, str names, bool[] trained, int number) -> (Tensor, Tensor, Tensor, Tensor)"
)


_UNSAFE = getattr(torch.Tag, "cudagraph_unsafe", None)
"""A CUDA graph cannot hold the operator: which rows it computes depends on their coefficients. From torch 2.8."""


@torch.library.custom_op(
    "grolang::loss", mutates_args=(), schema=_SCHEMA, **({} if _UNSAFE is None else {"tags": (_UNSAFE,)})
)
def _loss(
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    temperature: float,
    tensors: list[Tensor],
    names: str,
    trained: list[bool],
    number: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight = weight.detach().requires_grad_(trained[1])
    bias = None if bias is None else bias.detach().requires_grad_(trained[2])
    head = Head(weight, bias, scale, softcap, temperature)
    batch = Batch.of(dict(zip(names.split(","), tensors)))
    value, grads = _KNOWN[number].formed(hidden, head, targets, batch, any(trained))
    made = [*grads, None, None, None][:3]
    asked = [one if wanted else None for one, wanted in zip(made, trained)]
    d_hidden, d_weight, d_bias = (hidden.new_empty(0) if one is None else one for one in asked)
    return value.clone(), d_hidden, d_weight, d_bias


@_loss.register_fake
def _shapes(
    hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, tensors, _, trained, _ = rest
    double = torch.float64 in (hidden.dtype, *(tensor.dtype for tensor in tensors))
    value = hidden.new_empty((), dtype=torch.float64 if double else torch.float32)

    def shaped(one: Tensor | None, wanted: bool) -> Tensor:
        if one is None or not wanted:
            return hidden.new_empty(0)
        return one.new_empty(one.shape, dtype=stored(one.dtype))

    d_hidden, d_weight, d_bias = (shaped(*pair) for pair in zip((hidden, weight, bias), trained))
    return value, d_hidden, d_weight, d_bias


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, _, weight, bias, *_, tensors, _, trained, _ = inputs
    ctx.count = len(tensors)
    ctx.trained, ctx.dtypes = trained, [None if one is None else one.dtype for one in (hidden, weight, bias)]
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    """The gradients were formed with the loss: times the upstream gradient, in the inputs' dtypes."""
    given = []
    for one, wanted, dtype in zip(ctx.saved_tensors, ctx.trained, ctx.dtypes):
        given.append((one * upstream).to(dtype) if wanted and dtype is not None else None)
    hidden, weight, bias = given
    return hidden, None, weight, bias, None, None, None, [None] * ctx.count, None, None, None


_loss.register_autograd(_backward, setup_context=_remember)
