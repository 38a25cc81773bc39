"""The live view at every width, plain lines where there is no terminal, and the curves under both."""

from __future__ import annotations

import io
import math
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len
from rich.console import Console

from grolang.runtime import progress
from grolang.runtime.curves import bins, chart, dots, sparkline, ticks
from grolang.runtime.progress import View, clock


def figures(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "loss": 1 / step, "reward": step / 40, "seconds": 2.0, "num_tokens": 100.0 * step} | more


def shown(view: View, width: int, encoding: str = "utf-8") -> list[str]:
    class File(io.StringIO):
        pass

    file = File()
    File.encoding = encoding  # type: ignore[assignment]
    Console(file=file, width=width, height=30, force_terminal=True, color_system=None).print(view)
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.fixture
def view() -> View:
    made = View(Console(file=io.StringIO()), "grpo", 40, 0)
    for step in range(1, 21):
        made.step(figures(step))
    made.evaluated(0, {"correct/sampled": 0.25, "correct/greedy": 0.5})
    made.evaluated(20, {"correct/sampled": 0.5, "correct/greedy": 0.5})
    return made


@pytest.mark.parametrize("width", [12, 20, 29, 30, 40, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_view_fits_every_terminal(view: View, width: int, encoding: str) -> None:
    lines = shown(view, width, encoding)
    assert all(cell_len(line) <= width for line in lines)
    assert encoding == "utf-8" or all(line.replace("…", "").isascii() for line in lines)


def test_the_view_says_where_the_run_is(view: View) -> None:
    text = "\n".join(shown(view, 100))
    assert "grpo  step 20/40" in text and "50%" in text and "50 tokens/s" in text and "0:40 left" in text
    assert "reward 0.5" in text and "held out: correct/sampled 0.25 → 0.5" in text
    with view.doing("measuring held-out rows"):
        assert "measuring held-out rows" in "\n".join(shown(view, 100))
    assert "measuring" not in "\n".join(shown(view, 100))


def test_a_terminal_gets_a_live_view_that_survives_a_resize_and_an_interrupt() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, height=20)
    with pytest.raises(KeyboardInterrupt), View(console, "grpo", 40, 0) as view:
        assert view.live is not None
        for step, width in enumerate((100, 15, 60), 1):
            console.size = (width, 20)  # type: ignore[assignment]
            view.step(figures(step))
            view.live.refresh()
        raise KeyboardInterrupt
    text = file.getvalue()
    assert "step 3/40" in text and text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back


def test_no_terminal_gets_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    file = io.StringIO()
    with View(Console(file=file), "grpo", 30, 0) as view:
        for step in range(1, 31):
            now[0] += 2
            view.step(figures(step))
            if step == 12:
                view.evaluated(12, {"correct/sampled": 0.5})
    lines = file.getvalue().splitlines()
    assert lines[0] == "step 1/30  loss 1  reward 0.025  0:58 left"
    assert "step 12/30  held out: correct/sampled 0.5" in lines
    assert lines[-1] == "step 30/30  loss 0.03333  reward 0.75  50 tokens/s"
    assert len(lines) == 8 and "\x1b" not in file.getvalue()


def test_what_is_odd_is_said_once() -> None:
    file = io.StringIO()
    view = View(Console(file=file), "grpo", 9, 0)
    odd: dict[str, Any] = {"frac_reward_zero_std": 1.0, "grad_norm": 0.0, "completions/clipped_ratio": 0.75}
    for step in (1, 2):
        view.step(figures(step, **odd, entropy=0.001))
    notes = [line for line in file.getvalue().splitlines() if line.startswith("note: ")]
    assert len(notes) == 4 and "note: at step 1 75% ran into --max-completion" in notes


def test_sparklines_and_dots() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, 1], 8) == "▁▁" and sparkline([], 8) == "" and sparkline([math.nan], 8) == ""
    assert len(sparkline(list(range(1000)), 30)) == 30 and sparkline([0, 1], 2, ascii=True) == "_@"
    assert dots([0, 0, 7, 7], 10, 2) == ["⠀⡏", "⣀⠇"]
    assert all(len(row) <= 20 for row in dots(list(range(500)), 20, 3)) and dots([], 5, 2) == []


def test_a_chart_is_well_formed_and_has_a_curve_for_each_name() -> None:
    found = ElementTree.fromstring(chart("a < b", {"x": [(0, 1.0), (1, math.nan), (2, 3.0)], "y": [(0, 2.0)]}))
    assert [child.tag for child in found].count("polyline") == 2 and found.attrib["aria-label"] == "a < b"
    assert chart("empty", {"x": [(0, math.inf)]}) == ""
    assert ElementTree.fromstring(chart("flat", {"x": [(0, 1.0), (1, 1.0)]})).tag == "svg"


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1) == [0, 0.5, 1]
    for low, high in ((0, 1), (-3, 17), (1e-5, 3e-5), (2, 2)):
        found = ticks(low, high)
        assert 1 <= len(found) <= 6 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)


def test_bins_are_shares() -> None:
    assert bins([0, 0.1, 0.9, 1, 5], 0, 1, 2) == [0.4, 0.4] and bins([], 0, 1, 2) == [0, 0]


def test_the_clock() -> None:
    assert [clock(s) for s in (5, 65, 3723, 90000)] == ["0:05", "1:05", "1:02:03", "1 d 1:00:00"]
