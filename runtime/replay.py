"""The batch of a step that failed, as a file, so that it can be looked at again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from grolang import Batch
from grolang.language.diagnostics import GroError


@dataclass(frozen=True)
class Kept:
    """A batch, the values of the method's parameters, and the prompt and completion of each row."""

    batch: Batch
    params: Mapping[str, float] = field(default_factory=dict)
    texts: Sequence[tuple[str, ...]] = ()


def write_batch(path: Path, kept: Kept) -> None:
    """Every tensor of the batch under its field's name: `logp`, `scores.correct`, `mismatched.logp`, …"""
    tensors = {name: tensor.contiguous().clone() for name, tensor in kept.batch.flat().items()}
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
        return Kept(Batch.of(load_file(str(path))), json.loads(notes.get("params", "{}")), texts)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise GroError.plain(f"{path} holds no batch: {error}", help="name the file that the run wrote") from error
