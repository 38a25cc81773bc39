"""The training loop: rows, scores, samples, the exact optimizer step, and what a run leaves behind."""

from __future__ import annotations

from grolang.runtime.loop import Outcome, train
from grolang.runtime.settings import DEFAULTS, RunSettings
from grolang.runtime.start import resolve, start

__all__ = ["DEFAULTS", "Outcome", "RunSettings", "resolve", "start", "train"]
