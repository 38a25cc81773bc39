"""Scores: the built-in ones, the user's own, reward models, and what happens when they fail."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import SIZES, TEMPLATE, tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

import grolang
from grolang import GroError
from grolang.runtime import RunSettings, calls
from grolang.runtime.examples import Example, one_each
from grolang.runtime.rollout import offline_draw
from grolang.runtime.score_sources import Sources
from grolang.runtime.scores import Patience, Scored, Scorer, score
from grolang.runtime.scoring import Scoring
from grolang.runtime.setup import prepare
from grolang.runtime.verifiers import BUILTINS, exact_match, final_answer

ROWS = [{"prompt": "a", "answer": "18"}, {"prompt": "b", "answer": "3"}]
PATIENT = Patience(seconds=600)


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


def scorer(
    wanted: str | None,
    given: str | None = None,
    columns: tuple[str, ...] = ("prompt", "answer"),
    patience: Patience = PATIENT,
    **more: Any,
) -> Scorer:
    found = {} if given is None else {"r": given}
    return Sources(patience, **more).scorers({"r": wanted}, found, columns, drawn=True)[0]


def marks(one: Scorer, texts: list[Any], rows: list[dict[str, Any]] | None = None) -> list[float]:
    ids = [list(range(len(str(text)))) for text in texts]
    return [found.scores["r"] for found in score([one], rows or ROWS[:1] * len(texts), texts, ids)[0]]


def test_functions_of_one_file_share_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "both.py"
    path.write_text(
        "seen = []\n"
        "def one(completions, **columns):\n    seen.extend(completions)\n    return [0.0] * len(completions)\n"
        "def two(completions, **columns):\n    return [float(len(seen))] * len(completions)\n"
    )
    given = {name: f"{path}:{name}" for name in ("one", "two")}
    scorers = Sources().scorers(dict.fromkeys(given), given, (), drawn=True)
    found, _ = score(scorers, ROWS[:1] * 3, ["a", "b", "c"], [[1]] * 3)
    assert [one.scores["two"] for one in found] == [3.0] * 3


def test_length_counts_tokens_and_regex_searches() -> None:
    assert marks(scorer("length"), ["xx", "y"]) == [2.0, 1.0]
    assert marks(scorer(None, r"regex:^\d+$"), ["12", "12a"]) == [1.0, 0.0]


def test_repetition_is_the_share_of_grams_that_were_there_before() -> None:
    one = scorer(None, "repetition:2")
    ids = [[1, 2, 3, 4], [1, 2, 1, 2, 1, 2], [7], [5] * 5]
    found = score([one], ROWS[:1] * 4, ["x"] * 4, ids)[0]
    assert [round(each.scores["r"], 3) for each in found] == [0.0, 0.6, 0.0, 0.75]
    assert scorer("repetition").function(completion_ids=[[1] * 8]) == [0.8]


def test_json_that_fits_a_schema(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object", "required": ["x"], "properties": {"x": {"type": "integer"}}}')
    texts = ['{"x": 1}', 'So:\n```json\n{"x": 2}\n```\n', '{"x": "1"}', "{}", "no", "[" * 100_000]
    assert marks(scorer(None, f"json_schema:{path}"), texts) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    rows = [{"prompt": "a", "json_schema": '{"type": "array"}'}, {"prompt": "b", "json_schema": '{"type": "string"}'}]
    assert marks(scorer("json_schema", columns=("prompt", "json_schema")), ["[]", "[]"], rows) == [1.0, 0.0]
    path.write_text('{"type": "objekt"}')
    with pytest.raises(GroError, match="is no JSON schema: 'objekt' is not valid"):
        scorer(None, f"json_schema:{path}")


def test_a_schema_looks_nothing_up(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    path = tmp_path / "schema.json"
    path.write_text('{"$ref": "http://127.0.0.1:9/schema.json"}')
    with pytest.raises(GroError, match="Unresolvable"):
        marks(scorer(None, f"json_schema:{path}"), ["{}"])


def test_answers_are_compared_as_mathematics() -> None:
    pytest.importorskip("math_verify")
    rows = [{"prompt": "a", "answer": answer} for answer in ("0.5", "x^2+1", "18", "18")]
    texts = ["it is $\\frac{1}{2}$", "\\boxed{1+x^2}", "#### 18.0", "17"]
    assert marks(scorer("math_answer", "math_answer:600"), texts, rows) == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.slow
def test_mathematics_without_end_is_killed_and_wrong() -> None:
    pytest.importorskip("math_verify")
    rows = [{"prompt": "a", "answer": "5"}] * 3
    one = scorer(None, "math_answer:1")
    assert marks(one, ["5", "9**9**9**9", "5"], rows) == [1.0, 0.0, 1.0]
    assert marks(one, ["5", "9**9**9**9", "5"], rows) == [1.0, 0.0, 1.0]


# --- the user's functions ---------------------------------------------------------------------------------------


def own(tmp_path: Path, body: str, patience: Patience = PATIENT, head: str = "def") -> Scorer:
    path = tmp_path / "rewards.py"
    path.write_text(f"import asyncio, time\n{head} good(prompts, completions, **columns):\n    {body}\n")
    return scorer(None, f"{path}:good", patience=patience)


def test_a_function_of_the_user_gets_trl_arguments(tmp_path: Path) -> None:
    body = "return [len(c) + int(a) + (p == 'b') for p, c, a in zip(prompts, completions, columns['answer'])]"
    assert marks(own(tmp_path, body), ["xx", "y"], ROWS) == [20.0, 5.0]


def test_a_column_of_another_file_is_none_also_where_no_row_of_that_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def hinted(hint, **_):\n    return [float(one is None) for one in hint]\n")
    made = scorer(None, f"{tmp_path / 'rewards.py'}:hinted")
    found, _ = score([made], ROWS, ["x", "y"], [[1], [2]], ("prompt", "hint"))
    assert [list(one.scores.values()) for one in found] == [[1.0], [1.0]]


def test_conversations_come_as_lists_of_messages(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "abc"}]}
    body = "return [len(p[0]['content']) + len(c[0]['content']) for p, c in zip(prompts, completions)]"
    assert marks(own(tmp_path, body), [[{"role": "assistant", "content": "de"}]], [row]) == [5.0]


def test_tensors_and_arrays_are_lists(tmp_path: Path) -> None:
    assert marks(own(tmp_path, "import torch; return torch.ones(len(prompts))"), ["x", "y"]) == [1.0, 1.0]


def test_async_functions_wait_together_and_keep_their_loop(tmp_path: Path) -> None:
    """Each waits for the other one to be called, and would wait for ever if they were called in turn."""
    (tmp_path / "meeting_of_scores.py").write_text("import threading\nbarrier = threading.Barrier(2, timeout=600)\n")
    (tmp_path / "both.py").write_text(
        "import asyncio\nfrom meeting_of_scores import barrier\nloops = {'one': set(), 'two': set()}\n"
        "async def meet(name, completions):\n"
        "    loops[name].add(asyncio.get_running_loop())\n"
        "    await asyncio.to_thread(barrier.wait)\n"
        "    return [len(loops[name])] * len(completions)\n"
        "async def one(completions, **columns): return await meet('one', completions)\n"
        "async def two(completions, **columns): return await meet('two', completions)\n"
    )
    given = {"a": f"{tmp_path / 'both.py'}:one", "b": f"{tmp_path / 'both.py'}:two", "c": "length"}
    every = Sources(PATIENT).scorers(dict.fromkeys("abc"), given, ("prompt",), drawn=True)
    for _ in range(2):
        found = score(every, ROWS, ["x", "y"], [[1], [2, 3]])[0]
    assert [one.scores for one in found] == [{"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 2.0}]


BAD = "if 'bad' in completions: "


ONES = "return [1.0] * len(completions)"
HANGS = "\n        from test_runtime_scores import Watched\n        Watched.last.over.set()\n        "


class Watched(Future[Any]):
    """Waited for until the call says that it hangs, and no less on a busy machine: the limit's clock never strikes."""

    last: Watched

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()
        self.add_done_callback(lambda _: self.over.set())
        Watched.last = self

    def result(self, timeout: float | None = None) -> Any:
        assert self.over.wait(600)
        if not self.done():
            raise calls.Waited
        return super().result(0)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [1.0]", r"`r` \(.*rewards.py:good\) gave 1 value for 4 completions, though not when it gets fewer"),
        ("return [1.0, None, float('nan'), 2.0]", r"gave nan instead of a finite number for completion 2: 'a' → 'bad'"),
        ("return [1.0, 2.0, 'high', 4]", r"gave 'high' instead of a finite number for completion 2"),
        (
            f"{BAD}raise ValueError('so')\n    {ONES}",
            r"ValueError: so \(.*rewards.py:3\) for completion 2: 'a' → 'bad'",
        ),
        (
            f"{BAD}{HANGS}time.sleep(9)\n    {ONES}",
            r"gave no answer within 150 of the 600 seconds that all have for completion 2: 'a'",
        ),
        (f"{BAD}{HANGS}while True: pass\n    {ONES}", "gave no answer within .* completion 2: 'a'"),
        ("return [1.0 for c in completions if c != 'bad']", "gave 0 values for 1 completion for completion 2: 'a'"),
        ("return None", "gave None instead of a list for completion 0"),
        ("raise SystemExit(3)", r"failed: RuntimeError: it exits: 3 \(.*rewards.py:3\)"),
    ],
)
def test_a_function_that_fails_is_named_with_the_row(
    body: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "Future", Watched)
    with pytest.raises(GroError, match=said):
        marks(own(tmp_path, body), ["x", "y", "bad", "z"])


