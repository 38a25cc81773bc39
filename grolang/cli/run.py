"""`grolang run`: train a model with a method."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from grolang.cli.elsewhere import Command as Command
from grolang.cli.options import assignments, numbers
from grolang.runtime.settings import PANELS, RunSettings, flag

CONFIG = "TOML file of settings under the flags' names; flags override it."


def run(file: str | None, config: Path | None, set: list[str] | None, score: list[str] | None, **flags: Any) -> None:
    """Train a model with a method, and show it before and after."""
    flags |= {
        "method": file,
        "set": numbers(set),
        "score": assignments(score, "--score"),
    }
    from grolang.runtime.launch import start  # torch from here on: `--help` should not wait

    outcome = start(said(flags), config)
    if outcome.interrupted:
        raise typer.Exit(130)


def said(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that the user gave."""
    unsaid: tuple[object, ...] = (None, {}, [])
    return {name: value for name, value in flags.items() if value not in unsaid and value is not False}


def _parameters() -> dict[str, inspect.Parameter]:
    """The method, the file of settings, and a flag for each setting: left out unless the user gives it."""
    file = parameter("file", str | None, typer.Argument(None, help="A .gro file or a built-in method."))
    return {"file": file} | flags([name for name in RunSettings.model_fields if name != "method"])


def flags(names: Collection[str]) -> dict[str, inspect.Parameter]:
    """A flag for each of these settings, in the order of the panels, and the file of settings."""
    made = {}
    for panel in PANELS:
        for name in panel.__annotations__:
            if name in names:
                field = panel.model_fields[name]
                kind, unsaid = _kind(field)
                option = typer.Option(unsaid, flag(name), help=field.description, rich_help_panel=panel.__doc__)
                made[name] = parameter(name, kind, option)
    option = typer.Option(None, "--config", help=CONFIG, rich_help_panel=PANELS[-1].__doc__)
    return made | {"config": parameter("config", Path | None, option)}


def parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _kind(field: FieldInfo) -> tuple[Any, Any]:
    """What typer reads for a field, and what it gives where the flag is left out."""
    kind = field.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if kind is bool:
        return bool, False
    if get_origin(kind) in (dict, tuple):
        return list[str] | None, None
    return (kind if kind in (int, float) else str) | None, None


run.__signature__ = inspect.Signature(list(_parameters().values()))  # type: ignore[attr-defined]  # typer reads it
run.__annotations__ = {name: parameter.annotation for name, parameter in _parameters().items()}
