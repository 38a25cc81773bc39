"""Figures sent to trackers as well, through accelerate's: `train/NAME` for a step, `eval/NAME` for an evaluation.

The run's own files hold everything; so a tracker that fails on the way is switched off, and the run goes on.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from transformers.utils.generic import flatten_dict

from grolang.language.diagnostics import GroError, cause
from grolang.runtime.figures import Figures
from grolang.runtime.record import Record
from grolang.runtime.settings import RunSettings

PROJECT = "grolang"


def _finish(tracker: GeneralTracker, status: str) -> None:
    tracker.finish()


def _end_of_wandb(tracker: GeneralTracker, status: str) -> None:
    tracker.tracker.finish(exit_code=int(status == "failed"))


def _end_of_mlflow(tracker: GeneralTracker, status: str) -> None:
    from mlflow import end_run

    end_run({"failed": "FAILED", "interrupted": "KILLED"}.get(status, "FINISHED"))


@dataclass(frozen=True)
class Kind:
    """How a tracker is opened and closed.

    `given` is what its class gets, from a run's name, folder and first step. `end` is told how the run ended, in the
    words of `Record.status`, which trackers with such words pass on. `offline` helps where it cannot start.
    """

    given: Callable[[str, Path, int], dict[str, Any]]
    end: Callable[[GeneralTracker, str], None] = _finish
    offline: str = ""


KINDS: dict[str, Kind] = {
    "tensorboard": Kind(
        lambda name, output, start: {
            "run_name": "tensorboard",
            "logging_dir": str(output),
            "purge_step": start + 1 if start else None,  # what a run that was killed has written past its checkpoint
        }
    ),
    "wandb": Kind(
        lambda name, output, start: {
            "run_name": os.environ.get("WANDB_PROJECT", PROJECT),
            "name": name,
            "dir": str(output),
            "id": os.environ.get("WANDB_RUN_ID", Record(output).info.get("id")),
            "resume": "allow",
        },
        _end_of_wandb,
        offline="; WANDB_MODE=offline keeps everything in the run's folder",
    ),
    "trackio": Kind(lambda name, output, start: {"run_name": PROJECT, "name": name, "resume": "allow"}),
    "mlflow": Kind(
        lambda name, output, start: {"experiment_name": PROJECT, "run_name": name},
        _end_of_mlflow,
        offline="; MLFLOW_TRACKING_URI says where to",
    ),
}


def chosen(asked: Sequence[str]) -> list[str]:
    """The trackers of a run: those asked for; else tensorboard where it is installed.

    Raises GroError for one whose package is missing.
    """
    if not asked:
        return ["tensorboard"] if _installed("tensorboard") else []
    names = [name for name in dict.fromkeys(asked) if name != "none"]
    for name in names:
        if not _installed(name):
            help = f"pip install {name}, or leave --track {name} out"
            raise GroError.plain(f"--track {name}: the package {name} is not installed", help=help)
    return names


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


class Trackers:
    """The open trackers of a run, in the main process."""

    def __init__(
        self, names: Sequence[str], output: Path, settings: RunSettings, start: int, say: Callable[[str], None]
    ) -> None:
        self.say = say
        self.hook, threading.excepthook = threading.excepthook, self._of_thread
        self.open: dict[str, GeneralTracker] = {}
        for name in names:
            kind = KINDS[name]
            try:
                tracker = LOGGER_TYPE_TO_CLASS[name](**kind.given(output.name, output, start))
                if hasattr(tracker, "start"):  # accelerate 1.8 and later
                    tracker.start()
                _describe(tracker, settings)
            except Exception as error:  # whatever its package raises, down to what its server answers
                help = f"mend that, or leave --track {name} out{kind.offline}"
                raise GroError.plain(f"the tracker {name} cannot be started: {cause(error)}", help=help) from error
            self.open[name] = tracker

    def log(self, prefix: str, step: int, figures: Figures) -> None:
        """Send the figures of a step under `prefix/NAME`."""
        values = {f"{prefix}/{name}": value for name, value in figures.items() if name != "step" and _finite(value)}
        self._each(lambda name, tracker: tracker.log(values, step=step))

    def close(self, status: str = "finished") -> None:
        """Let every tracker finish what it has, of a run that ended so."""
        self._each(lambda name, tracker: KINDS[name].end(tracker, status))
        self.open = {}
        threading.excepthook = self.hook

    def _of_thread(self, raised: Any) -> None:
        """What a tracker's own thread raises shows in the next call of the tracker, which then says so once."""
        if type(raised.thread).__module__.partition(".")[0] not in KINDS:
            self.hook(raised)

    def _each(self, do: Callable[[str, GeneralTracker], None]) -> None:
        for name, tracker in list(self.open.items()):
            try:
                do(name, tracker)
            except Exception as error:  # whatever a tracker raises
                del self.open[name]
                self.say(f"the tracker {name} failed and is off from now on; metrics.jsonl goes on: {cause(error)}")


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _describe(tracker: GeneralTracker, settings: RunSettings) -> None:
    """The settings, flat. Tensorboard would make a run of its own of them, so that it gets them as a text."""
    told = flatten_dict(settings.model_dump(exclude={"resume"}, exclude_none=True))
    plain = (bool, int, float, str)
    flat = {name: one if isinstance(one, plain) else str(one) for name, one in told.items() if one != {}}
    if tracker.name == "tensorboard":
        tracker.log({"settings": "\n".join(f"    {name} = {value}" for name, value in flat.items())}, step=0)
    else:
        tracker.store_init_configuration(flat)
