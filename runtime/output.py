"""The folder of a run, and what stands in it so that the run can be repeated."""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import get_num_threads

from grolang import Method
from grolang.language.diagnostics import GroError
from grolang.runtime import checkpoints
from grolang.runtime.figures import Figures
from grolang.runtime.parts import data_parts
from grolang.runtime.processes import of_all
from grolang.runtime.record import FILE, Record, as_json, process, write_text
from grolang.runtime.settings import RunSettings, to_toml

PACKAGES = ("grolang", "torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers")
LENGTH = ("steps", "epochs", "output")  # of a run that goes on: nothing to point out


@dataclass(frozen=True)
class Outcome:
    """What a run did: its folder, the steps it has taken, the held-out figures, and whether it was interrupted."""

    output: Path
    steps: int
    before: Figures
    after: Figures
    interrupted: bool = False


def open_output(method: Method, settings: RunSettings, accelerator: Accelerator) -> Path:
    """The folder of the run, as `open_folder` gives it; a run is resumed with its own method."""
    output = open_folder(method.name, settings, accelerator)
    if settings.resume:
        for name, text in method_texts(method).items():
            if (output / name).exists() and (output / name).read_text(encoding="utf-8") != text:
                raise GroError.plain(f"the method is not the one of {output}", help=f"run {output / 'method.gro'}")
    accelerator.wait_for_everyone()
    return output


def open_folder(name: str, settings: RunSettings, accelerator: Accelerator) -> Path:
    """The folder of a run, made if it is not there, the same in every process; runs/NAME-N where none is said."""
    names = [settings.output or next_name(name)] if accelerator.is_main_process else [""]
    output = Path(str(broadcast_object_list(names)[0]))
    of_all(accelerator, lambda: _check_folder(output, settings) if accelerator.is_main_process else None)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make the folder {output}: {error.strerror}"
        raise GroError.plain(message, help="give another --output") from error
    accelerator.wait_for_everyone()
    return output


def _check_folder(output: Path, settings: RunSettings) -> None:
    """Raise GroError where a run is there and is not to be resumed, or cannot be."""
    saved, begun = bool(checkpoints.kept(output)), (output / "metrics.jsonl").exists()
    anew = f"remove {output}, or give another --output"  # of a run that ended before it had a checkpoint
    if Record(output).status == "running":
        number = Record(output).info["process"]["pid"]
        help = "wait for it, or stop it first" if settings.resume else "give another --output"
        raise GroError.plain(f"{output} is being run, by process {number}", help=help)
    if settings.resume and not saved:
        help = f"leave out --resume; {anew}" if begun else "leave out --resume"
        raise GroError.plain(f"{output} holds no checkpoint to resume from", help=help)
    if begun and not saved:
        raise GroError.plain(f"{output} holds a run that has no checkpoint yet", help=anew)
    if begun and not settings.resume:
        raise GroError.plain(f"{output} holds a run already", help="add --resume, or give another --output")


def next_name(name: str) -> str:
    """The first folder runs/NAME-N that is not there yet."""
    numbered = (Path("runs", f"{name}-{number}") for number in count(1))
    return str(next(path for path in numbered if not path.exists()))


def describe(output: Path, method: Method, settings: RunSettings, accelerator: Accelerator) -> list[str]:
    """Write what is needed to repeat the run: texts of the method, settings, versions, score files, data, command.

    A run that goes on notes that it does. Gives the data files that are not those that the run began with.
    """
    for name, text in method_texts(method).items():
        write_text(output / name, text)
    for name, text in score_texts(settings).items():
        (output / "scores").mkdir(exist_ok=True)
        write_text(output / "scores" / name, text)
    if settings.chat_template is not None:
        write_text(output / "chat_template.jinja", Path(settings.chat_template).read_text(encoding="utf-8"))
    write_text(output / "settings.toml", to_toml(settings))
    return begin(output, method.name, fingerprints(method, settings), accelerator)


