"""The sequences of every step as parquet: what was drawn or read, its scores, and what the method made of it.

`samples/` holds files named by their first step. The last one grows: it is written anew beside itself, forced to the
disk and renamed, at every checkpoint, once a minute and at the end; past `ROWS` rows the next one begins. So a kill
loses at most a minute, of steps that no checkpoint has seen, and a reader never finds half a file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from grolang import Batch, Evaluation
from grolang.runtime.evaluation import Completion
from grolang.runtime.parquet import COMPLETIONS, FOLDER, first_step, parts, write
from grolang.runtime.sequences import Sample

ROWS = 4096  # rows of one file, which are in memory until it is full
EVERY = 60.0  # seconds between writes where no checkpoint asks for one

Decode = Callable[[Sequence[int], bool], str]
"""Text of token ids; with True, special tokens are left out."""

NUMBER, NUMBERS = pa.float64(), pa.list_(pa.float32())
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "step": (pa.int32(), "optimizer step, counted from 1"),
    "row": (pa.int32(), "place in the step"),
    "group": (pa.int32(), "the prompt or pair of the step that it belongs to"),
    "prompt": (pa.string(), "as the model saw it, special tokens and all"),
    "completion": (pa.string(), "as the scores saw it, without special tokens"),
    "ids": (pa.list_(pa.int32()), "its tokens, the end token included"),
    "length": (pa.int32(), "how many"),
    "finished": (pa.bool_(), "whether it ended before the limit"),
    "label": (NUMBER, "+1 or −1; null where rows have none"),
    "demonstration": (pa.bool_(), "whether the data showed it for imitation"),
    "replayed": (pa.bool_(), "whether it was drawn for an earlier step (`--replay`)"),
    "score/NAME": (NUMBER, "each score of the method"),
    "reward": (NUMBER, "mean over its tokens"),
    "advantage": (NUMBER, "mean over its tokens"),
    "logp": (NUMBER, "sum over its tokens, nats, before the step"),
    "logp_old": (NUMBER, "the same under the policy that the draw began with"),
    "logp_ref": (NUMBER, "the same under the reference; null where none is loaded"),
    "logp_sampler": (NUMBER, "the same as the sampler said; null where the method does not use it"),
    "coefficient/mean": (NUMBER, "of its tokens' coefficients"),
    "coefficient/min": (NUMBER, "the same"),
    "coefficient/max": (NUMBER, "the same"),
    "coefficient/zeros": (NUMBER, "share of its tokens whose coefficient is exactly 0"),
    "coefficients": (NUMBERS, "of each token"),
    "advantages": (NUMBERS, "of each token"),
    "zs": (NUMBERS, "alpha · (measure − anchor) of each token"),
    "omegas": (NUMBERS, "ω of each token"),
    "upsilons": (NUMBERS, "υ(advantage) of each token"),
}
"""A column's type and meaning; `score/NAME` stands for one of each score."""

_SUMS = ("logp", "logp_old", "logp_ref", "logp_sampler")
_LISTS = {"coefficients": "coefficient", "advantages": "advantage", "zs": "z", "omegas": "omega", "upsilons": "upsilon"}


def schema(scores: Sequence[str]) -> pa.Schema:
    """The columns, for a method with these scores."""
    fields = []
    for name, (kind, _) in COLUMNS.items():
        fields += [(f"score/{score}", kind) for score in scores] if name == "score/NAME" else [(name, kind)]
    return pa.schema(fields)


