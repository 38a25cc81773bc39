"""Every bad program in `bad/`, with its whole rendered message beside it.

`pytest tests/golden --update-golden` writes the messages anew; such a run does not pass, so that nobody forgets to
read them.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from grolang.language.checker import check_file
from grolang.language.codes import CODES
from grolang.language.diagnostics import render

BAD = Path(__file__).parent / "bad"
PROGRAMS = sorted(BAD.glob("*.gro"))


def rendered(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `grolang check FILE` prints it in the file's own folder."""
    monkeypatch.chdir(BAD)
    checked = check_file(path.name)
    return render(checked.findings, checked.sources) + "\n"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_bad_program_gets_its_message(
    path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    found, golden = rendered(path, monkeypatch), path.with_suffix(".txt")
    if request.config.getoption("--update-golden"):
        golden.write_text(found, encoding="utf-8")
        pytest.fail(f"wrote {golden.name}: read it")
    assert found == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_the_first_code_is_that_of_the_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = path.stem.split("_")[0].upper()
    if code != "MIXED":
        assert f"[{code}]" in rendered(path, monkeypatch)


def test_there_are_at_least_150_programs_and_every_code_stands_at_least_twice() -> None:
    seen = Counter(code for path in PROGRAMS for code in set(re.findall(r"\[([EW]\d+)\]", golden_text(path))))
    in_files = {code for code in CODES if code[:2] in ("E1", "E2", "E3", "E4", "E5", "E6", "W7")}
    command_line_only = {"E602"}
    assert len(PROGRAMS) >= 150
    assert not {code for code in in_files - command_line_only if seen[code] < 2}


def golden_text(path: Path) -> str:
    return path.with_suffix(".txt").read_text(encoding="utf-8")
