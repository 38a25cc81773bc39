"""The parquet files of a run: written as a whole or not at all, read back without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from grolang.runtime.record import replaced, writing

FOLDER, COMPLETIONS = "samples", "evaluations"


def parts(folder: Path) -> list[Path]:
    """The files of a folder, in the order of their first steps."""
    return sorted(folder.glob("[0-9]*.parquet"))


def first_step(part: Path) -> int:
    """The step that a file begins with (samples) or belongs to (evaluations)."""
    return int(part.stem)


def read(part: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One file. A folder named like `beta=0.1` above it makes no column."""
    return pq.read_table(part, columns=None if columns is None else list(columns), partitioning=None)


def read_samples(output: Path, columns: Sequence[str] | None = None) -> pa.Table | None:
    """All samples of a run in the order of the steps; None where none were kept."""
    found = [read(part, columns) for part in parts(output / FOLDER)]
    return pa.concat_tables(found, promote_options="default") if found else None


def read_completions(output: Path) -> list[tuple[int, pa.Table]]:
    """The completions of held-out prompts of each evaluation, with its step."""
    return [(first_step(part), read(part)) for part in parts(output / COMPLETIONS)]


def write(table: pa.Table, path: Path) -> None:
    """Write a table as a whole; GroError where that fails."""
    help = "free space there, or leave the samples out with --keep-samples 0"
    with writing(path, help):
        path.parent.mkdir(exist_ok=True)
    with replaced(path, help) as file:
        pq.write_table(table, file, compression="zstd")
