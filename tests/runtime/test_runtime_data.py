"""Rows that are fine and rows that are not: every complaint says where, what, and how to mend it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import socket
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import TEMPLATE, Write, rows_of, tokenizer

from grolang import GroError
from grolang.runtime.data import broken_line, open_rows
from grolang.runtime.examples import Encoder, Limits, load_examples, positions, with_demonstrations
from grolang.runtime.forms import check_columns, check_filled, check_rows, checked, with_prompts
from grolang.runtime.names import check_folder

ENCODER = Encoder(tokenizer())
END = ENCODER.end


def complaint(path: str, kind: str, limits: Limits | None = None) -> str:
    with pytest.raises(GroError) as caught:
        rows = open_rows(path)
        check_columns(rows, kind)
        check_rows(rows, kind)
        load_examples(rows, kind, ENCODER, limits or Limits(None))
    return str(caught.value)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_the_same_rows_from_every_kind_of_file(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows [1].{ending}"
    made = datasets.Dataset.from_list(rows_of("unpaired", 6))
    {
        "jsonl": lambda: made.to_json(path),
        "json": lambda: path.write_text(json.dumps(rows_of("unpaired", 6))),
        "csv": lambda: made.to_csv(path),
        "parquet": lambda: made.to_parquet(path),
    }[ending]()
    rows = open_rows(str(path))
    check_rows(rows, "unpaired")
    assert [row["label"] for row in rows] == [True, False, True, False, True, False]
    assert rows[1]["prompt"] == "0+1="


@pytest.mark.parametrize("home", ["/dev/null/nobody", "/sys/nobody"])
def test_a_cache_that_cannot_be_written_is_not_the_datas_fault(
    home: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(home))
    with pytest.raises(GroError, match=f"cannot write to the cache folder {home}: ") as caught:
        open_rows(write(rows_of("unpaired", 3)))
    assert "export HF_HOME=FOLDER" in str(caught.value) and "mend the file" not in str(caught.value)


def test_a_folder_that_lacks_a_file_is_the_datas_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its path is relative, and where the cache is in a folder of its own that can be written."""
    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_list(rows_of("unpaired", 3)).save_to_disk("saved")
    next(Path("saved").glob("*.arrow")).unlink()
    for name in ("saved", str(tmp_path / "saved")):
        assert f"{name} cannot be read: " in complaint(name, "unpaired")


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.bz2", "ndjson.xz", "json.gz", "csv.gz"])
def test_compressed_files_are_read_and_a_fault_has_its_line(ending: str, tmp_path: Path) -> None:
    form, _, packing = ending.partition(".")
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[packing]
    path, made = tmp_path / f"rows.{ending}", datasets.Dataset.from_list(rows_of("unpaired", 6))
    plain = tmp_path / f"rows.{form}"
    if form == "json":
        plain.write_text(json.dumps(rows_of("unpaired", 6)))
    else:
        made.to_csv(plain, index=False) if form == "csv" else made.to_json(plain)
    path.write_bytes(pack(plain.read_bytes()))
    rows = open_rows(str(path))
    check_rows(rows, "unpaired")
    assert list(rows) == list(open_rows(str(plain)))
    if form.endswith("l"):
        path.write_bytes(pack(b'{"prompt": "a"}\n{"prompt": \n'))
        assert f"{path}:2: this line is not JSON" in complaint(str(path), "prompts")
    path.write_bytes(pack(in_french().decode().encode("latin-1")))
    assert f"{path}:2: not UTF-8" in complaint(str(path), "demonstrations")
    path.write_bytes(pack(plain.read_bytes())[:-20])
    assert f"{path} cannot be read: " in complaint(str(path), "unpaired")


def test_reading_a_file_asks_no_server(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[object]()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **_: asked.append(words))
    open_rows(write([{"prompt": "a", "written": time.time()}]))
    assert not asked


def test_a_missing_file() -> None:
    assert "there is no file nowhere.jsonl" in complaint("nowhere.jsonl", "prompts")


