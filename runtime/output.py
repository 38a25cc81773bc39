"""The folder of a run, and what stands in it so that the run can be repeated."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from grolang import Method
from grolang.language.diagnostics import GroError
from grolang.runtime import checkpoints
from grolang.runtime.settings import RunSettings, to_toml

PACKAGES = ("grolang", "torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers")


def open_output(method: Method, settings: RunSettings, accelerator: Accelerator) -> Path:
    """The folder of the run, the same in every process. A folder that holds a run is used only to resume it."""
    names = [settings.output or _next_name(method.name)] if accelerator.is_main_process else [""]
    output = Path(str(broadcast_object_list(names)[0]))
    if settings.resume:
        if not (output / checkpoints.FOLDER).is_dir():
            raise GroError.plain(f"{output} holds no checkpoint to resume from", help="leave out --resume")
        if (output / "method.gro").read_text(encoding="utf-8") != method.text:
            raise GroError.plain(f"the method is not the one of {output}", help=f"run {output / 'method.gro'}")
    elif (output / "metrics.jsonl").exists() and accelerator.is_main_process:
        raise GroError.plain(f"{output} holds a run already", help="add --resume, or give another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GroError.plain(
            f"cannot make the folder {output}: {error.strerror}", help="give another --output"
        ) from error
    accelerator.wait_for_everyone()
    return output


def _next_name(name: str) -> str:
    number = 1
    while Path("runs", f"{name}-{number}").exists():
        number += 1
    return str(Path("runs", f"{name}-{number}"))


def describe(output: Path, method: Method, settings: RunSettings) -> None:
    """What is needed to repeat the run: the method's text, every setting, the versions."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a checkout on the path, not installed
            continue
    write_text(output / "method.gro", method.text)
    write_text(output / "settings.toml", to_toml(settings))
    write_text(output / "versions.json", as_json(versions))


def as_json(value: object) -> str:
    """For people to read."""
    return json.dumps(value, indent=2) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a small file; GroError where that fails."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GroError.plain(f"cannot write {path}: {error.strerror}") from error
