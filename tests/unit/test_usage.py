"""What a method is made of, once what it inherits is replaced."""

from __future__ import annotations

import pytest

from grolang.compiler.method import from_source, load
from grolang.language.library import built_in
from grolang.language.source import Source
from grolang.language.usage import idle_scores, used, without

OWN = "method own\nextends grpo\nscore form\nreward = form\n"


def test_what_a_replaced_part_read_is_read_no_more() -> None:
    assert "beta" in used(load("grpo").ir) and "beta" not in used(load("dapo").ir)
    assert "beta" in load("dapo").params
    assert "max_length" in used(load("dr_grpo").ir)  # a divisor of the aggregation


def test_an_inherited_score_goes_with_the_reports_of_it() -> None:
    method = from_source(Source(name="own.gro", text=OWN)).ir
    assert idle_scores(method) == ["correct"] and idle_scores(method, ["correct"]) == []
    left = without(method, ["correct"])
    assert [*left.scores] == ["form"] and "accuracy" not in left.reports and left.definitions == method.definitions


def test_a_report_of_the_file_itself_keeps_a_score() -> None:
    method = from_source(Source(name="own.gro", text=OWN + "report right = correct\n")).ir
    assert idle_scores(method) == []


@pytest.mark.parametrize("name", built_in())
def test_built_in_methods_read_every_score(name: str) -> None:
    assert idle_scores(load(name).ir) == []
