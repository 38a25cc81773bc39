"""The training loop: rows, scores, samples, the exact optimizer step, and what a run leaves behind.

Importing this package imports no torch; the first use of a name that needs it does.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from grolang.runtime.settings import DEFAULTS, RunSettings

if TYPE_CHECKING:
    from grolang.runtime.launch import resolve, start
    from grolang.runtime.method_training import train
    from grolang.runtime.output import Outcome

NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""What keeps the packages below from telling their makers of a run; read when they are imported. Yours if set."""

for _name, _value in NO_TELEMETRY.items():
    os.environ.setdefault(_name, _value)

__all__ = ["DEFAULTS", "Outcome", "RunSettings", "resolve", "start", "train"]

_NEEDS_TORCH = {"Outcome": "output", "resolve": "launch", "start": "launch", "train": "method_training"}


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        return getattr(import_module(f"grolang.runtime.{_NEEDS_TORCH[name]}"), name)
    raise AttributeError(f"module 'grolang.runtime' has no attribute {name!r}")
