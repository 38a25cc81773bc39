"""The catalogue of codes: none missing, every example true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import grolang
from grolang.cli import main
from grolang.language.checker import check_file
from grolang.language.codes import CODES

ROOT = Path(grolang.__file__).parent
FILES = sorted(code for code, row in CODES.items() if row.kind == "gro")
PYTHON = sorted(code for code, row in CODES.items() if row.kind == "python")


def test_every_code_that_the_sources_emit_has_a_row_and_no_row_is_idle() -> None:
    sources = [path for path in ROOT.rglob("*.py") if path.name != "codes.py"]
    sources += (ROOT.parent / "runtime").rglob("*.py")
    emitted = {code for path in sources for code in re.findall(r'"([EW]\d{3})"', path.read_text(encoding="utf-8"))}
    assert emitted == set(CODES)


@pytest.mark.parametrize("code", FILES)
def test_bad_example_yields_its_code_alone_and_good_one_is_clean(code: str, tmp_path: Path) -> None:
    row, file = CODES[code], tmp_path / "bad.gro"
    file.write_bytes(row.bad.encode(row.encoding))
    assert [finding.code for finding in check_file(file).findings] == [code]
    file.write_bytes(row.good.encode())
    assert check_file(file).findings == ()


@pytest.mark.parametrize("code", PYTHON)
def test_python_example_raises_its_code_and_good_one_runs(code: str) -> None:
    with pytest.raises(grolang.GroError) as caught:
        exec(CODES[code].bad, {})
    assert [finding.code for finding in caught.value.diagnostics] == [code]
    exec(CODES[code].good, {})


@pytest.mark.parametrize("code", sorted(CODES))
def test_explain_error_prints_title_and_both_examples(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain-error", code.lower()]) == 0
    shown = capsys.readouterr().out
    row = CODES[code]
    assert f"{code}: {row.title}" in shown and row.why in shown
    assert all(line.strip() in shown for text in (row.bad, row.good) for line in text.splitlines())
    if row.kind == "gro":
        assert f"[{code}]: " in shown and "bad.gro:" in shown


def test_unknown_code_is_wrong_use_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain-error", "E3O1"]) == 2
    assert "did you mean `E301`?" in capsys.readouterr().err
