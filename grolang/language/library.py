"""Methods by name: the built-in ones, and the files that a method extends.

A name is only ever looked up in two places, the folder of the file that names it and the built-in methods.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.resources import files
from pathlib import Path

from grolang.language.diagnostics import Diagnostic, GroError
from grolang.language.findings import suggested
from grolang.language.source import Source, Span
from grolang.language.syntax import MAX_BYTES


@cache
def built_in() -> dict[str, Source]:
    """Every built-in method by its name, sorted."""
    folder = files("grolang.methods")
    found = (entry for entry in folder.iterdir() if entry.name.endswith(".gro"))
    return {
        entry.name.removesuffix(".gro"): Source(
            f"<built-in>/{entry.name}", entry.read_text(encoding="utf-8"), built_in=True
        )
        for entry in sorted(found, key=lambda entry: entry.name)
    }


def read(path: str | os.PathLike[str]) -> Source:
    """A file's text; anything that cannot be read as UTF-8 is a GroError that says why."""
    shown = os.fspath(path)
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 4)
    except OSError as error:
        raise GroError.plain(f"cannot read `{shown}`: {error.strerror}", help="check the path", code="E602") from None
    if len(raw) > MAX_BYTES:
        help = "a method is a page; split it, or simplify it"
        raise GroError.plain(f"`{shown}` is larger than {MAX_BYTES // 1024} KiB", help=help, code="E104")
    try:
        return Source(shown, raw.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8", "replace")
        source = Source(shown, raw.decode("utf-8", "replace").replace("\r\n", "\n"))
        at = len(before)
        finding = Diagnostic(
            code="E102",
            severity="error",
            message=f"not UTF-8: byte 0x{raw[error.start]:02x} stands at offset {error.start}",
            span=Span(file=shown, start=at, end=at + 1),
            help="save the file as UTF-8",
        )
        raise GroError([finding], {shown: source}) from None


def find(name_or_path: str | os.PathLike[str]) -> Source:
    """A path to a file, or the name of a built-in method."""
    text = os.fspath(name_or_path)
    if _is_file(Path(text)):
        return read(text)
    if text in built_in():
        return built_in()[text]
    if os.sep in text or text.endswith(".gro"):
        stem = Path(text).stem
        hint = f"the built-in method is called `{stem}`" if stem in built_in() else "check the path"
        raise GroError.plain(f"there is no file `{text}`", help=hint, code="E602")
    hint = suggested(text, built_in(), "`grolang list` shows the built-in methods")
    raise GroError.plain(f"there is no built-in method `{text}`, and no such file", help=hint, code="E602")


def sibling(name: str, of: Source) -> Source | None:
    """The method that a file means by a name: a file in its own folder, else a built-in one; never a path."""
    folder = Path(of.name).parent
    path = folder / f"{name}.gro"
    if not of.built_in and _is_file(path) and path.resolve().parent == folder.resolve():
        return read(path)
    return built_in().get(name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the system's names
        return False
