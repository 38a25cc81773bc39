"""The batch of a step that failed, as a file, so that it can be looked at again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from grolang import Batch
from grolang.language.diagnostics import GroError

MAPPINGS = ("scores", "greedy_scores")


@dataclass(frozen=True)
class Kept:
    """A batch, the values of the method's parameters, and the prompt and completion of each row."""

    batch: Batch
    params: Mapping[str, float] = field(default_factory=dict)
    texts: Sequence[tuple[str, ...]] = ()


def write_batch(path: Path, kept: Kept) -> None:
    """Every tensor of the batch under its field's name: `logp`, `scores.correct`, `mismatched.logp`, …"""
    tensors = {name: tensor.contiguous().clone() for name, tensor in _named(kept.batch).items()}
    try:
        save_file(tensors, str(path), {"params": json.dumps(dict(kept.params)), "texts": json.dumps(list(kept.texts))})
    except (OSError, SafetensorError) as error:
        raise GroError.plain(f"cannot write {path}: {error}") from error


def read_batch(path: Path) -> Kept:
    """What `write_batch` wrote."""
    try:
        with safe_open(str(path), "pt") as file:
            notes = file.metadata() or {}
        texts = [tuple(map(str, row)) for row in json.loads(notes.get("texts", "[]"))]
        return Kept(_batch(load_file(str(path))), json.loads(notes.get("params", "{}")), texts)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise GroError.plain(f"{path} holds no batch: {error}", help="name the file that the run wrote") from error


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
