"""`%%gro` in a real IPython shell: a cell is checked, explained and compiled."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CELL = """%%gro {line}
method mine "Mine"
data preference
param beta = 0.5
reward    = label
measure   = sum(logp - logp_ref over tokens)
anchor    = opposite(measure)
alpha     = beta * label
omega(z)  = beta * sigmoid(-z)
aggregate = sum over tokens, sum over group, mean over groups
"""

USE = """
import torch, grolang
logp = torch.tensor([[-1.0, -2.0], [-1.5, -0.5]], requires_grad=True)
batch = grolang.Batch(mask=torch.ones(2, 2, dtype=torch.bool), group=torch.tensor([0, 0]),
                      label=torch.tensor([1.0, -1.0]), logp=logp, logp_ref=torch.full((2, 2), -1.0))
{name}.loss(batch).backward()
same = torch.equal(logp.grad, -grolang.load("dpo", beta=0.5).coefficients(batch))
module = grolang.compile({name})
"""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A fresh shell that keeps its files to itself."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    from IPython.core.interactiveshell import InteractiveShell

    made = InteractiveShell()
    made.history_manager.enabled = False
    assert made.run_cell("%load_ext grolang.notebook").success
    yield made
    atexit.unregister(made.atexit_operations)
    made.history_manager.end_session()


@pytest.mark.parametrize("name", ["", "other"])
def test_a_cell_becomes_a_method_that_trains(shell: Any, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run_cell(CELL.format(line=name)).success
    assert "ĝ = " in capsys.readouterr().out  # the page, as the text that a terminal shows
    assert shell.run_cell(USE.format(name=name or "mine")).success
    assert shell.user_ns["same"] and callable(shell.user_ns["module"])


def test_a_notebook_gets_the_page_with_formulas(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []
    monkeypatch.setattr(shell.display_pub, "publish", lambda data, *rest, **named: shown.append(data))
    assert shell.run_cell(CELL.format(line="")).success
    assert "<math" in shown[0]["text/html"] and "Row of Table 1" in shown[0]["text/plain"]


def test_a_cell_with_an_error_shows_its_findings_and_changes_no_name(
    shell: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.user_ns["mine"] = "as it was"
    assert shell.run_cell(CELL.format(line="").replace("label\n", "labell\n", 1)).success
    said = capsys.readouterr().out
    assert "E201" in said and "labell" in said and "Traceback" not in said
    assert shell.user_ns["mine"] == "as it was"


def test_a_line_that_is_no_name_is_told_without_a_traceback(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert not shell.run_cell(CELL.format(line="not a name")).success
    said = capsys.readouterr()
    assert "takes a name" in said.out + said.err and "Traceback" not in said.out + said.err


def test_without_math_core_the_text_is_there_still(
    shell: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from grolang.explain import mathml

    mathml._converter.cache_clear()
    monkeypatch.setitem(sys.modules, "math_core", None)
    assert shell.run_cell(CELL.format(line="")).success
    said = capsys.readouterr().out
    assert "grolang[explain]" in said and "ĝ = " in said and shell.user_ns["mine"].name == "mine"
    mathml._converter.cache_clear()
