"""A CPU's products with weights that do not change meanwhile: each is copied once into the order that kernels read.

oneDNN's kernels read a weight in blocks of their own. With few rows, as where a token is drawn for each of some
sequences, that takes 0.2 to 0.9 times as long as torch's other library with the weight as it is: the larger the
weight, and the fewer the rows, the less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial

import torch
from torch import Tensor, nn

LARGE = 2**17  # numbers of a weight; with fewer the call of a kernel takes as long as what it computes


@contextmanager
def prepacked(model: nn.Module) -> Iterator[None]:
    """While this holds, the model's linear maps of fp32 read copies of their weights; gradients are not for it.

    The copies take as many bytes as the weights. A map that is not on a CPU, is small, is some class's own or has a
    forward of its own stays as it is, and so do those for whose copies there is no memory.
    """
    suits = _works() and not torch.is_autocast_enabled("cpu")
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and _suits(layer)] if suits else []
    try:
        with suppress(RuntimeError):  # a CPU that is out of memory has no error of its own
            for layer in layers:
                layer.__dict__["forward"] = partial(_product, _packed(layer.weight.detach()), layer.bias)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _suits(layer: nn.Linear) -> bool:
    weight, plain = layer.weight, type(layer) is nn.Linear and type(layer.weight) is nn.Parameter
    if not plain or "forward" in layer.__dict__:
        return False
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= LARGE


def _packed(weight: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return found


def _product(packed: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """x Wᵀ + b: x [..., in], the weight [out, in] as `_packed` gives it."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return found


@cache
def _works() -> bool:
    """Whether this torch has these products, and as exact as its own. It is tried."""
    draw = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(shape, generator=draw) for shape in ((96, 160), (96,), (3, 2, 160)))
    try:
        found = _product(_packed(weight), bias, x)
    except (AttributeError, RuntimeError, TypeError):  # not built with oneDNN, or with another one's names
        return False
    exact = x.double() @ weight.double().T + bias
    return bool((found - exact).norm() <= 1e-6 * exact.norm())
