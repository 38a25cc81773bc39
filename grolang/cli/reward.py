"""`grolang reward train`: a reward model from pairs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

import typer

from grolang.cli.run import flags, parameter, said
from grolang.runtime.settings import REWARD


def reward(action: Literal["train"], config: Path | None, **given: Any) -> None:
    """Train a reward model on pairs; its folder is what `--score NAME=FOLDER` takes."""
    from grolang.runtime.reward_training import start  # torch from here on: `--help` should not wait

    if start(said(given), config).interrupted:
        raise typer.Exit(130)


_ACTION = parameter("action", Literal["train"], typer.Argument(help="train"))
_PARAMETERS = {"action": _ACTION, **flags(REWARD)}
reward.__signature__ = inspect.Signature(list(_PARAMETERS.values()))  # type: ignore[attr-defined]  # typer reads it
reward.__annotations__ = {name: one.annotation for name, one in _PARAMETERS.items()}