@pytest.mark.parametrize(
    "name", ["a/b/c", "./rows", "/nowhere/rows", "rows.parquet", "rows.jsonl.gz", "two words", "here/rows"]
)
def test_what_can_only_be_a_path_is_looked_up_nowhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    asked = list[object]()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **_: asked.append(words))
    assert f"there is no file {name}\n help: check the path" in complaint(name, "prompts")
    with pytest.raises(GroError, match=f"there is no folder {name}\n help: check the path that --model gives"):
        check_folder(name, "--model")
    assert not asked


def test_a_hub_that_cannot_be_reached_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[object]()

    def nobody(*words: Any, **_: Any) -> None:
        asked.append(words)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    assert "there is no file some/rows here, and the hub cannot be reached" in complaint("some/rows", "prompts")
    with pytest.raises(GroError, match="there is no folder a-model here, and the hub cannot be reached"):
        check_folder("a-model", "--model")
    assert len(asked) == 2


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_missing_answer_has_its_row(name: str, tmp_path: Path) -> None:
    made = datasets.Dataset.from_list([{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": None}])
    path = tmp_path / name
    made.to_json(path) if name.endswith("jsonl") else made.to_csv(path, index=False)
    place = f"{path}:2" if name.endswith("jsonl") else f"{path}, row 2"
    with pytest.raises(GroError) as caught:
        check_filled(open_rows(str(path)), "answer", "the score exact_match")
    assert f"{place}: `answer` is missing, and the score exact_match reads it" in str(caught.value)


def test_an_empty_file_and_one_of_blank_lines(write: Write) -> None:
    assert "is empty" in complaint(write(""), "prompts")
    assert "rows.jsonl" in complaint(write("\n\n"), "prompts")


def in_french() -> bytes:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "déjà", "completion": "vu"}]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize("name", ["rows.jsonl", "folder/rows.jsonl"])
def test_bytes_that_are_no_text_have_their_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(in_french().decode().encode("latin-1"))
    given = path if path.parent == tmp_path else path.parent
    said = complaint(str(given), "demonstrations")
    assert f"{path}:2: not UTF-8: byte 0xe9 at place 14 of the line\n help: save the file as UTF-8" in said
    path.write_bytes(in_french().decode().encode("utf-16"))
    assert f"{path}:1: not UTF-8: byte 0xff at place 1" in complaint(str(given), "demonstrations")
    path.write_bytes(b"\xef\xbb\xbf" + in_french())  # with a byte order mark
    assert open_rows(str(given))[1]["prompt"] == "déjà"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.arrow"])
def test_a_file_that_is_cut_short_is_no_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    made = datasets.Dataset.from_list(rows_of("unpaired", 20))
    if name == "rows.arrow":
        made.save_to_disk(tmp_path / "saved")
        path.write_bytes(next((tmp_path / "saved").glob("*.arrow")).read_bytes())
    elif name == "rows.json":
        path.write_text(json.dumps(rows_of("unpaired", 20)))
    else:
        {"jsonl": made.to_json, "csv": made.to_csv, "parquet": made.to_parquet}[name[5:]](path)
    assert len(open_rows(str(path))) == 20
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 5])
    assert str(path) in complaint(str(path), "unpaired")


def test_folders_of_datasets(tmp_path: Path) -> None:
    made = datasets.Dataset.from_list(rows_of("prompts", 4))
    made.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=made, test=made.select(range(2))).save_to_disk(tmp_path / "splits")
    for name in ("saved", "splits"):
        assert [row["prompt"] for row in open_rows(str(tmp_path / name))] == ["0+0=", "0+1=", "0+2=", "0+3="]
    (tmp_path / "none").mkdir()
    said = complaint(str(tmp_path / "none"), "prompts")
    assert "none cannot be read" in said and "help: give one of its files" in said


@pytest.mark.parametrize(("name", "text"), [("rows.csv", "prompt,completion\n"), ("rows.json", "[]")])
def test_a_file_without_rows(name: str, text: str, write: Write) -> None:
    assert f"{name} has no rows\n help: give a file with rows" in complaint(write(text, name), "demonstrations")


def test_an_unknown_extension(write: Write) -> None:
    said = complaint(write("x", "rows.xlsx"), "prompts")
    assert "unknown kind of file `.xlsx`" in said and ".parquet" in said


def test_a_broken_line_has_its_number(write: Write) -> None:
    said = complaint(write('{"prompt": "a"}\n\n{"prompt": "b"\n'), "prompts")
    assert "rows.jsonl:3: this line is not JSON" in said


