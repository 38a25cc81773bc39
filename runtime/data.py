"""Rows of a file or of the hub, read through `datasets`; what cannot be read is named with its line."""

from __future__ import annotations

import bz2
import errno
import glob
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import datasets

from grolang.language.diagnostics import GroError, cause
from grolang.runtime.names import check_hub, is_path

Record = Mapping[str, Any]

TEXTS = ("prompt", "chosen", "rejected", "completion", "answer")

WRITTEN = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv"}
READERS = WRITTEN | {".parquet": "parquet", ".arrow": "arrow"}
"""What reads a file, by its ending; first those that are text."""

COMPRESSED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""What opens a compressed file, by the ending after that of its contents: `rows.jsonl.gz`."""

LINES = (".jsonl", ".ndjson")  # files of a row a line
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what only who writes can meet
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


def open_rows(name: str) -> Rows:
    """Read a data file, a folder or a hub data set (its `train` split).

    Raises GroError where there is nothing to read, the extension is unknown, a line is broken or no row is there.
    """
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # a broken file is told below, once
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # or it tells a server of every local file that is read
    if not is_path(name):
        return Rows(name, _from_hub(name))
    path = Path(name)
    _check_text(name, path)
    try:
        rows = Rows(name, _read(name, path))
    except Exception as error:  # the builders raise what their parsers raise
        _check_cache(error, path)
        said = cause(_innermost(error), 2000)
        if NO_ROWS in said:
            raise _without_rows(name) from error
        fault = broken_line(path) or f"{name} cannot be read: {said}"
        raise GroError.plain(fault, help="mend the file" if path.is_file() else "give one of its files") from error
    if len(rows) == 0:
        raise _without_rows(name)
    return rows


def _without_rows(name: str) -> GroError:
    return GroError.plain(f"{name} has no rows", help="give a file with rows")


def _check_text(name: str, path: Path) -> None:
    """It is there, has an ending that is known, and what is text in it is UTF-8."""
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


def _read(name: str, path: Path) -> datasets.Dataset:
    for folder in (path, path / "train"):  # of a `Dataset`, and of a `DatasetDict`
        if (folder / SAVED).is_file():
            return datasets.load_from_disk(str(folder))
    if path.is_dir():
        return datasets.load_dataset(name, split="train")
    kind, options = _ending(path), dict[str, Any]()
    if kind == ".csv":  # which has no types: a completion `7` is a text there as well
        options["converters"] = dict.fromkeys(TEXTS, str)
    return datasets.load_dataset(READERS[kind], split="train", data_files=glob.escape(name), **options)


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
    found, folder = _innermost(error), Path(datasets.config.HF_DATASETS_CACHE).absolute()
    if not isinstance(found, OSError) or found.errno is None:  # which is of the system, and not of a parser
        return
    place = Path(found.filename or folder).absolute()
    within = found.filename is not None and folder in (place, *place.parents)
    above = place in folder.parents and place != data.absolute()  # a folder on the way that cannot be made
    if within or above or found.errno in FULL:
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


def refuse(rows: Rows, faults: Sequence[tuple[int, str]], mend: str = "mend or remove these rows") -> None:
    """Raise the first few faults with their places; nothing where there are none."""
    if not faults:
        return
    said = [f"{rows.place(index)}: {fault}" for index, fault in faults[:SHOWN]]
    if len(faults) > SHOWN:
        said.append(f"… and {len(faults) - SHOWN} more rows")
    raise GroError.plain("\n".join(said), help=mend)
