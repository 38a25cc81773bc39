"""The folder of a run, read back: what it was told, what it measured, and how it stands. Needs no torch."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from grolang.language.diagnostics import GroError
from grolang.language.library import read
from grolang.language.source import Source
from grolang.runtime.figures import Best, best, key_metric
from grolang.runtime.settings import tomllib

FILE = "run.json"
Line = dict[str, float]


@dataclass(frozen=True)
class Record:
    """A run by its folder. What is missing (of a run that has just begun, or of an older version) is empty."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def info(self) -> dict[str, Any]:
        """run.json: method, command, times, status, data."""
        return _json(self.path / FILE)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """settings.toml, flat: `set.beta` is a parameter."""
        try:
            values = tomllib.loads((self.path / "settings.toml").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        found: dict[str, Any] = {}
        for name, value in values.items():
            found |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        return found

    @cached_property
    def versions(self) -> dict[str, Any]:
        return _json(self.path / "versions.json")

    @cached_property
    def metrics(self) -> list[Line]:
        """A line for each step."""
        return _lines(self.path / "metrics.jsonl")

    @cached_property
    def evaluations(self) -> list[Line]:
        """A line for each evaluation."""
        return _lines(self.path / "evaluations.jsonl")

    @cached_property
    def method(self) -> Source:
        """The text of the method, which finds what it extends in the same folder."""
        return read(self.path / "method.gro")

    @property
    def method_name(self) -> str:
        return str(self.info.get("method") or Path(str(self.settings.get("method", "?"))).stem)

    @property
    def steps(self) -> int:
        """Taken so far."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def planned(self) -> int:
        return int(self.settings.get("steps", 0))

    @property
    def key(self) -> str | None:
        """The held-out figure that the run is judged by."""
        names = self.evaluations[0] if self.evaluations else {}
        told = self.settings.get("eval_metric")
        return str(told) if told in names else key_metric(names)

    @property
    def best(self) -> Best | None:
        return None if self.key is None else best(self.evaluations, self.key)

    @property
    def began(self) -> str:
        """Date and time, as text."""
        return str(self.info.get("began", ""))[:16].replace("T", " ")

    @property
    def status(self) -> str:
        """running, finished, failed or interrupted: by Ctrl-C, or by an end of its process that it could not note."""
        noted = str(self.info.get("status", "finished" if (self.path / "evaluation.json").exists() else "interrupted"))
        return "interrupted" if noted == "running" and not is_alive(self.info.get("process", {})) else noted

    @property
    def repeat(self) -> str:
        """The command that runs it again, from this folder's own method and settings."""
        return (
            f"grolang run {self.path / 'method.gro'} --config {self.path / 'settings.toml'} --output {self.path}-again"
        )


def curve(lines: Iterable[Line], name: str) -> list[tuple[float, float]]:
    """(step, value) of a figure, where lines have it."""
    return [(line["step"], line[name]) for line in lines if name in line]


def process() -> dict[str, Any]:
    """What tells this process from every other one, also from a later one with the same number."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "created": _created(psutil.Process())}


def _created(found: psutil.Process) -> float:
    """Seconds since the machine started: a clock that is set meanwhile makes no other process of this one."""
    return float(found.create_time() - psutil.boot_time())


def is_alive(noted: Mapping[str, Any]) -> bool:
    """Whether a process is there still. One on another host cannot be asked and counts as alive.

    A zombie is dead, and waits for a parent that, as in many containers, never asks.
    """
    if noted.get("host") != socket.gethostname():
        return bool(noted)
    try:
        found = psutil.Process(int(noted["pid"]))
        same = abs(_created(found) - float(noted["created"])) < 1
        return bool(same and found.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, KeyError, ValueError):
        return False


def open_record(path: str | Path) -> Record:
    """The run of a folder; GroError where there is none."""
    if not is_run(Path(path)):
        help = "name a run's folder, such as runs/kto-1; `grolang runs` lists them"
        raise GroError.plain(f"{path} holds no run", help=help, code="E602")
    if not (Path(path) / "method.gro").is_file():
        message = f"{path} holds a reward model, which has no method to show"
        raise GroError.plain(message, help="name the folder of a `grolang run`", code="E602")
    return Record(Path(path))


def is_run(path: Path) -> bool:
    """Whether it is the folder of a run, or of the training of a reward model, which has no method."""
    return (path / "settings.toml").is_file() and any((path / name).is_file() for name in ("method.gro", FILE))


def runs_below(folder: Path) -> list[Record]:
    """Every run in a folder and the folders below it, the oldest first."""
    return sorted(map(Record, _walk(folder)), key=lambda record: (record.began, str(record.path)))


def _walk(folder: Path) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return
    for path in below:
        yield from _walk(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[Line]:
    """The whole lines of a file of JSON objects; a last one that is being written is left out, and so are nulls."""
    found = []
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and "step" in values:
            found.append({name: value for name, value in values.items() if value is not None})
    return found


def as_json(value: object) -> str:
    """For people to read."""
    return json.dumps(value, indent=2) + "\n"


@contextmanager
def writing(path: Path, help: str = "") -> Iterator[None]:
    """What the system says against it is an error that names the file."""
    try:
        yield
    except OSError as error:
        raise GroError.plain(f"cannot write {path}: {error.strerror}", help=help) from error


@contextmanager
def replaced(path: Path, help: str = "") -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once all of it is there: written beside, forced to the disk, renamed."""
    fresh = path.with_name(f".{path.name}.new")
    with writing(path, help):
        try:
            with fresh.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a small file as a whole."""
    with replaced(path) as file:
        file.write(text.encode())