def test_a_function_that_cannot_take_the_columns_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(
        "def few(completions): pass\ndef many(completions, gone, **columns): pass\ndef fine(answer, **columns): pass\n"
    )

    def check(name: str) -> None:
        scorer(None, f"{tmp_path / 'rewards.py'}:{name}").check(("prompt", "answer", "chosen"))

    with pytest.raises(GroError, match=r"cannot be called: got an unexpected keyword argument(.|\n)*end with `\*\*col"):
        check("few")
    with pytest.raises(
        GroError, match=r"missing a required argument: 'gone'\n help: it is given prompts, .*, answer: "
    ):
        check("many")
    check("fine")


@pytest.mark.parametrize("on_error", ["zero", "skip"])
def test_the_others_keep_their_scores(on_error: Any, tmp_path: Path) -> None:
    body = BAD + "raise ValueError\n    return [2.0] * len(completions)"
    one = own(tmp_path, body, Patience(on_error=on_error))
    found, faults = score([one], ROWS[:1] * 5, ["x", "bad", "y", "z", "bad"], [[1]] * 5)
    assert [each.scores["r"] for each in found] == [2.0, 0.0, 2.0, 2.0, 0.0]
    assert [each.failed for each in found] == [(), ("r",), (), (), ("r",)] and len(faults) == 2


