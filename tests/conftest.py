"""Hypothesis: no deadline (the machine is shared), and in CI the same examples on every run."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

_QUIET = list(HealthCheck)
settings.register_profile("local", deadline=None, max_examples=25, suppress_health_check=_QUIET)
settings.register_profile("ci", deadline=None, max_examples=25, suppress_health_check=_QUIET, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=500, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "local"))

torch.set_num_threads(1)

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported

collect_ignore_glob = ["golden/bad/*"]  # programs that do not check, on purpose


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden messages anew; such a run fails")
