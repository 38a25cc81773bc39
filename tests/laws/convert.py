"""Oracle batches (dicts of numpy arrays) as grolang's."""

from __future__ import annotations

from typing import Any

import torch

import grolang
from tests.oracle.gradients import Batch


def as_batch(plain: Batch, dtype: torch.dtype = torch.float64) -> grolang.Batch:
    """Every array as a tensor: numbers in `dtype`, ids and masks as they are."""
    fields: dict[str, Any] = {}
    for name, given in plain.items():
        if name == "mismatched":
            fields[name] = as_batch(given, dtype)  # type: ignore[arg-type]
        elif name in ("scores", "greedy_scores"):
            fields[name] = {key: torch.from_numpy(x).to(dtype) for key, x in given.items()}  # type: ignore[attr-defined]
        else:
            tensor = torch.from_numpy(given)
            fields[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return grolang.Batch(**fields)
