"""What a condition tells of the expressions in its branches."""

from __future__ import annotations

import pytest

from grolang.language.checker import check
from grolang.language.source import Source

HEAD = "method m\ndata prompts\ngroup 4\nscore correct\nr = mean(correct over others)\n"


@pytest.mark.parametrize(
    ("reward", "codes"),
    [
        ("1 / r if 0 < r < 1 else 0", set()),
        ("1 / r if r > 0 and r < 1 else 0", set()),
        ("1 / (1 - r) if r > 0 and r < 1 else 0", set()),
        ("sqrt((1 - r) / r) if 0 < r < 1 else 0", set()),
        ("0 if r <= 0 or r >= 1 else log(r) + log(1 - r)", set()),
        ("1 / r if 0 <= r < 1 else 0", {"W701"}),
        ("1 / r if r > 0 or r < 1 else 0", {"W701"}),
        ("0 if r <= 0 and r >= 1 else log(r)", {"W705"}),
    ],
)
def test_both_ends_of_a_range_are_kept(reward: str, codes: set[str]) -> None:
    found = check(Source("m.gro", f"{HEAD}reward = {reward}\n")).findings
    assert {finding.code for finding in found} == codes
