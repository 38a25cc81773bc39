"""A CUDA device that is not there: tensors "on cuda:0" hold their numbers on the CPU, and mixing devices raises.

    with device_guard.cuda() as seen:
        module(hidden.to("cuda:0"), …)
    seen.syncs  # what would have made the CPU wait for the GPU, by the line of ours that asked

What an operator does with tensors of both devices is what CUDA does: an error, but for copies, indices, and tensors
without an axis in elementwise operators. Numbers, control flow, gradients and autocast are real; speed, kernels and
memory are not looked at. Operators that only CUDA has are worked out in fp32.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

DEVICE = torch.device("cuda:0")
OURS = tuple(str(Path(__file__).parents[1] / room) for room in ("grolang", "runtime"))

aten: Any = torch.ops.aten
MIXES = {aten.copy_, aten._to_copy, aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten.set_}
"""Operators that take tensors of both devices."""

WAITS = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_consecutive,
    aten.unique_dim, aten.bincount, aten.equal,
}  # fmt: skip
"""Operators whose result, or whose shape, the CPU waits for."""

NARROW = {
    F.linear, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, Tensor.matmul, Tensor.__matmul__,
    Tensor.mm, Tensor.bmm, F.scaled_dot_product_attention,
}  # fmt: skip
"""Functions whose operands CUDA's autocast makes half as wide, and those that it computes in fp32."""
WIDE = {
    F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax, Tensor.log_softmax, F.layer_norm,
    torch.exp, Tensor.exp, torch.log, Tensor.log, torch.pow, Tensor.pow, torch.rsqrt, torch.sum, Tensor.sum,
    torch.cumsum, Tensor.cumsum,
}  # fmt: skip


class OnCuda(Tensor):
    """A tensor of the device that is not there. To torch's own C++ it lies on "meta", to Python on cuda:0."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnCuda:
        options: dict[str, Any] = {"dtype": inner.dtype, "layout": inner.layout, "device": "meta"}
        place = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        made: OnCuda = Tensor._make_wrapper_subclass(cls, inner.size(), **place, **options)  # type: ignore[attr-defined]
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: a tensor of the device outlived its guard")

    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnCuda({self.inner!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return self.to("cpu")

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = OnCuda(self.inner.detach().clone())
        made = torch.nn.Parameter(copied) if isinstance(self, torch.nn.Parameter) else copied
        return memo.setdefault(id(self), made.requires_grad_(self.requires_grad))


class _Guard(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.syncs: Counter[str] = Counter()
        self.within = False  # a function of tensors on cuda:0, whose own new tensors are made on what C++ sees: "meta"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        here = [one for one in given if not isinstance(one, OnCuda)]
        asked = kwargs.get("device")
        there = len(here) < len(given)
        if asked is not None:
            there = torch.device(asked).type in ("cuda", "meta" if self.within else "")
        if not there and len(here) == len(given):
            return func(*args, **kwargs)
        if here and len(here) < len(given) and func.overloadpacket not in MIXES:
            elementwise = torch.Tag.pointwise in func.tags or "fill" in func.name()
            if not elementwise or any(one.ndim for one in here) or (_in_place(func) and args[0] is here[0]):
                shapes = [list(one.shape) for one in here]
                raise RuntimeError(f"Expected all tensors to be on the same device: {func} with {shapes} on the CPU")
        if _waits(func, args, given, there):
            self.syncs[f"{func.overloadpacket.__name__} {_asker()}"] += 1
        plain, named = _mapped(_inner, (args, kwargs))
        if there and asked is not None:
            named["device"] = torch.device("cpu")
        found = _CUDA_ONLY.get(func, func)(*plain, **named)
        wrapped = _mapped(lambda one: OnCuda(one) if there and isinstance(one, Tensor) else one, found)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """A tuple, list or dict of values, and so on, with `change` at its leaves."""
    if type(value) in (tuple, list):
        return type(value)([_mapped(change, one) for one in value])
    return {name: _mapped(change, one) for name, one in value.items()} if type(value) is dict else change(value)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [one for part in parts for one in _tensors(part)]


def _inner(one: Any) -> Any:
    return one.inner if isinstance(one, OnCuda) else one


def _in_place(func: Any) -> bool:
    return bool(func._schema.arguments) and func._schema.arguments[0].is_write


def _waits(func: Any, args: Any, given: list[Tensor], there: bool) -> bool:
    packet, far = func.overloadpacket, [isinstance(one, OnCuda) for one in given]
    if packet is aten._to_copy:
        return far[0] != there
    if packet is aten.copy_:
        return far[0] != far[1]
    if packet in (aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_):
        indices = [one for one in args[1] if one is not None]
        return any(one.dtype == torch.bool or not isinstance(one, OnCuda) for one in indices) and any(far)
    return packet in WAITS and any(far)


def _asker() -> str:
    frame: Any = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back
    return "elsewhere" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _addmm(self: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype, *, beta: Any, alpha: Any, out: Tensor) -> Tensor:
    product = alpha * (a.to(dtype) @ b.to(dtype))
    return out.copy_(product if beta == 0 else product + beta * self)


def _numbered(one: Any) -> Any:
    return DEVICE if isinstance(one, (torch.device, str)) and str(one) == "cuda" else one


def _listed(index: Any) -> Any:
    """Lists among the indices as tensors, which C++ would make on "meta"."""
    if isinstance(index, tuple):
        return tuple(map(_listed, index))
    return torch.tensor(index, device=DEVICE) if isinstance(index, list) else index


ADDS_IN_FP32 = hasattr(aten.addmm, "dtype_out")  # torch 2.6 has no such products
_CUDA_ONLY: dict[Any, Callable[..., Any]] = {aten.addmm.dtype_out: _addmm} if ADDS_IN_FP32 else {}


def _interpreted(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """A kernel under Triton's interpreter, on the numbers where they are."""
    assert all(isinstance(one, OnCuda) for one in _tensors(args)), "a kernel was given a tensor of the CPU"
    if all(grid):
        kernel[grid](*_mapped(_inner, args), **options)


