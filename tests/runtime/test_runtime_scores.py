"""Scores: the built-in ones, the user's own, and what is said when they fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from grolang import GroError
from grolang.runtime.scores import Scorer, exact_match, final_answer, find_scorers

ROWS = [{"prompt": "a", "answer": "18"}, {"prompt": "b", "answer": "3"}]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She makes 9 * 2 = $18.\n#### 18", "18"),
        ("#### 1,234.50", "1234.5"),
        ("so it is 7 #### $42 a day", "42"),
        ("the answer is 12.", "12"),
        ("first 3, then -4", "-4"),
        ("#### -0", "0"),
        ("#### Paris ", "paris"),
        ("  Yes,\n  it is ", "yes, it is"),
        ("100", "100"),
        ("#### 1\nand again #### 2", "2"),
        ("", ""),
    ],
)
def test_the_final_answer_of_a_solution(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_exact_match_compares_final_answers() -> None:
    completions = ["… #### 18.0", "20 - 2 = 19", [{"role": "assistant", "content": "it is 18"}]]
    assert exact_match(completions=completions, answer=["18", 18, "$18"]) == [1.0, 0.0, 1.0]


def scorer(wanted: str | None, given: str | None = None, columns: tuple[str, ...] = ("prompt", "answer")) -> Scorer:
    found = {} if given is None else {"r": given}
    return find_scorers({"r": wanted}, found, columns, drawn=True)[0]


def test_length_counts_tokens_and_regex_searches() -> None:
    assert scorer("length")(ROWS, ["x", "y"], [[1, 2], [1]]) == [2.0, 1.0]
    assert scorer(None, r"regex:^\d+$")(ROWS, ["12", "12a"], [[1], [1]]) == [1.0, 0.0]


def own(tmp_path: Path, body: str) -> Scorer:
    path = tmp_path / "rewards.py"
    path.write_text(f"def good(prompts, completions, **columns):\n    {body}\n")
    return scorer(None, f"{path}:good")


def test_a_function_of_the_user_gets_trl_arguments(tmp_path: Path) -> None:
    body = "return [len(c) + int(a) + (p == 'b') for p, c, a in zip(prompts, completions, columns['answer'])]"
    assert own(tmp_path, body)(ROWS, ["xx", "y"], [[1], [2]]) == [20.0, 5.0]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [1.0]", r"`r` \(.*rewards.py:good\) gave 1 values for 2 completions"),
        ("return [1.0, None]", r"gave None for completion 1: 'b' → 'y'"),
        ("return [1.0, float('nan')]", r"gave nan for completion 1"),
        ("return [1.0, 'high']", r"gave 'high' for completion 1"),
        ("raise ValueError('no such thing')", r"failed: ValueError: no such thing \(.*rewards.py:2\)"),
        ("return None", r"failed: TypeError"),
    ],
)
def test_a_function_that_fails_is_named_with_the_row(body: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(GroError, match=said):
        own(tmp_path, body)(ROWS, ["x", "y"], [[1], [2]])


@pytest.mark.parametrize(
    ("wanted", "given", "said"),
    [
        (None, None, "nothing supplies the score `r`\n help: add --score r=FILE.py:FUNCTION"),
        (None, "missing.py:f", "there is no file missing.py"),
        (None, "something", "expected FILE.py:FUNCTION or one of exact_match"),
        (None, "regex", "the score regex needs a pattern\n help: add --score 'r=regex:PATTERN'"),
        (None, "regex:(", "no regular expression"),
    ],
)
def test_a_score_that_nothing_supplies(wanted: str | None, given: str | None, said: str) -> None:
    with pytest.raises(GroError) as caught:
        scorer(wanted, given)
    assert said in str(caught.value)


def test_exact_match_without_an_answer_column() -> None:
    with pytest.raises(GroError) as caught:
        scorer("exact_match", columns=("prompt", "label"))
    assert "reads the column `answer`; the data has `prompt`, `label`" in str(caught.value)


def test_a_score_that_the_method_does_not_have() -> None:
    with pytest.raises(GroError, match="--score x: the method has no score of that name; it has `r`"):
        find_scorers({"r": "length"}, {"x": "length"}, (), drawn=True)


def test_a_file_without_the_function(tmp_path: Path) -> None:
    path = tmp_path / "rewards.py"
    path.write_text("x = 1")
    with pytest.raises(GroError, match="has no function `good`"):
        scorer(None, f"{path}:good")
    path.write_text("import nothing_of_this_name")
    with pytest.raises(GroError, match="fails when it is imported: ModuleNotFoundError"):
        scorer(None, f"{path}:good")


def test_a_column_of_its_name_supplies_a_score_of_the_data() -> None:
    found = find_scorers({"r": None}, {}, ("prompt", "r"), drawn=False)[0]
    assert found([{"prompt": "a", "r": 0.5}], ["x"], [[1]]) == [0.5]
