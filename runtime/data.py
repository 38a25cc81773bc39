"""Rows: data files in TRL's columns, read through `datasets` and checked before anything trains."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import json
import lzma
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import datasets

from grolang.language.diagnostics import GroError, cause
from grolang.language.findings import nearest
from grolang.runtime.names import check_hub, is_path

Record = Mapping[str, Any]

COLUMNS: dict[str, tuple[str, ...]] = {
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
    "prompts": ("prompt",),
    "demonstrations": ("prompt", "completion"),
}
"""The columns that each data kind must have (LANGUAGE.md, section 3)."""

TEXTS = ("prompt", "chosen", "rejected", "completion", "answer")

WRITTEN = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv"}
READERS = WRITTEN | {".parquet": "parquet", ".arrow": "arrow"}
"""What reads a file, by its ending; first those that are text."""

COMPRESSED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""What opens a compressed file, by the ending after that of its contents: `rows.jsonl.gz`."""

LINES = (".jsonl", ".ndjson")  # files of a row a line
NO_ROWS = "corresponds to no data"  # datasets' words for it
SAVED = "state.json"  # what `Dataset.save_to_disk` leaves beside the rows
SHOWN = 3  # faults of a file that a message spells out


@dataclass(frozen=True)
class Rows:
    """The rows of one file or hub data set, in their order."""

    name: str
    dataset: datasets.Dataset
    change: Callable[[Record], Record] | None = None  # from a row as it is written to one in the columns of its kind
    added: tuple[str, ...] = ()  # columns that this gives

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Record:
        record: Record = self.dataset[index]
        return record if self.change is None else self.change(record)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.dataset) if self.change is None else map(self.change, self.dataset)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.dataset.column_names, *self.added]))

    def place(self, index: int) -> str:
        """Where a row stands, as a person finds it: the line of a JSONL file, else the row counted from 1."""
        if _ending(Path(self.name)) in LINES:
            for number, (line, _) in enumerate(_lines(Path(self.name))):
                if number == index:
                    return f"{self.name}:{line}"
        return f"{self.name}, row {index + 1}"


@dataclass(frozen=True)
class Part:
    """A file of the data: what `--data [KIND=]NAME[:WEIGHT]` says. Without weights files count by their rows."""

    name: str
    kind: str
    weight: float | None = None


def read_parts(given: Sequence[str], kinds: Sequence[str]) -> list[Part]:
    """The files of a method that learns from these kinds, in the order of the kinds.

    Files without a kind: one holds all kinds, as many as there are kinds stand in their order.
    """
    words = [_words(text) for text in given]
    if len(kinds) > 1 and all(kind is None for kind, _, _ in words):
        if len(words) not in (1, len(kinds)):
            raise GroError.plain(
                f"--data was given {len(given)} times, and the method learns from {' + '.join(kinds)}",
                help=f"say of what kind each is: --data {kinds[0]}=NAME",
            )
        words = [(kind, *words[at if len(words) > 1 else 0][1:]) for at, kind in enumerate(kinds)]
    parts = [Part(name, kind or kinds[0], weight) for kind, name, weight in words]
    _check_parts(parts, kinds)
    return sorted(parts, key=lambda part: kinds.index(part.kind))


def _check_parts(parts: Sequence[Part], kinds: Sequence[str]) -> None:
    first, *others = kinds
    seen: set[tuple[str, Path]] = set()
    for part in parts:
        if part.kind not in kinds:
            message = f"--data {part.kind}={part.name}: the method learns from {' + '.join(kinds)}"
            raise GroError.plain(message, help="leave that file out")
        if part.weight is not None and part.kind in others:
            message = f"--data {part.name}: {part.kind} join the groups of their prompts, so they have no weight"
            raise GroError.plain(message, help=f"leave out :{part.weight:g}")
        if (place := (part.kind, Path(part.name).resolve())) in seen:
            message = f"--data {part.name} is given twice"
            raise GroError.plain(message, help=f"give it once; a larger share is {part.name}:WEIGHT")
        seen.add(place)
    for kind in kinds:
        if kind not in {part.kind for part in parts}:
            raise GroError.plain(f"--data: no file of {kind}", help=f"add --data {kind}=NAME")
    bare = [part.name for part in parts if part.kind == first and part.weight is None]
    if bare and any(part.weight is not None for part in parts):
        raise GroError.plain("--data: some files have a weight", help=f"give {bare[0]} one too, as {bare[0]}:1")


