"""`make gpu`: one thing that fails stops no other, and each leaves what it said."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

SPEC = spec_from_file_location("gpu_jobs", Path(__file__).parents[2] / "benchmarks/gpu.py")
assert SPEC is not None and SPEC.loader is not None
gpu: Any = module_from_spec(SPEC)
SPEC.loader.exec_module(gpu)


def test_what_fails_stops_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = [sys.executable, "-c"]
    chosen = {
        "good": [*python, "print('well [bold]done')"],
        "bad": [*python, "print('half'); raise SystemExit(3)"],
        "slow": [*python, "import time; time.sleep(600)"],
        "gone": [str(tmp_path / "no-such-program")],
        "last": [*python, "print('still here')"],
    }
    run = subprocess.run

    def limited(command: list[str], **given: Any) -> Any:
        """The limit is for the one that never ends: the others may take their time on a busy machine."""
        return run(command, **given | {"timeout": given["timeout"] if command is chosen["slow"] else None})

    monkeypatch.setattr(subprocess, "run", limited)
    console = Console(record=True, width=2000)  # no path is so long that a word would be broken
    assert not gpu.done(chosen, tmp_path / "out", console, limit=0.5)
    said = console.export_text()
    for word in ("well [bold]done", "half", "exit code 3", "timed out", "No such file", "still here"):
        assert word in said
    assert (tmp_path / "out/bad.txt").read_text() == "half\n"
    assert gpu.done({"good": chosen["good"]}, tmp_path / "out", console)


@pytest.mark.parametrize("quick", [False, True])
def test_every_job_is_a_file_that_is_there(quick: bool, tmp_path: Path) -> None:
    for command in gpu.jobs(tmp_path, quick=quick).values():
        assert command[0] == sys.executable
        assert command[1] == "-m" or Path(command[1]).is_file()