def test_values_that_stand_for_nobody_knows_whom_count_for_nobody(tmp_path: Path) -> None:
    one = own(tmp_path, "return [1.0]", Patience(on_error="zero"))
    assert all(each == Scored({"r": 0.0}, ("r",)) for each in score([one], ROWS, ["x", "y"], [[1]] * 2)[0])


def test_a_call_that_fails_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "flaky.py").write_text(
        "calls = []\ndef flaky(completions, **columns):\n    calls.append(1)\n"
        "    if len(calls) < 3:\n        raise ConnectionError('down')\n"
        "    return [float(len(calls))] * len(completions)\n"
    )
    given = f"{tmp_path / 'flaky.py'}:flaky"
    assert marks(scorer(None, given, patience=Patience(retries=2)), ["x"]) == [3.0]
    with pytest.raises(GroError, match="ConnectionError: down"):
        marks(scorer(None, given, patience=Patience(retries=0)), ["x", "y", "z"])


def test_a_thread_that_loops_is_ended(tmp_path: Path) -> None:
    one = own(tmp_path, "while True: pass", Patience(seconds=0.2))
    before = set(threading.enumerate())
    with pytest.raises(GroError, match=r"no answer within 0\.2 seconds"):
        marks(one, ["x"])
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(600)
    assert not [thread for thread in left if thread.is_alive()]