def _words(text: str) -> tuple[str | None, str, float | None]:
    """Kind, name and weight. A file whose own name looks like that is taken by its name."""
    kind, name, weight = None, text, None
    stem, _, tail = text.rpartition(":")
    if stem and not Path(text).exists() and (number := _number(tail)) is not None:
        name, weight = stem, number
        if not 0 < weight < math.inf:
            raise GroError.plain(
                f"--data {text}: a weight is a number above 0", help=f"write {stem}:1, or leave it out"
            )
    head, equals, rest = name.partition("=")
    if equals and head.isidentifier() and not Path(name).exists():
        kind, name = head, rest
        if kind not in COLUMNS:
            message = f"--data {text}: there is no such file, and `{kind}` is no kind of data"
            close = nearest(kind, COLUMNS)
            mend = f"write {close}={rest}" if close else f"write KIND={rest}, KIND one of {', '.join(COLUMNS)}"
            raise GroError.plain(message, help=mend)
    return kind, name, weight


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def open_rows(name: str) -> Rows:
    """Read a data file, a folder or a hub data set (its `train` split).

    Raises GroError where there is nothing to read, the extension is unknown, a line is broken or no row is there.
    """
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # a broken file is told below, once
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # or it tells a server of every local file that is read
    path = Path(name)
    if not is_path(name):
        return Rows(name, _from_hub(name))
    if not path.exists():
        raise GroError.plain(f"there is no file {name}", help="check the path that --data or --eval-data gives")
    kind = _ending(path)
    if path.is_file() and kind not in READERS:
        known = f"{', '.join(READERS)}, compressed or not ({', '.join(COMPRESSED)})"
        raise GroError.plain(f"{name}: unknown kind of file `{kind or path.suffix}`", help=f"use one of {known}")
    if path.is_file() and path.stat().st_size == 0:
        raise GroError.plain(f"{name} is empty", help="give a file with rows")
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if _ending(file) in WRITTEN and (fault := _not_text(file)):
            raise GroError.plain(fault, help="save the file as UTF-8")
    options: dict[str, Any] = {"data_files": glob.escape(name)} if path.is_file() else {}
    if kind == ".csv":  # which has no types: a completion `7` is a text there as well
        options["converters"] = dict.fromkeys(TEXTS, str)
    try:
        if (path / SAVED).is_file():
            dataset = datasets.load_from_disk(name)
        else:
            dataset = datasets.load_dataset(READERS.get(kind, name), split="train", **options)
    except Exception as error:  # the builders raise what their parsers raise
        _check_cache(error, path)
        said = cause(_innermost(error), 2000)
        if NO_ROWS in said:
            raise GroError.plain(f"{name} has no rows", help="give a file with rows") from error
        fault = broken_line(path) or f"{name} cannot be read: {said}"
        raise GroError.plain(fault, help="mend the file" if path.is_file() else "give one of its files") from error
    if len(dataset) == 0:
        raise GroError.plain(f"{name} has no rows", help="give a file with rows")
    return Rows(name, dataset)


def _ending(path: Path) -> str:
    """The ending that tells what is in a file: `.jsonl` of `rows.jsonl` and of `rows.jsonl.gz`."""
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def _bytes(path: Path) -> IO[bytes]:
    """A file, opened for its contents."""
    return cast(IO[bytes], COMPRESSED.get(path.suffix, open)(path, "rb"))


