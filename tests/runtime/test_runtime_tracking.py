"""Trackers: what tensorboard is told is what the run's own files say; one that fails is switched off."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import rows_of
from rich.console import Console

from grolang import GroError
from grolang.runtime import NO_TELEMETRY, RunSettings, checkpoints, start, tracking
from grolang.runtime.metrics import MetricsFile


def run(tiny: str, folder: Path, **flags: Any) -> str:
    """What the run says."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of("preference")))
    given = {
        "model": tiny, "data": str(folder / "rows.jsonl"), "method": "dpo", "output": str(folder / "out"),
        "batch": 4, "steps": 3, "eval_every": 2,
    }  # fmt: skip
    said = io.StringIO()
    start(given | flags, None, Console(file=said))
    return said.getvalue()


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"out/{name}.jsonl").read_text().splitlines()]


def test_tensorboard_has_every_figure_of_the_run(tiny: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tiny, tmp_path)
    events = EventAccumulator(str(tmp_path / "out/tensorboard"))
    events.Reload()
    for prefix, name in (("train", "metrics"), ("eval", "evaluations")):
        found = lines(tmp_path, name)
        for figure in found[0].keys() - {"step"}:
            scalars = events.Scalars(f"{prefix}/{figure}")
            assert [event.step for event in scalars] == [line["step"] for line in found]
            assert [event.value for event in scalars] == pytest.approx([line[figure] for line in found], rel=1e-6)
    assert "train/rewards/margins" in events.Tags()["scalars"]


def test_none_leaves_nothing(tiny: str, tmp_path: Path) -> None:
    run(tiny, tmp_path, track="none", steps=1, eval_every=0)
    assert not (tmp_path / "out/tensorboard").exists()


def test_a_tracker_that_fails_on_the_way_is_off_and_the_run_goes_on(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Flaky(tracking.GeneralTracker):
        name = "mlflow"
        requires_logging_directory = False
        tracker = None

        def __init__(self, **given: Any) -> None:
            calls.append(given)

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            calls.append(values)

        def log(self, values: dict[str, Any], step: int | None = None) -> None:
            calls.append({"step": step})
            if step == 2:
                raise ConnectionError("the server is gone")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Flaky)
    monkeypatch.setattr(tracking, "_installed", lambda name: True)
    said = run(tiny, tmp_path, track="mlflow", set={"beta": 0.3})
    assert "the tracker mlflow failed and is off from now on; metrics.jsonl goes on: the server is gone" in said
    assert [call["step"] for call in calls[2:]] == [0, 1, 2] and len(lines(tmp_path, "metrics")) == 3
    assert calls[0] == {"experiment_name": "grolang", "run_name": "out"} and calls[1]["set.beta"] == 0.3


