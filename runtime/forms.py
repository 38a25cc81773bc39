"""Rows in the columns of their kind, which are TRL's: its other forms turned into these, and every row checked."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from grolang.language.diagnostics import GroError
from grolang.runtime.data import Record, Rows, refuse

COLUMNS: dict[str, tuple[str, ...]] = {
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
    "prompts": ("prompt",),
    "demonstrations": ("prompt", "completion"),
}
"""The columns that each data kind must have (LANGUAGE.md, section 3)."""

TALKS = ("messages", "conversations")
SPEAKERS = {"human": "user", "gpt": "assistant"}
"""Who speaks in rows with `from` and `value`, as ShareGPT has them; other names are roles already."""


def with_prompts(rows: Rows, kind: str) -> Rows:
    """TRL's other forms of rows, in the columns of the kind.

    A `text` is a demonstration without a prompt. `messages` (or `conversations`, with `from` and `value`) are one whose
    last message is the completion, an assistant's, and what is before it the prompt. Pairs without a prompt (of
    messages, where they are conversations) have the one that both sides begin with. Other rows are given as they are.
    """
    first, columns, change = rows[0], {*rows.columns}, None
    sides = [first.get(name) for name in ("chosen", "rejected")]
    if kind == "demonstrations" and "text" in columns and not {"prompt", "completion", "messages"} & columns:
        change, wanted = _whole_text, "a text"
    elif kind == "demonstrations" and {*TALKS} & columns and not {"prompt", "completion"} & columns:
        change, wanted = _last_message, "messages with role and content that end with an assistant's"
    elif kind == "preference" and all(isinstance(side, str) for side in sides) and "prompt" not in columns:
        change, wanted = _common_text, "`chosen` and `rejected` that begin with the same words and end with others"
    elif kind == "preference" and all(map(is_conversation, sides)) and isinstance(first.get("prompt", ""), str):
        change = _common_messages
        wanted = "`chosen` and `rejected` that begin with the same messages and end with others"
    if change is None:
        return rows
    refuse(rows, [(at, f"expected {wanted}") for at, row in enumerate(rows) if change(row)["prompt"] is None])
    return replace(rows, change=change, added=COLUMNS[kind])


def _whole_text(record: Record) -> Record:
    said = record["text"]
    whole = isinstance(said, str) and said.strip()
    return {**record, "prompt": "" if whole else None, "completion": said}


def _common_text(record: Record) -> Record:
    """Of plain texts the prompt ends before the first word that differs; the space before it is the completions'."""
    sides = [record["chosen"], record["rejected"]]
    if not all(isinstance(side, str) for side in sides):
        return {**record, "prompt": None}
    count = 0
    for at, (one, other) in enumerate(zip(*sides)):
        if one != other:
            break
        count = at + (one != " ") if one.isspace() else count
    chosen, rejected = (side[count:] for side in sides)
    whole = count and chosen.strip() and rejected.strip()
    return {**record, "prompt": sides[0][:count] if whole else None, "chosen": chosen, "rejected": rejected}


def _last_message(record: Record) -> Record:
    said = [_message(one) for one in next((record[name] for name in TALKS if record.get(name)), [])]
    whole = is_conversation(said) and said[-1]["role"] == "assistant"
    return {**record, "prompt": said[:-1] if whole and said[1:] else None, "completion": said[-1:] if whole else []}


def _message(said: Any) -> Any:
    """A message of ShareGPT's form in the form of all others; others as they are."""
    if not (isinstance(said, dict) and {"from", "value"} <= said.keys()):
        return said
    return {"role": SPEAKERS.get(said["from"], said["from"]), "content": said["value"]}


def _common_messages(record: Record) -> Record:
    sides = [record["chosen"], record["rejected"]]
    if not all(map(is_conversation, sides)):
        return {**record, "prompt": None}
    count = 0
    while count + 1 < min(map(len, sides)) and sides[0][count] == sides[1][count]:
        count += 1
    chosen, rejected = (side[count:] for side in sides)
    return {**record, "prompt": sides[0][:count] or None, "chosen": chosen, "rejected": rejected}


def checked(rows: Rows, kind: str, flag: str = "--data") -> Rows:
    """The rows in the columns of the kind, each of them one; else an error with what is wrong, and where."""
    found = with_prompts(rows, kind)
    check_columns(found, kind, flag)
    check_rows(found, kind)
    return found


def check_columns(rows: Rows, kind: str, flag: str = "--data") -> None:
    """The columns of the kind are there; else an error with those that are, and the edit."""
    missing = [f"`{column}`" for column in COLUMNS[kind] if column not in rows.columns]
    if not missing:
        return
    found = ", ".join(f"`{column}`" for column in rows.columns)
    fitting = [other for other, needed in COLUMNS.items() if set(needed) <= set(rows.columns) and other != "prompts"]
    wanted = ", ".join(COLUMNS[kind]) + (" (or messages alone, or text)" if kind == "demonstrations" else "")
    mend = f"rename the columns to {wanted}, or give another file with {flag}"
    if fitting:
        mend = f"these are rows for a method with `data {fitting[0]}`; this one needs {wanted}"
    raise GroError.plain(f"{rows.name} has no column {', '.join(missing)}; it has {found}", help=mend)


def check_rows(rows: Rows, kind: str) -> None:
    """Every row has texts where texts belong and a label that is one; else an error with the lines."""
    faults = ((index, fault) for index, record in enumerate(rows) if (fault := _fault(kind, record)))
    refuse(rows, list(faults))


def check_filled(rows: Rows, column: str, reader: str) -> None:
    """Every row has a value in a column that `reader` reads; a missing one must not count as a wrong one."""
    values = rows.dataset[column]
    faults = [
        (row, f"`{column}` is missing, and {reader} reads it") for row, value in enumerate(values) if _blank(value)
    ]
    refuse(rows, faults)


def _blank(value: object) -> bool:
    """A CSV file has no other way to leave a value out than an empty text."""
    return _none(value) or (isinstance(value, str) and not value.strip())


def _none(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _fault(kind: str, record: Record) -> str | None:
    for column in COLUMNS[kind]:
        value = record[column]
        if column == "label":
            if as_label(value) is None:
                return f"`label` is {value!r}; a label is true or false, 1 or 0, 1 or -1"
        elif not (isinstance(value, str) or is_conversation(value)):
            return f"`{column}` is {_shown(value)}; expected a text or a list of messages with role and content"
        elif is_conversation(value) != is_conversation(record["prompt"]):
            return f"`{column}` and `prompt` differ in kind; both are texts or both are lists of messages"
        elif column != "prompt" and not text_of(value).strip():
            return f"`{column}` is empty"
        elif column != "prompt" and is_conversation(value) and value[0]["role"] in ("system", "user"):
            return f"`{column}` begins with a message of the {value[0]['role']}; it is the answer alone, after `prompt`"
    return None


def _shown(value: object) -> str:
    return "missing" if _none(value) else repr(value)


def as_label(value: object) -> float | None:
    """+1 or -1 from true/false, 1/0 or 1/-1; None from anything else."""
    if isinstance(value, (bool, int, float)) and value in (1, 0, -1):
        return 1.0 if value == 1 else -1.0
    return None


def is_conversation(value: object) -> bool:
    """Whether a value is a list of messages, each with `role` and `content`."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in value)


def text_of(value: object) -> str:
    """The text of a plain or a conversational prompt or completion."""
    if isinstance(value, list):
        return "\n".join(str(message["content"]) for message in value)
    return str(value)
