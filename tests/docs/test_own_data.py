"""The page on data is run from top to bottom: its files are written, its runs made, its errors read."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from grolang.cli import main

from .tables import DOCS
from .test_manual import blocks, put_files

PAGE = DOCS / "howto" / "own-data.md"
QUICK = ["--steps", "1", "--batch", "4", "--max-completion", "8", "--eval-rows", "0", "--track", "none"]


@pytest.mark.parametrize("code", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_commands_of_the_page_do_what_it_says(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that promise this exit code; a text block shows what the commands before it say."""
    monkeypatch.chdir(tmp_path)
    put_files(PAGE)
    names: dict[str, object] = {}
    runs, said = [], ""
    for block in blocks(PAGE, "python", "sh", "text"):
        if block.kind == "python":
            exec(compile(block.text, PAGE.name, "exec"), names)
            capsys.readouterr()  # transformers' progress bars
        elif block.kind == "text" and code:
            assert said == block.text
        elif block.kind == "sh":
            chosen = [line for line in block.text.splitlines() if ("# exit code 1" in line) == bool(code)]
            said = ""
            for words in (shlex.split(line, comments=True) for line in chosen):
                assert main([*words[1:], *QUICK, "--output", f"runs/{len(runs)}"]) == code, words
                runs.append(words)
                said += capsys.readouterr().err
    assert len(runs) == (6 if code else 9)
    for number, words in enumerate(runs):
        if "recorded.jsonl" in words:
            first = json.loads(Path(f"runs/{number}/metrics.jsonl").read_text().splitlines()[0])
            assert first["report/ratio"] == pytest.approx(1, abs=1e-5)