def test_a_line_that_is_no_object(write: Write) -> None:
    assert "rows.jsonl:2: expected an object" in complaint(write('{"prompt": "a"}\n[1, 2]\n'), "prompts")


def test_a_missing_column_shows_those_that_are_there_and_the_mend(write: Write) -> None:
    said = complaint(write([{"question": "a", "solution": "b"}]), "demonstrations")
    assert "no column `prompt`, `completion`; it has `question`, `solution`" in said
    assert "help: rename the columns to prompt, completion (or messages alone, or text), or give another file" in said
    with pytest.raises(GroError, match="give another file with --eval-data"):
        check_columns(open_rows(write([{"prompt": "a", "chosen": "b"}])), "preference", "--eval-data")


def test_rows_of_another_kind_are_recognized(write: Write) -> None:
    said = complaint(write(rows_of("preference", 3)), "unpaired")
    assert "these are rows for a method with `data preference`" in said


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": None, "completion": "b", "label": True}, "`prompt` is missing"),
        ({"prompt": "a", "completion": "  ", "label": True}, "`completion` is empty"),
        ({"prompt": "a", "completion": "b", "label": None}, "`label` is None"),
        ({"prompt": "a", "completion": "b"}, "`label` is None"),
    ],
)
def test_a_bad_row_has_its_line(row: dict[str, Any], said: str, write: Write) -> None:
    good = {"prompt": "a", "completion": "b", "label": True}
    found = complaint(write([good, good, row]), "unpaired")
    assert "rows.jsonl:3: " in found and said in found


@pytest.mark.parametrize("label", [2, 0.5, "yes"])
def test_a_label_is_true_false_or_a_sign(label: Any, write: Write) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": label}]
    assert "a label is true or false, 1 or 0, 1 or -1" in complaint(write(rows), "unpaired")


def test_labels_in_every_spelling(write: Write) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in (1, 0, -1)]
    examples = load_examples(open_rows(write(rows)), "unpaired", ENCODER, Limits(None))
    assert [example.labels for example in examples.take([0, 1, 2])] == [(1.0,), (-1.0,), (-1.0,)]


def test_a_column_that_changes_its_type(write: Write) -> None:
    """Recent versions of `datasets` read such a file; for older ones the line is found."""
    path = write('{"prompt": "a", "answer": "1"}\n{"prompt": "b", "answer": {"x": 1}}\n')
    said = str(broken_line(Path(path)))
    assert "rows.jsonl:2: column `answer` is an object here and text on line 1" in said


def test_many_bad_rows_are_counted_in_one_message(write: Write) -> None:
    said = complaint(write([{"prompt": "a", "completion": "", "label": True}] * 9), "unpaired")
    assert "rows.jsonl:1:" in said and "rows.jsonl:3:" in said and "… and 6 more rows" in said


def test_rows_past_the_window_are_refused_and_left_out_on_request(write: Write) -> None:
    path = write([{"prompt": "short", "completion": "b"}, {"prompt": "x" * 70, "completion": "b"}])
    said = complaint(path, "demonstrations", Limits(window=64))
    assert "rows.jsonl:2: the prompt has 70 tokens, and the model's window is 64" in said and "--max-prompt" in said
    kept = load_examples(open_rows(path), "demonstrations", ENCODER, Limits(window=64, prompt=20))
    assert kept.kept == (0,)
    path = write([{"prompt": "a" * 40, "completion": "b" * 40}])
    assert "prompt and completion have 40 + 41 tokens" in complaint(path, "demonstrations", Limits(window=64))
    cut = load_examples(open_rows(path), "demonstrations", ENCODER, Limits(window=64, completion=8))
    assert len(cut.take([0])[0].completions[0]) == 8


def test_a_prompt_needs_room_for_its_samples(write: Write) -> None:
    path = write([{"prompt": "a" * 40}])
    assert "40 + 30 tokens" in complaint(path, "prompts", Limits(window=64, completion=30))


