"""What every pass runs under: no autograd, and out of sight of torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")


def opaque(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, run as it stands by torch.compile (a graph break at the call).

    A custom operator cannot take the passes' callbacks, and tracing them would unroll their chunk loops and
    specialise on the number of live rows; a break is right with every back end.
    """
    return cast(Callable[P, R], torch.compiler.disable(function))  # type: ignore[no-untyped-call]  # torch has no type for it


def exact(function: Callable[P, R]) -> Callable[P, R]:
    """`function` without autograd. Autocast needs no word: it leaves products into a given tensor alone."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.no_grad():
            return function(*args, **kwargs)

    return opaque(run)
