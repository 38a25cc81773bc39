"""From flags and a TOML file to a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

import grolang
from grolang.language.diagnostics import GroError
from grolang.runtime.method_training import train
from grolang.runtime.output import Outcome
from grolang.runtime.progress import Screen
from grolang.runtime.settings import RunSettings, Settings, read_config, read_settings


def start(flags: Settings, config: str | Path | None = None, console: Console | None = None) -> Outcome:
    """Train as the flags and the file say. What a flag says overrides the file, and the file the defaults.

    A run that is resumed takes the settings that it began with; flags may still change them (more steps).
    """
    method, settings = resolve(flags, config)
    return train(method, settings, console or Screen())


def resolve(flags: Settings, config: str | Path | None = None) -> tuple[grolang.Method, RunSettings]:
    """The method with its parameters set, and every setting."""
    given = from_file(flags, config)
    for name, value in flags.items():
        table = given.get(name)
        given[name] = {**table, **value} if isinstance(table, dict) and isinstance(value, dict) else value
    if "steps" in flags:
        if flags.get("epochs"):
            message = "--steps and --epochs both say how long the run is"
            raise GroError.plain(message, help="give one of the two")
        given["epochs"] = 0  # steps count, whatever the file or the run that is resumed says
    method = _method(given)
    return method, read_settings(_kind(method, given), given)


def from_file(flags: Settings, config: str | Path | None) -> dict[str, Any]:
    """What a TOML file says: the one that is named, else that of a run that is resumed."""
    if config is None and flags.get("resume"):
        config = settings_of(flags.get("output"))
    return read_config(None if config is None else str(config))


def _method(given: Settings) -> grolang.Method:
    if "method" not in given:
        raise GroError.plain("no method was given", help="write `grolang run METHOD`, such as `grolang run dpo`")
    if not isinstance(given["method"], str):
        raise GroError.plain(f"`method` is {given['method']!r}", help='write a name or a path: method = "dpo"')
    parameters = given.get("set", {})
    if not isinstance(parameters, dict):
        raise GroError.plain(f"`set` is {parameters!r}", help="write a table: [set], then `beta = 0.2` below it")
    return grolang.load(given["method"], **parameters)


def _kind(method: grolang.Method, given: Settings) -> str:
    """The row of DEFAULTS that a run of this method starts from; a group that it cannot have is an error."""
    group = given.get("group", method.group)
    if method.data[0] != "prompts":
        if "group" in given:
            help = "leave it out: the rows are the completions"
            raise GroError.plain(f"--group: `{method.name}` draws no completions", help=help)
        return method.data[0]
    if group == 1 and method.data == ("prompts",) and method.needs.others:
        message = f"a group of one: `{method.name}` reduces `over others`, and one completion is drawn for each prompt"
        raise GroError.plain(message, help="give --group 2 or more", code="E903")
    return "prompts in groups" if isinstance(group, int) and group > 1 else "prompts"


def settings_of(output: str | None) -> Path:
    """The settings that the run of a folder began with."""
    if output is None:
        raise GroError.plain("--resume continues a run, and no run was named", help="add --output FOLDER")
    saved = Path(output) / "settings.toml"
    if not saved.is_file():
        raise GroError.plain(f"{output} holds no run to resume", help="leave out --resume, or check --output")
    return saved