class _Front(TorchFunctionMode):
    """Gives "cuda" its number, and does autocast: torch's own looks at dispatch keys, which are those of "meta"."""

    def __init__(self, guard: _Guard) -> None:
        super().__init__()
        self.guard = guard

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = _mapped(_numbered, (args, kwargs or {}))
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnCuda):
            args = args[0], _listed(args[1]), *args[2:]
        if (func in NARROW or func in WIDE) and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda") if func in NARROW else torch.float32

            def cast(one: Any) -> Any:
                fits = isinstance(one, OnCuda) and one.is_floating_point() and one.dtype != torch.float64
                return one.to(dtype) if fits else one

            args, kwargs = _mapped(cast, (args, kwargs))
        before = self.guard.within
        self.guard.within = before or any(isinstance(one, OnCuda) for one in _tensors((args, kwargs)))
        try:
            return func(*args, **kwargs)
        finally:
            self.guard.within = before


@contextmanager
def cuda(capability: tuple[int, int] = (9, 0)) -> Iterator[_Guard]:
    """While this holds, torch sees one GPU of this compute capability, with Triton where its interpreter is on."""
    from grolang.compiler.fused import launch, products, trial

    assert not torch.cuda.is_available(), "there is a GPU: run on it"
    seen: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda *_: None,
        "get_device_capability": lambda *_: capability,
        "get_rng_state_all": lambda: [],
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "manual_seed_all": lambda *_: None,
        "empty_cache": lambda: None,
    }
    lift = torch._C._only_lift_cpu_tensors()
    tried = products.has_bf16_products, products.adds_in_fp32, trial.failure
    for one in tried:
        one.cache_clear()
    try:
        triton = patch.multiple(
            launch, _start=_interpreted, OPERANDS=(torch.float16,)
        )  # its dot takes bf16 for integers
        with patch.multiple(torch.cuda, **seen), patch.object(torch.version, "cuda", "12.8"), triton:
            torch._C._set_only_lift_cpu_tensors(True)
            with _Guard() as guard, _Front(guard):
                yield guard
    finally:
        torch._C._set_only_lift_cpu_tensors(lift)
        for one in tried:
            one.cache_clear()