def test_a_tracker_whose_own_thread_fails_says_so_in_a_line(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Tensorboard writes in a thread: a full disk is met there."""
    from tensorboard.summary.writer import record_writer

    whole, written = record_writer.RecordWriter.write, list[int]()

    def full(writer: Any, data: bytes) -> None:
        written.append(len(data))
        if len(written) > 20:
            raise OSError(28, "No space left on device")
        whole(writer, data)

    monkeypatch.setattr(record_writer.RecordWriter, "write", full)
    before = threading.excepthook
    said = run(tiny, tmp_path, track="tensorboard")
    assert said.count("the tracker tensorboard failed and is off from now on") == 1 and "No space left" in said
    assert "Traceback" not in capfd.readouterr().err and threading.excepthook is before


@pytest.mark.parametrize(("flags", "status"), [({}, "FINISHED"), ({"lr": 1e30, "max_grad_norm": 1e30}, "FAILED")])
def test_mlflow_says_how_a_run_ended(
    flags: dict[str, Any], status: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with nullcontext() if status == "FINISHED" else pytest.raises(GroError, match="E902"):
        run(tiny, tmp_path, track="mlflow", **flags)
    (found,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert found.info.status == status


@pytest.mark.parametrize("status", ["finished", "failed", "interrupted"])
def test_a_tracker_is_told_how_the_run_ended(status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Any] = []
    told = {"finished": 0, "failed": 1, "interrupted": 0}, {"failed": "FAILED", "interrupted": "KILLED"}

    class Opened(tracking.GeneralTracker):
        name = "wandb"
        requires_logging_directory = False
        tracker = SimpleNamespace(finish=lambda exit_code: ends.append(exit_code))

        def __init__(self, **_: Any) -> None:
            pass

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            pass

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(end_run=ends.append))
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, Opened)
    settings = RunSettings(method="dpo", steps=1, batch=1, lr=1.0)
    tracking.Trackers(["wandb", "mlflow"], tmp_path, settings, 0, print).close(status)
    assert ends == [told[0][status], told[1].get(status, "FINISHED")]


def test_a_run_whose_model_cannot_be_saved_has_failed(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[str] = []

    def full(folder: Path, write: Any) -> None:
        if folder.name == "model":
            raise GroError.plain(f"cannot save to {folder}")

    def close(self: tracking.Trackers, status: str) -> None:
        ends.append(status)
        closed(self, status)

    closed = tracking.Trackers.close
    monkeypatch.setattr(tracking.Trackers, "close", close)
    monkeypatch.setattr(checkpoints, "replace_folder", full)
    with pytest.raises(GroError, match="cannot save to"):
        run(tiny, tmp_path, track="none", steps=1, eval_every=0)
    assert ends == ["failed"]


@pytest.mark.parametrize("file", ["metrics.jsonl", "evaluations.jsonl"])
def test_a_run_whose_last_lines_cannot_be_written_has_failed(
    file: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trackers are told so, though every step went well."""
    ends: list[str] = []

    def full(self: MetricsFile) -> None:
        self.file.close()
        if self.path.name == file:
            raise GroError.plain(f"cannot write {file}")

    monkeypatch.setattr(tracking.Trackers, "close", lambda self, status: ends.append(status))
    monkeypatch.setattr(MetricsFile, "close", full)
    with pytest.raises(GroError, match=f"cannot write {file}"):
        run(tiny, tmp_path, track="none", steps=1, eval_every=0)
    assert ends == ["failed"]


def test_a_tracker_that_cannot_start_is_told_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("No API key\nconfigured")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", refuse)
    settings = RunSettings(method="dpo", steps=1, batch=1, lr=1.0)
    with pytest.raises(GroError, match="the tracker wandb cannot be started: No API key configured") as caught:
        tracking.Trackers(["wandb"], tmp_path, settings, 0, print)
    assert "WANDB_MODE=offline" in str(caught.value)


def test_a_package_that_is_missing_is_named_with_its_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_installed", lambda name: False)
    assert tracking.chosen([]) == [] and tracking.chosen(["none"]) == []
    with pytest.raises(GroError, match="--track trackio: the package trackio is not installed") as caught:
        tracking.chosen(["trackio"])
    assert "pip install trackio" in str(caught.value)
    monkeypatch.setattr(tracking, "_installed", lambda name: True)
    assert tracking.chosen([]) == ["tensorboard"] and tracking.chosen(["wandb", "wandb"]) == ["wandb"]


def test_an_unknown_tracker_is_refused_by_its_flag(tmp_path: Path) -> None:
    with pytest.raises(GroError, match="--track wandbb: input should be 'tensorboard', 'wandb'"):
        start({"method": "dpo", "track": ("wandbb",)})


def test_every_tracker_is_one_that_accelerate_has() -> None:
    assert set(tracking.KINDS) <= set(tracking.LOGGER_TYPE_TO_CLASS)


def test_no_package_may_tell_its_makers_of_a_run() -> None:
    code = "import sys, grolang.runtime; print('huggingface_hub' in sys.modules)\n"
    code += "from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    clean = {name: value for name, value in os.environ.items() if name not in NO_TELEMETRY}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