def test_completions_end_and_prompts_do_not(write: Write) -> None:
    examples = load_examples(open_rows(write(rows_of("preference", 2))), "preference", ENCODER, Limits(None))
    first = examples.take([0])[0]
    assert [ids[-1] for ids in first.completions] == [END, END] and END not in first.prompt
    assert first.labels == (1.0, -1.0)


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def test_conversations_go_through_the_chat_template(write: Write) -> None:
    encoder = Encoder(tokenizer(TEMPLATE))
    path = write([conversation("1+1=", "2")])
    example = load_examples(open_rows(path), "demonstrations", encoder, Limits(None)).take([0])[0]
    assert encoder.tokenizer.decode(example.prompt) == "<user>1+1=<assistant>"
    assert encoder.tokenizer.decode(example.completions[0]) == "2|end|"


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def test_conversations_in_the_other_forms_of_trl(write: Write) -> None:
    encoder = Encoder(tokenizer(TEMPLATE))
    asked, right, wrong = turn("user", "1+1="), turn("assistant", "2"), turn("assistant", "3")
    plain = {"prompt": [asked], "chosen": [right], "rejected": [wrong]}
    forms = [plain, {"chosen": [asked, right], "rejected": [asked, wrong]}]
    forms += [{**forms[1], "prompt": "1+1="}]  # as UltraFeedback has it: the prompt once more, as a text
    found = []
    for at, row in enumerate(forms):
        rows = with_prompts(open_rows(write([row], f"pairs{at}.jsonl")), "preference")
        check_columns(rows, "preference")
        check_rows(rows, "preference")
        found.append(load_examples(rows, "preference", encoder, Limits(None)).take([0])[0])
    assert all((one.prompt, one.completions) == (found[0].prompt, found[0].completions) for one in found)
    rows = with_prompts(open_rows(write([{"messages": [asked, right, asked, wrong]}])), "demonstrations")
    check_columns(rows, "demonstrations")
    check_rows(rows, "demonstrations")
    assert rows[0]["prompt"] == [asked, right, asked] and rows[0]["completion"] == [wrong]
    assert [row["completion"] for row in rows] == [[wrong]]
    path = write([{"messages": [asked, right]}, {"messages": [asked]}])
    with pytest.raises(
        GroError,
        match=r":2: expected messages with role and content that end with an assistant's\n help: mend or remove",
    ):
        with_prompts(open_rows(path), "demonstrations")
    path = write([{"chosen": [right], "rejected": [wrong]}])
    with pytest.raises(GroError, match=":1: expected `chosen` and `rejected` that begin with the same messages"):
        with_prompts(open_rows(path), "preference")


def test_conversations_of_sharegpt_are_messages(write: Write) -> None:
    """Under either name of the column; `human` and `gpt` are the user and the assistant, as templates know them."""
    said = [{"from": who, "value": text} for who, text in (("system", "Add."), ("human", "1+1="), ("gpt", "2"))]
    for name in ("messages", "conversations"):
        rows = checked(open_rows(write([{name: said}], f"{name}.jsonl")), "demonstrations")
        assert rows[0]["prompt"] == [turn("system", "Add."), turn("user", "1+1=")]
        assert rows[0]["completion"] == [turn("assistant", "2")]
    with pytest.raises(GroError, match=r":1: expected messages with role and content that end with an assistant's"):
        checked(open_rows(write([{"conversations": said[:2]}])), "demonstrations")


def test_a_completion_that_brings_the_prompt_along_is_refused(write: Write) -> None:
    asked, right, wrong = turn("user", "1+1="), turn("assistant", "2"), turn("assistant", "3")
    row = {"prompt": [asked], "chosen": [asked, right], "rejected": [wrong]}
    with pytest.raises(GroError, match=r":1: `chosen` begins with a message of the user; it is the answer alone"):
        checked(open_rows(write([row])), "preference")