@pytest.mark.slow
def test_a_call_that_is_stuck_in_c_ends_the_process_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text("import re\ndef stuck(**_): return re.search('(a+)+$', 'a' * 60 + 'b')\n")
    code = (
        "from grolang.runtime import calls\nfrom stuck import stuck\ncalls.GRACE = 0.5\n"
        "one = calls.Caller(stuck)\none.result(one.start(), 0.5)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "stuck.py" in done.stderr and "in stuck" in done.stderr


def test_a_score_that_does_not_apply_counts_as_zero_where_another_does(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text("def some(completions, **_): return [None if c == 'no' else 5.0 for c in completions]\n")
    given = {"a": f"{path}:some"}
    both = Sources(PATIENT).scorers({"a": None, "b": "length"}, given, ("prompt",), drawn=True)
    found = score(both, ROWS, ["no", "yes"], [[1], [1]])[0]
    assert found == [Scored({"a": 0.0, "b": 1.0}, (), ("a",)), Scored({"a": 5.0, "b": 1.0})]
    with pytest.raises(GroError, match=r"no score applies to completion 0: 'a' → 'no': the score `a` \(.*\) gave None"):
        score(both[:1], ROWS, ["no", "yes"], [[1], [1]])


# --- where they come from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "given", "said"),
    [
        (None, None, "nothing supplies the score `r`\n help: add --score r=FILE.py:FUNCTION"),
        (None, "missing.py:f", "there is no file missing.py"),
        (None, "something", "expected FILE.py:FUNCTION, the folder of a reward model or one of exact_match"),
        (None, "regex", "the score regex needs a pattern\n help: add --score 'r=regex:PATTERN'"),
        (None, "regex:(", "no regular expression"),
        (None, "length:3", "the score length takes no option"),
        (None, "repetition:many", "`many` is not a positive number"),
        (None, "./nowhere", "there is no folder ./nowhere"),
        (None, "a/b/c", "there is no folder a/b/c"),
    ],
)
def test_a_score_that_nothing_supplies(wanted: str | None, given: str | None, said: str) -> None:
    with pytest.raises(GroError) as caught:
        scorer(wanted, given)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", [name for name, row in BUILTINS.items() if row.reads])
def test_a_built_in_score_without_its_column(name: str) -> None:
    with pytest.raises(GroError) as caught:
        scorer(name, columns=("prompt", "label"))
    assert f"reads the column `{BUILTINS[name].reads[0]}`; the data has `prompt`, `label`" in str(caught.value)


def test_a_score_that_the_method_does_not_have() -> None:
    with pytest.raises(GroError, match="--score x: the method has no score of that name; it has `r`"):
        Sources().scorers({"r": "length"}, {"x": "length"}, (), drawn=True)


def test_a_file_without_the_function(tmp_path: Path) -> None:
    path = tmp_path / "rewards.py"
    path.write_text("x = 1")
    with pytest.raises(GroError, match="has no function `good`"):
        scorer(None, f"{path}:good")
    path.write_text("import nothing_of_this_name")
    with pytest.raises(GroError, match="fails when it is imported: ModuleNotFoundError"):
        scorer(None, f"{path}:good")


def test_a_column_of_its_name_supplies_a_score_of_the_data() -> None:
    found = Sources().scorers({"r": None}, {}, ("prompt", "r"), drawn=False)[0]
    assert marks(found, ["x"], [{"prompt": "a", "r": 0.5}]) == [0.5] and found.reads == ("r",)


# --- reward models ----------------------------------------------------------------------------------------------


def test_each_response_of_a_pair_has_a_column_of_its_own() -> None:
    """Before a column of the score's own name; what is the prompt or a completion stays what it is."""
    record = {"prompt": "a", "chosen": "x", "rejected": "y", "chosen_r": 9.0, "rejected_r": 4.0, "chosen_only": 1.0}
    record |= {"r": 0.0, "chosen_prompt": "b", "rejected_prompt": "c"}
    names = one_each(tuple(record), "preference")
    assert names == ["r"] and one_each(tuple(record), "prompts") == []
    found = Sources(PATIENT).scorers({"r": None}, {}, [*record, *names], drawn=False)
    rows = [Example(0, record, [1], ([2], [3]), (1.0, -1.0))]
    drawn = offline_draw(rows, "preference", Scoring(tuple(found), Accelerator(cpu=True)))
    assert [(one.label, one.scores) for one in drawn.samples] == [(1.0, {"r": 9.0}), (-1.0, {"r": 4.0})]


@pytest.mark.parametrize("column", ["chosen_r", "rejected_r"])
def test_a_pair_without_the_score_of_one_response_is_told(column: str, tiny: str, tmp_path: Path) -> None:
    method, data = tmp_path / "mine.gro", tmp_path / "pairs.jsonl"
    method.write_text('method mine "m"\ndata preference\nscore r\nreward = label * r\n')
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_r": 1.0, "rejected_r": 2.0}
    data.write_text(json.dumps(row) + "\n" + json.dumps(row | {column: None}) + "\n")
    settings = RunSettings(method=str(method), model=tiny, data=(str(data),), batch=1, lr=1.0, steps=1)
    with pytest.raises(GroError, match=rf"pairs.jsonl:2: `{column}` is missing, and the score column r reads it"):
        prepare(grolang.load(method), settings, Accelerator(cpu=True))


def reward_model(folder: Path, template: str | None = None, **changes: Any) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    made = LlamaForSequenceClassification(LlamaConfig(**(SIZES | {"num_labels": 1} | changes))).eval()
    made.save_pretrained(folder)
    tokenizer(template).save_pretrained(str(folder))
    return made


@torch.no_grad()
def test_a_reward_model_reads_prompt_and_completion(tmp_path: Path) -> None:
    model = reward_model(tmp_path)
    found = marks(scorer(None, str(tmp_path)), ["long completion", "b"], ROWS)
    for text, row, value in zip(["long completion", "b"], ROWS, found, strict=True):
        ids = tokenizer()(row["prompt"] + text + "|end|", return_tensors="pt")["input_ids"]
        assert value == pytest.approx(float(model(input_ids=ids).logits), abs=1e-5)


@torch.no_grad()
def test_a_reward_model_uses_its_own_template_and_says_what_it_cuts(tmp_path: Path) -> None:
    model, said = reward_model(tmp_path, TEMPLATE, max_position_embeddings=24), list[str]()
    one = scorer(None, str(tmp_path), say=said.append)
    row = {"prompt": [{"role": "user", "content": "q" * 30}]}
    (value, _) = marks(one, [[{"role": "assistant", "content": "a"}]] * 2, [row] * 2)
    ids = tokenizer()("<user>" + "q" * 30 + "<assistant>a|end|", return_tensors="pt")["input_ids"]
    assert value == pytest.approx(float(model(input_ids=ids[:, -24:]).logits), abs=1e-5)
    marks(one, [[{"role": "assistant", "content": "a"}]], [row])
    assert len(said) == 1 and "reads 24 tokens: 2 of 2 sequences lose the beginning of their prompt" in said[0]


def test_what_is_no_reward_model(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(GroError, match="holds LlamaForCausalLM, and a reward model is a …ForSequenceClassification"):
        scorer(None, tiny)
    reward_model(tmp_path, num_labels=3)
    with pytest.raises(GroError, match="has 3 outputs, and a reward model has one"):
        scorer(None, str(tmp_path))


def test_who_reads_a_message_as_a_text_is_told_what_it_is() -> None:
    one = Scorer("r", "f", lambda completions, **_: [float(text.strip()) for text in completions])
    for text, told in (("x", False), ([{"role": "assistant", "content": "1"}], True)):
        with pytest.raises(GroError) as error:
            marks(one, [text])
        assert ("a list of one message (`completion[0]['content']`)" in str(error.value)) is told
