"""The pages of docs/howto whose commands need nothing but the embedded model are run, command by command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from . import tables
from .test_manual import blocks, put_files

HOWTO = tables.DOCS / "howto"
PAGES = ("compare", "lora", "resume", "several-gpus")
OWN = ("my-model",)  # of the reader


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shell, with the page's files; each command ends with the exit code that the page promises."""
    monkeypatch.chdir(tmp_path)
    page = HOWTO / f"{name}.md"
    put_files(page)
    for command, body in (("grolang", "grolang"), ("accelerate", "accelerate.commands.accelerate_cli")):
        shim = tmp_path / "bin" / command
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m {body} "$@"\n')
        shim.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["GROLANG_CACHE"] = str(tmp_path / "cache")
    for line in [line for block in blocks(page, "sh") for line in block.text.splitlines() if line.strip()]:
        if any(word in line for word in OWN):
            continue
        promised = re.search(r"# exit code (\d+)", line)
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=280)
        code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        assert code == (int(promised[1]) if promised else 0), f"{line}\n{done.stdout[-1500:]}{done.stderr[-3000:]}"
    CHECKS.get(name, lambda folder: None)(tmp_path)


def same_run(folder: Path) -> None:
    lines = [(folder / "runs" / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    for one, two in zip(*(map(json.loads, each) for each in lines), strict=True):
        assert two == pytest.approx(one | {"seconds": two["seconds"]}, rel=1e-3, abs=1e-5)
    assert json.loads((folder / "runs/two/run.json").read_text())["processes"] == 2


def went_on(folder: Path) -> None:
    assert len((folder / "runs/night/metrics.jsonl").read_text().splitlines()) >= 4
    assert json.loads((folder / "runs/night/run.json").read_text())["resumed"]
    assert (folder / "runs/spread/report.html").is_file()


CHECKS = {"several-gpus": same_run, "resume": went_on}