def test_a_text_is_a_demonstration_without_a_prompt(write: Write) -> None:
    rows = with_prompts(open_rows(write([{"text": f"text {at}"} for at in range(20)])), "demonstrations")
    check_columns(rows, "demonstrations")
    check_rows(rows, "demonstrations")
    examples = load_examples(rows, "demonstrations", ENCODER, Limits(None))
    only = examples.take([3])[0]
    assert len(only.prompt) == 1 and ENCODER.tokenizer.decode(only.completions[0][:-1]) == "text 3"
    rest, held = examples.divide(2, 0)
    assert (len(rest), len(held)) == (18, 2)  # the empty prompt is one of all of them
    with pytest.raises(GroError, match=":2: expected a text"):
        with_prompts(open_rows(write([{"text": "a"}, {"text": " "}])), "demonstrations")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: 1+1? A: 12", "Q: 1+1? A: 13", "Q: 1+1? A:"),  # whole words, with their space
        ("Q\n\nYes, it is", "Q\n\nNo", "Q\n\n"),
    ],
)
def test_plain_pairs_without_a_prompt_have_the_one_that_both_begin_with(
    chosen: str, rejected: str, prompt: str, write: Write
) -> None:
    row = with_prompts(open_rows(write([{"chosen": chosen, "rejected": rejected}])), "preference")[0]
    assert row["prompt"] == prompt and prompt + row["chosen"] == chosen and prompt + row["rejected"] == rejected


def test_plain_pairs_that_begin_or_end_alike_are_refused(write: Write) -> None:
    for chosen, rejected in (("a b", "c d"), ("a b", "a "), ("a b c", "a b ")):
        with pytest.raises(GroError, match=":1: expected `chosen` and `rejected` that begin with the same words"):
            with_prompts(open_rows(write([{"chosen": chosen, "rejected": rejected}])), "preference")


def test_tokens_that_the_model_does_not_know_are_refused(write: Write) -> None:
    said = complaint(write([{"prompt": "ab", "completion": "cd"}]), "demonstrations", Limits(None, known=1))
    assert re.search(
        r":1: the tokenizer gives token \d+, and the model has embeddings for tokens 0 to 0\n help: use", said
    )


def test_conversations_without_a_chat_template(write: Write) -> None:
    said = complaint(write([conversation("1+1=", "2")]), "demonstrations")
    assert "the tokenizer has no chat template\n help: give one with --chat-template" in said


def test_text_and_conversation_do_not_mix(write: Write) -> None:
    rows = [{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}]
    assert "differ in kind" in complaint(write(rows), "demonstrations")


def test_demonstrations_join_the_prompts_that_they_answer(write: Write) -> None:
    prompts = load_examples(open_rows(write(rows_of("prompts", 4), "p.jsonl")), "prompts", ENCODER, Limits(None))
    shown = load_examples(
        open_rows(write(rows_of("demonstrations", 2), "d.jsonl")), "demonstrations", ENCODER, Limits(None)
    )
    mixed = with_demonstrations([prompts], [shown])[0]
    assert [len(example.completions) for example in mixed.take([0, 1, 2, 3])] == [1, 1, 0, 0]
    other = load_examples(
        open_rows(write([{"prompt": "else", "completion": "x"}], "o.jsonl")), "demonstrations", ENCODER, Limits(None)
    )
    with pytest.raises(GroError, match="no demonstration of"):
        with_demonstrations([prompts], [other])


def test_the_order_of_rows_follows_from_seed_and_epoch_alone() -> None:
    whole = positions(5, 7, 0, 21)
    assert [*positions(5, 7, 0, 10), *positions(5, 7, 10, 11)] == whole
    assert sorted(whole[:7]) == sorted(whole[7:14]) == list(range(7)) and whole[:7] != whole[7:14]
    assert positions(6, 7, 0, 7) != whole[:7]


def test_held_out_rows_are_not_trained_on(write: Write) -> None:
    examples = load_examples(open_rows(write(rows_of("prompts", 20))), "prompts", ENCODER, Limits(None))
    rest, apart = examples.divide(4, seed=0)
    assert len(rest) == 16 and len(apart) == 4 and not set(rest.kept) & set(apart.kept)


def test_a_prompt_that_is_held_out_is_in_no_row_that_is_trained_on(write: Write) -> None:
    """Each prompt stands on two rows, as where several answers of one question are kept."""
    twice = [{"prompt": f"{row % 10}?", "completion": str(row)} for row in range(20)]
    examples = load_examples(open_rows(write(twice)), "demonstrations", ENCODER, Limits(None))
    rest, apart = examples.divide(4, seed=0)
    shown = {examples.rows[number]["prompt"] for number in apart.kept}
    assert len(apart) == 4 and len(rest) == 20 - 2 * len(shown)
    assert not shown & {examples.rows[number]["prompt"] for number in rest.kept}
