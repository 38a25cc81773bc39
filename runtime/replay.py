"""A batch as a file, so that the step which failed can be looked at again: `read_batch`, then `method.evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from grolang import Batch
from grolang.language.diagnostics import GroError

MAPPINGS = ("scores", "greedy_scores")


def write_batch(path: Path, batch: Batch) -> None:
    """Every tensor of the batch under its field's name: `logp`, `scores.correct`, `mismatched.logp`, …"""
    try:
        save_file({name: tensor.contiguous().clone() for name, tensor in _named(batch).items()}, str(path))
    except (OSError, SafetensorError) as error:
        raise GroError.plain(f"cannot write {path}: {error}") from error


def read_batch(path: Path) -> Batch:
    """The batch that `write_batch` wrote."""
    try:
        return _batch(load_file(str(path)))
    except (OSError, SafetensorError, TypeError) as error:
        raise GroError.plain(f"{path} holds no batch: {error}") from error


def _named(batch: Batch) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            found[name] = value
        elif name in MAPPINGS:
            found |= {f"{name}.{score}": tensor for score, tensor in value.items()}
        elif isinstance(value, Batch):
            found |= {f"{name}.{inner}": tensor for inner, tensor in _named(value).items()}
    return found


def _batch(tensors: dict[str, Tensor]) -> Batch:
    fields: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if "." not in name}
    for mapping in MAPPINGS:
        fields[mapping] = {
            name.split(".", 1)[1]: one for name, one in tensors.items() if name.startswith(f"{mapping}.")
        }
    crossed = {name.split(".", 1)[1]: one for name, one in tensors.items() if name.startswith("mismatched.")}
    return Batch(**fields, mismatched=_batch(crossed) if crossed else None)