def changed(output: Path, settings: RunSettings) -> list[str]:
    """The settings that are not those of the folder's run so far, `beta = 0.3 (0.2 before)`; how long it is apart."""
    saved = output / "settings.toml"
    if not (settings.resume and saved.is_file()):
        return []
    before, now = (_lines(text) for text in (saved.read_text(encoding="utf-8"), to_toml(settings)))
    names = [name for name in now | before if name not in LENGTH and now.get(name) != before.get(name)]
    said = [(name.strip('"'), now.get(name, "none"), before.get(name, "none")) for name in names]
    return [f"{name} = {value} ({old} before)" for name, value, old in said]


def _lines(toml: str) -> dict[str, str]:
    pairs = (line.partition(" = ") for line in toml.splitlines())
    return {name: value for name, sign, value in pairs if sign}


def begin(output: Path, name: str, data: Mapping[str, Mapping[str, Any]], accelerator: Accelerator) -> list[str]:
    """Note versions, command, device and data of a run that begins, or goes on; gives the data files that differ."""
    before, now = Record(output).info, _now()
    versions = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a checkout on the path, not installed
            continue
    write_text(output / "versions.json", as_json(versions))
    first: dict[str, Any] = {
        "id": uuid4().hex,
        "method": name,
        "began": now,
        "command": command(),
        "folder": str(Path.cwd()),
        "data": data,
        "resumed": [],
    }
    again = {"resumed": [*before["resumed"], {"at": now, "command": command()}]} if "resumed" in before else {}
    here: dict[str, Any] = {
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": get_num_threads(),
    }
    here |= {"status": "running", "process": process(), "error": None, "ended": None}
    note(output, **(first | before | again | here))
    return [name for name, found in data.items() if before.get("data", data).get(name) not in (found, None)]


def note(output: Path, **values: Any) -> None:
    """Put values into the run's record, replaced as a whole."""
    write_text(output / FILE, as_json(Record(output).info | values))


def noted(output: Path, main: bool, work: Callable[[], Outcome]) -> Outcome:
    """What a run gives; how it ended goes to its record."""
    found: dict[str, Any] = {}
    try:
        outcome = work()
        found = {"status": "interrupted" if outcome.interrupted else "finished"}
        return outcome
    except KeyboardInterrupt:
        found = {"status": "interrupted"}
        raise
    except BaseException as error:
        found = {"status": "failed", "error": str(error)}
        raise
    finally:
        if main:
            with suppress(GroError, OSError):  # the disk may be what failed
                note(output, **found, ended=_now())


def method_texts(method: Method) -> dict[str, str]:
    """The method as `method.gro`, and what it extends beside it under its own name, where it is looked up first."""
    texts = {f"{Path(name).stem}.gro": source.text for name, source in method.sources.items() if name != method.path}
    return texts | {"method.gro": method.text}


def score_texts(settings: RunSettings) -> dict[str, str]:
    """The files of score functions by their names, which are numbered where several folders have the same."""
    texts: dict[str, str] = {}
    for path in dict.fromkeys(Path(source.rpartition(":")[0]) for source in settings.score.values()):
        if path.suffix == ".py" and path.is_file():
            numbered = (f"{path.stem}-{number}.py" for number in count(2))
            name = path.name if path.name not in texts else next(one for one in numbered if one not in texts)
            texts[name] = path.read_text(encoding="utf-8")
    return texts


def command() -> str | None:
    """What was typed; None where the run was started from Python."""
    program, *words = sys.argv
    return shlex.join(["grolang", *words]) if Path(program).name in ("grolang", "__main__.py") else None


def fingerprints(method: Method, settings: RunSettings) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every data file; of a name on the hub nothing is known here."""
    names = [part.name for part in data_parts(method.data, settings)]
    return {name: fingerprint(Path(name)) for name in (*names, settings.eval_data) if name}


def fingerprint(path: Path) -> dict[str, Any]:
    """SHA-256 and size of a file, or of the files of a folder together; nothing where there is none."""
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    digest, size = hashlib.sha256(), 0
    for one in files if path.exists() else []:
        with one.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
                size += len(part)
    return {"sha256": digest.hexdigest(), "bytes": size} if path.exists() else {}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
