"""Runs whose scores fail: they stop or go on as they are told, and nothing is lost."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Write, rows_of
from rich.console import Console

from grolang import GroError
from grolang.runtime import start

ODD = (
    "def score(prompts, completions, **columns):\n"
    "    if any(prompt.startswith('3') for prompt in prompts):\n        raise ConnectionError('no 3s')\n"
    "    return [float(len(text)) for text in completions]\n"
)
NEVER = "def score(**columns):\n    raise ConnectionError('down')\n"


def run(tiny: str, output: Path, body: str, data: str, **flags: Any) -> tuple[list[dict[str, Any]], str]:
    path = output.parent / "rewards.py"
    path.write_text(body)
    given = {
        "method": "rloo", "model": tiny, "data": data, "output": str(output), "steps": 4, "batch": 10, "lr": 1e-3,
        "max_completion": 5, "eval_rows": 0, "score": {"correct": f"{path}:score"},
    }  # fmt: skip
    given |= {} if "method" in flags else {"group": 2}
    console = Console(file=io.StringIO(), width=300)
    start(given | flags, None, console)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return lines, console.file.getvalue()  # type: ignore[attr-defined]


def test_it_stops_and_names_the_completion(tiny: str, tmp_path: Path, write: Write) -> None:
    with pytest.raises(GroError, match=r"ConnectionError: no 3s \(.*rewards.py:3\) for completion \d+: '3\+\d="):
        run(tiny, tmp_path / "out", ODD, write(rows_of("prompts")))


def test_zero_goes_on_and_counts(tiny: str, tmp_path: Path, write: Write) -> None:
    data = write(rows_of("prompts"))
    lines, said = run(tiny, tmp_path / "out", ODD, data, on_score_error="zero")
    assert sum(line.get("rewards/correct/failed", 0) for line in lines) == 20  # 10 prompts of 40, two completions each
    assert "scores that failed: " in said and "ConnectionError: no 3s" in said


def test_skip_leaves_the_rows_out(tiny: str, tmp_path: Path, write: Write) -> None:
    import pyarrow.parquet as pq

    lines, _ = run(tiny, tmp_path / "out", ODD, write(rows_of("prompts")), on_score_error="skip")
    assert sum(line.get("rewards/correct/failed", 0) for line in lines) == 20
    rows = pq.read_table(tmp_path / "out/samples").to_pylist()
    assert len(rows) == 60 and not [row for row in rows if row["prompt"].startswith("3")]


def test_a_pair_is_left_out_whole(tiny: str, tmp_path: Path, write: Write) -> None:
    (tmp_path / "scored.gro").write_text(
        "method scored\ndata preference\nscore good\nreward = good\nbaseline = mean(good over group)\n"
    )
    body = "def score(completions, **columns):\n    return [float('nan') if c == '5' else 1.0 for c in completions]\n"
    flags = {"method": str(tmp_path / "scored.gro"), "score": {"good": f"{tmp_path / 'rewards.py'}:score"}}
    data = write(rows_of("preference", 10))  # 0+5= is right with 5, and 0+4= is wrong with it
    lines, _ = run(tiny, tmp_path / "out", body, data, on_score_error="skip", steps=1, **flags)
    assert lines[0]["rewards/good/failed"] == 2 and lines[0]["rewards/good/mean"] == 1.0


def test_steps_without_any_score_are_left_out(tiny: str, tmp_path: Path, write: Write) -> None:
    lines, said = run(tiny, tmp_path / "out", NEVER, write(rows_of("prompts")), on_score_error="skip", updates=2)
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and [line["skipped"] for line in lines] == [1, 2, 3, 4]
    assert "4 of 4 steps were left out" in said
