"""`grolang fmt`: files in canonical form."""

from __future__ import annotations

import os
from difflib import unified_diff
from pathlib import Path
from typing import Annotated

import typer

from grolang.cli.files import named
from grolang.cli.options import Files
from grolang.cli.paint import say
from grolang.language import library
from grolang.language.diagnostics import GroError
from grolang.language.formatter import format_text
from grolang.language.source import Source


def fmt(
    files: Files,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where a file would change.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Write nothing; show what would change, and fail.")] = False,
) -> None:
    """Lay files out in the one canonical form; comments and spelling stay."""
    changed = 0
    broken: list[GroError] = []
    for name in named(files):
        source = library.find(name)
        if source.built_in and not (check or diff):
            help = f"copy it first: `grolang show {name} > my_{name}.gro`; --check and --diff write nothing"
            raise GroError.plain(f"`{name}` is a built-in method and is not rewritten", help=help, code="E602")
        try:
            new, same = _formatted(source)
        except GroError as error:
            broken.append(error)
            continue
        if same:
            continue
        changed += 1
        if diff:
            before, after = source.text.splitlines(True), new.splitlines(True)
            say("".join(unified_diff(before, after, name, name)).rstrip("\n") or f"{name}: line ends")
        elif check:
            say(f"would change {name}")
        else:
            _write(name, new)
            say(f"changed {name}")
    if broken:
        sources = {name: source for error in broken for name, source in error.sources.items()}
        raise GroError([finding for error in broken for finding in error.diagnostics], sources)
    if changed and (check or diff):
        raise typer.Exit(1)


def _formatted(source: Source) -> tuple[str, bool]:
    """The new text, and whether the file holds exactly that already."""
    new = format_text(source.text, source.name)
    return new, new == source.text if source.built_in else new.encode() == Path(source.name).read_bytes()


def _write(path: str, text: str) -> None:
    """Replace a file in one step, so that no crash leaves half of it; a link stays a link."""
    target = Path(path).resolve()
    beside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with beside.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
        beside.chmod(target.stat().st_mode & 0o7777)
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise GroError.plain(f"cannot write `{path}`: {error.strerror}", help="look at its permissions") from None
