"""The same tests on every machine: what its environment says changes none, and Hypothesis draws the same examples.

`HYPOTHESIS_PROFILE=random` draws others in each run, and `thorough` many. No deadline: the machine is shared.
"""

from __future__ import annotations

import os
import tempfile

import pytest
import torch
from hypothesis import HealthCheck, settings

_QUIET = list(HealthCheck)
settings.register_profile("same", deadline=None, max_examples=25, suppress_health_check=_QUIET, derandomize=True)
settings.register_profile("random", deadline=None, max_examples=25, suppress_health_check=_QUIET, derandomize=False)
settings.register_profile("thorough", settings.get_profile("random"), max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

torch.set_num_threads(1)

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported

_TERMINAL = ("COLUMNS", "LINES", "TERMINAL_WIDTH", "TERM", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
_COLOUR = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "PY_COLORS", "GITHUB_ACTIONS")
for _name in (*_TERMINAL, *_COLOUR, "GROLANG_DEBUG"):  # that Rich, Typer and grolang read
    os.environ.pop(_name, None)
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # the servers of the tests are on this machine
_cache = tempfile.TemporaryDirectory()  # nothing of the user's is read or written
os.environ["GROLANG_CACHE"] = _cache.name
os.environ["HF_HOME"] = f"{_cache.name}/huggingface"  # where datasets keeps each file that it has read

collect_ignore_glob = ["golden/bad/*"]  # programs that do not check, on purpose


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden messages anew; such a run fails")
