"""The files that a command line names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from grolang.language.diagnostics import GroError


def named(words: Iterable[str]) -> list[str]:
    """Files, names of built-in methods, and for a folder every .gro file below it, each once, in order.

    Hidden folders and links to folders are not entered. A folder without any .gro file is a GroError.
    """
    found: dict[str, None] = {}
    for word in words:
        if not Path(word).is_dir():
            found[word] = None
            continue
        inside = list(_below(word))
        if not inside:
            raise GroError.plain(f"there is no .gro file in `{word}`", help="name another folder", code="E602")
        found.update(dict.fromkeys(inside))
    return list(found)


def _below(folder: str) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (str(Path(place, name)) for name in sorted(names) if name.endswith(".gro"))


def write_new(path: str | os.PathLike[str], text: str, *, force: bool | None = None) -> None:
    """Write a file that is not there yet; `force` is the value of a --force flag, where the command has one."""
    try:
        with open(path, "w" if force else "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        help = "choose another name, or " + ("delete it first" if force is None else "give --force to replace it")
        raise GroError.plain(f"`{os.fspath(path)}` is there already", help=help, code="E602") from None
    except OSError as error:
        message = f"cannot write `{os.fspath(path)}`: {error.strerror}"
        raise GroError.plain(message, help="look at the path and its permissions", code="E602") from None