def _not_text(path: Path) -> str | None:
    """Where a file is not UTF-8, which its reader may find only once a row is used; None where it is."""
    try:
        with _bytes(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    place = f"byte 0x{line[error.start]:02x} at place {error.start + 1} of the line"
                    return f"{path}:{number}: not UTF-8: {place}"
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise GroError.plain(f"{path} cannot be read: {error}", help="mend the file") from error
    return None


def _from_hub(name: str) -> datasets.Dataset:
    if not Path(datasets.config.HF_DATASETS_CACHE, name.replace("/", "___")).is_dir():
        check_hub(name, "file")
    try:
        return datasets.load_dataset(name, split="train")
    except Exception as error:  # whatever the hub or a builder raises
        _check_cache(error, Path(name))
        said = cause(_innermost(error), 2000)
        message = f"there is no file {name}, and no hub data set of that name can be loaded: {said}"
        raise GroError.plain(message, help="check the name; a path may start with ./") from error


def _innermost(error: BaseException) -> BaseException:
    """What a chain of exceptions began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _check_cache(error: BaseException, data: Path) -> None:
    """Raise GroError where it is not the data that failed but the folder in which `datasets` keeps what it has read."""
    found, folder = _innermost(error), datasets.config.HF_DATASETS_CACHE
    if not isinstance(found, OSError) or found.errno is None:  # which is of the system, and not of a parser
        return
    place = Path(found.filename or folder)
    if place != data and data not in place.parents:
        message = f"cannot write to the cache folder {place}: {found.strerror}"
        mend = "free space there, or name a folder of yours: export HF_HOME=FOLDER (HF_DATASETS_CACHE if that is set)"
        raise GroError.plain(message, help=mend) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of the lines that hold a row."""
    with io.TextIOWrapper(_bytes(path), encoding="utf-8-sig") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def broken_line(path: Path) -> str | None:
    """What is wrong in a JSONL file that its reader refused, and on which line; None where nothing is found."""
    if _ending(path) not in LINES:
        return None
    types: dict[str, tuple[int, str]] = {}
    try:
        for number, text in _lines(path):
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                return f"{path}:{number}: this line is not JSON: {error.msg} (column {error.colno})"
            if not isinstance(row, dict):
                return f"{path}:{number}: expected an object of columns, found {_kind(row)}"
            for column, value in row.items():
                first, kind = types.setdefault(column, (number, _kind(value)))
                if _kind(value) != kind and value is not None:
                    return (
                        f"{path}:{number}: column `{column}` is {_kind(value)} here "
                        f"and {kind} on line {first}; a column has one type"
                    )
    except (OSError, UnicodeDecodeError) as error:
        return f"{path} cannot be read: {error}"
    return None


def _kind(value: object) -> str:
    names = {bool: "true or false", str: "text", dict: "an object", list: "a list"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else "nothing")


def with_prompts(rows: Rows, kind: str) -> Rows:
    """TRL's other forms of rows, in the columns of the kind.

    A `text` is a demonstration without a prompt. `messages` are one whose last message is the completion, an
    assistant's, and what is before it the prompt. Pairs without a prompt (of messages, where they are conversations)
    have the one that both sides begin with. Other rows are given as they are.
    """
    first, columns, change = rows[0], {*rows.columns}, None
    sides = [first.get(name) for name in ("chosen", "rejected")]
    if kind == "demonstrations" and "text" in columns and not {"prompt", "completion", "messages"} & columns:
        change, wanted = _whole_text, "a text"
    elif kind == "demonstrations" and "messages" in columns and not {"prompt", "completion"} & columns:
        change, wanted = _last_message, "messages that end with an assistant's"
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
    said = record["messages"]
    whole = is_conversation(said) and said[-1]["role"] == "assistant"
    return {**record, "prompt": said[:-1] if whole and said[1:] else None, "completion": said[-1:] if whole else []}


def _common_messages(record: Record) -> Record:
    sides = [record["chosen"], record["rejected"]]
    if not all(map(is_conversation, sides)):
        return {**record, "prompt": None}
    count = 0
    while count + 1 < min(map(len, sides)) and sides[0][count] == sides[1][count]:
        count += 1
    chosen, rejected = (side[count:] for side in sides)
    return {**record, "prompt": sides[0][:count] or None, "chosen": chosen, "rejected": rejected}


def checked(rows: Rows, kind: str) -> Rows:
    """The rows in the columns of the kind, each of them one; else an error with what is wrong, and where."""
    found = with_prompts(rows, kind)
    check_columns(found, kind)
    check_rows(found, kind)
    return found


def check_columns(rows: Rows, kind: str) -> None:
    """The columns of the kind are there; else an error with those that are, and the edit."""
    missing = [f"`{column}`" for column in COLUMNS[kind] if column not in rows.columns]
    if not missing:
        return
    found = ", ".join(f"`{column}`" for column in rows.columns)
    fitting = [other for other, needed in COLUMNS.items() if set(needed) <= set(rows.columns) and other != "prompts"]
    wanted = ", ".join(COLUMNS[kind])
    mend = f"rename the columns to {wanted}, or give another file with --data"
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


def refuse(rows: Rows, faults: Sequence[tuple[int, str]], mend: str = "mend or remove these rows") -> None:
    """Raise the first few faults with their places; nothing where there are none."""
    if not faults:
        return
    said = [f"{rows.place(index)}: {fault}" for index, fault in faults[:SHOWN]]
    if len(faults) > SHOWN:
        said.append(f"… and {len(faults) - SHOWN} more rows")
    raise GroError.plain("\n".join(said), help=mend)


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