def table(step: int, samples: Sequence[Sample], batch: Batch, evaluation: Evaluation, decode: Decode) -> pa.Table:
    """A row for each sequence of the step; what the method or the step does not have is null."""
    lengths = batch.mask.sum(1).tolist()
    parts = {name: _lists(tensor, lengths) for name, tensor in evaluation.parts.items()}
    parts["coefficient"] = _lists(evaluation.coefficients, lengths)
    nothing: list[None] = [None] * len(samples)
    columns: dict[str, list[Any]] = {
        "step": [step] * len(samples),
        "row": list(range(len(samples))),
        "group": [sample.group for sample in samples],
        "prompt": [decode(sample.prompt, False) for sample in samples],
        "completion": [decode(sample.completion, True) for sample in samples],
        "ids": [sample.completion for sample in samples],
        "length": lengths,
        "finished": [sample.finished for sample in samples],
        "label": [sample.label or None for sample in samples],
        "demonstration": [bool(sample.demonstration) for sample in samples],
        "replayed": [sample.replayed for sample in samples],
    }
    for name, values in batch.scores.items():
        columns[f"score/{name}"] = values.tolist()
    for name in ("reward", "advantage"):
        columns[name] = [_mean(values) for values in parts[name]] if name in parts else nothing
    for name in _SUMS:
        tensor = getattr(batch, name)
        sums = [] if tensor is None else torch.where(batch.mask, tensor.detach().double(), 0).sum(1).tolist()
        columns[name] = [None if math.isnan(one) else one for one in sums] or nothing  # NaN: the row was not run
    own = parts["coefficient"]
    columns["coefficient/mean"] = [_mean(values) for values in own]
    columns["coefficient/min"] = [min(values) for values in own]
    columns["coefficient/max"] = [max(values) for values in own]
    columns["coefficient/zeros"] = [_mean([value == 0 for value in values]) for values in own]
    columns |= {name: parts.get(part, nothing) for name, part in _LISTS.items()}
    return pa.table(columns, schema=schema(list(batch.scores)))


def _lists(tensor: Tensor, lengths: Sequence[int]) -> list[list[float]]:
    """The values of each completion's tokens, from those [S, T]."""
    return [row[:length] for row, length in zip(tensor.detach().tolist(), lengths, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class SamplesFile:
    """Collects tables of steps and writes them. A resumed run drops the rows of steps that it takes again."""

    def __init__(self, output: Path, after: int) -> None:
        self.folder = output / FOLDER
        self.tables: list[pa.Table] = []
        self.written = time.monotonic()
        for part in parts(self.folder):
            if first_step(part) > after:
                part.unlink()
        if left := parts(self.folder):
            found = pq.read_table(left[-1], partitioning=None)
            kept = found.filter(pc.less_equal(found["step"], after))
            if len(kept) < len(found):
                write(kept, left[-1])

    def add(self, table: pa.Table) -> None:
        """Keep a step."""
        self.tables.append(table)
        if sum(map(len, self.tables)) >= ROWS or time.monotonic() - self.written > EVERY:
            self.flush()

    def flush(self) -> None:
        """Everything that was added is on the disk when this returns."""
        if not self.tables:
            return
        found = pa.concat_tables(self.tables)
        write(found, self.folder / f"{found['step'][0].as_py():08d}.parquet")
        self.tables = [] if len(found) >= ROWS else [found]
        self.written = time.monotonic()


class CompletionFiles:
    """`evaluations/STEP.parquet`: the completions of held-out prompts, a row each, written when they are measured."""

    def __init__(self, output: Path, after: int) -> None:
        self.folder = output / COMPLETIONS
        for part in parts(self.folder):
            if first_step(part) > after:
                part.unlink()

    def write(self, step: int, completions: Sequence[Completion], decode: Decode) -> None:
        """Columns: step, prompt, answer (the row's), sample (null: the greedy one), completion, length, score/NAME."""
        columns: dict[str, list[Any]] = {
            "step": [step] * len(completions),
            "prompt": [decode(one.example.prompt, False) for one in completions],
            "answer": [_text(one.example.record.get("answer")) for one in completions],
            "sample": [one.number for one in completions],
            "completion": [decode(one.ids, True) for one in completions],
            "length": [len(one.ids) for one in completions],
        }
        for name in completions[0].scores:
            columns[f"score/{name}"] = [float(one.scores[name]) for one in completions]
        write(pa.table(columns), self.folder / f"{step:08d}.parquet")


def _text(value: object) -> str | None:
    return None if value is None else str(value)
