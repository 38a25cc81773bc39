"""The samples that a run keeps: every column against the step, and nothing lost or doubled when it is cut."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import rows_of, tiny_model
from rich.console import Console
from transformers import AutoTokenizer

from grolang import GroError
from grolang.runtime import parquet, samples, start
from grolang.runtime.sampling import Generate, Sampling

#: samples of nearly the same length have rewards that differ
REWARDS = "def rest(completion_ids, **_):\n    return [float(sum(ids) % 7) for ids in completion_ids]\n"


def run(tiny: str, output: Path, method: str, kind: str, **flags: Any) -> Path:
    data = output.with_suffix(".jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_of(kind)))
    given = {
        "model": tiny, "data": str(data), "method": method, "output": str(output), "batch": 4, "steps": 4,
        "lr": 1e-2, "max_completion": 6, "eval_rows": 0,
    }  # fmt: skip
    start(given | flags, None, Console(file=io.StringIO()))
    return output


@pytest.fixture(scope="module")
def drawn(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """grpo, two updates on each draw."""
    folder = tmp_path_factory.mktemp("samples")
    (folder / "rewards.py").write_text(REWARDS)
    score = {"correct": f"{folder / 'rewards.py'}:rest"}
    return run(tiny, folder / "out", "grpo", "prompts", group=3, updates=2, score=score)


@pytest.fixture(scope="module")
def rows(drawn: Path) -> list[dict[str, Any]]:
    found = parquet.read_samples(drawn)
    assert found is not None
    return found.to_pylist()


def test_every_sequence_of_every_step_is_kept_once(rows: list[dict[str, Any]]) -> None:
    assert [(row["step"], row["row"]) for row in rows] == [(step, row) for step in (1, 2, 3, 4) for row in range(12)]
    assert [row["group"] for row in rows[:12]] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [row["ids"] for row in rows[:12]] == [row["ids"] for row in rows[12:24]]  # two updates on one draw
    assert rows[0]["prompt"].endswith("=") and rows[0]["demonstration"] is False and rows[0]["label"] is None


def test_the_columns_say_of_a_token_what_the_metrics_say_of_the_step(drawn: Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.loads(line) for line in (drawn / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        own = [row for row in rows if row["step"] == line["step"]]
        flat = [value for row in own for value in row["coefficients"]]
        assert line["coefficient/mean"] == pytest.approx(sum(flat) / len(flat), abs=1e-7)
        assert line["coefficient/zeros"] == pytest.approx(sum(value == 0 for value in flat) / len(flat))
        assert line["rewards/correct/mean"] == pytest.approx(sum(row["score/correct"] for row in own) / len(own))
        assert line["completions/mean_length"] == sum(row["length"] for row in own) / len(own)
    for row in rows:
        assert row["length"] == len(row["ids"]) == len(row["coefficients"]) == len(row["omegas"]) == len(row["zs"])
        assert row["score/correct"] == sum(row["ids"]) % 7
        assert row["coefficient/min"] <= row["coefficient/mean"] <= row["coefficient/max"]
        assert row["advantage"] == pytest.approx(sum(row["advantages"]) / row["length"], rel=1e-5, abs=1e-6)
        assert row["logp_old"] is not None and row["logp_sampler"] is None
        assert (row["step"] % 2 == 0) == (row["logp"] != row["logp_old"])


def test_a_group_has_advantages_of_mean_zero(rows: list[dict[str, Any]]) -> None:
    for at in range(0, len(rows), 3):
        assert sum(row["advantage"] for row in rows[at : at + 3]) == pytest.approx(0, abs=1e-4)


def test_a_resumed_run_keeps_the_samples_of_the_run_that_was_never_stopped(tiny: str, drawn: Path) -> None:
    cut = drawn.parent / "cut"
    flags = {"group": 3, "updates": 2, "score": {"correct": f"{drawn.parent / 'rewards.py'}:rest"}}
    run(tiny, cut, "grpo", "prompts", save_every=2, **flags)
    shutil.rmtree(cut / "checkpoints/step-00000004")  # as if it had been killed before that was saved
    start({"output": str(cut), "resume": True}, None, Console(file=io.StringIO()))
    found, whole = parquet.read_samples(cut), parquet.read_samples(drawn)
    assert found is not None and found.equals(whole)


def test_every_step_draws_anew_and_the_greedy_completion_is_drawn_without_chance(tiny: str, tmp_path: Path) -> None:
    """One prompt, a model that does not move: ReMax asks for three samples and the greedy completion at each step."""
    seen = tmp_path / "seen.jsonl"
    (tmp_path / "rewards.py").write_text(
        "import json\n\n\ndef kept(completions, **columns):\n"
        f"    with open({str(seen)!r}, 'a') as file:\n        file.write(json.dumps(completions) + '\\n')\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    data = tmp_path / "one.jsonl"
    data.write_text(json.dumps({"prompt": "1+1=", "answer": "2"}) + "\n")
    flags = {"group": 3, "batch": 1, "steps": 2, "lr": 1e-30, "score": {"correct": f"{tmp_path / 'rewards.py'}:kept"}}
    run(tiny, tmp_path / "out", "remax", "prompts", data=str(data), **flags)
    first, second = (json.loads(line) for line in seen.read_text().splitlines())
    own = AutoTokenizer.from_pretrained(tiny)
    prompt = own("1+1=")["input_ids"]
    (best,) = Generate(tiny_model())([prompt], None, Sampling(frozenset([own.eos_token_id]), limit=6))
    assert first[3] == second[3] == own.decode(best.ids, skip_special_tokens=True)
    assert len({*first[:3], *second[:3], first[3]}) == 7


def test_pairs_keep_their_labels(tiny: str, tmp_path: Path) -> None:
    run(tiny, tmp_path / "out", "dpo", "preference", steps=3, keep_samples=2)
    found = parquet.read_samples(tmp_path / "out", ["step", "label", "logp_ref", "reward"])
    assert found is not None and found["step"].to_pylist() == [1] * 8 + [3] * 8
    assert found["label"].to_pylist() == [1.0, -1.0] * 8 and found["logp_ref"].null_count == 0
    run(tiny, tmp_path / "none", "dpo", "preference", steps=1, keep_samples=0)
    assert parquet.read_samples(tmp_path / "none") is None


def test_files_grow_to_their_size_and_a_later_one_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "ROWS", 5)
    one = samples.pa.table({"step": [0, 0], "x": [1.0, 2.0]})
    file = samples.SamplesFile(tmp_path, 0)
    for step in range(1, 8):
        file.add(one.set_column(0, "step", samples.pa.array([step, step])))
        if step == 5:
            file.flush()
    file.flush()
    assert [path.name for path in sorted((tmp_path / "samples").iterdir())] == [
        "00000001.parquet", "00000004.parquet", "00000007.parquet",
    ]  # fmt: skip
    samples.SamplesFile(tmp_path, 5)
    found = parquet.read_samples(tmp_path)
    assert found is not None and found["step"].to_pylist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_a_write_that_fails_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = samples.SamplesFile(tmp_path, 0)
    file.add(samples.pa.table({"step": [1], "x": [1.0]}))
    file.flush()

    def full(table: Any, sink: Any, **_: Any) -> None:
        sink.write(b"PAR1 half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    file.add(samples.pa.table({"step": [2], "x": [1.0]}))
    with pytest.raises(GroError, match="No space left on device"):
        file.flush()
    found = parquet.read_samples(tmp_path)
    assert found is not None and found["step"].to_pylist() == [1]
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["00000001.parquet"]


def test_parts_that_would_need_another_model_are_null(tiny: str, tmp_path: Path) -> None:
    run(tiny, tmp_path / "out", "sft", "demonstrations", steps=1)
    found = parquet.read_samples(tmp_path / "out")
    assert found is not None and found["logp_ref"].null_count == len(found) == 4
    assert torch.tensor(found["logp"].to_pylist()).lt(0).all() and all(found["demonstration"].to_pylist())
