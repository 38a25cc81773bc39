"""`grolang new`: a commented file to start from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from grolang.cli.files import write_new
from grolang.cli.paint import say
from grolang.cli.templates import TEMPLATES, extending
from grolang.language import library
from grolang.language.diagnostics import GroError
from grolang.language.source import Source
from grolang.language.syntax import parser


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The method's name; the file is NAME.gro.")],
    data: Annotated[
        Literal["preference", "unpaired", "prompts", "demonstrations"] | None,
        typer.Option(help="What the method learns from."),
    ] = None,
    extends: Annotated[
        str | None, typer.Option(metavar="METHOD", help="A method to start from: what it says stands in comments.")
    ] = None,
) -> None:
    """Write NAME.gro: a method that checks, with a comment on every part. Nothing is overwritten."""
    if (data is None) == (extends is None):
        raise typer.BadParameter("give --data KIND, or --extends METHOD")
    pattern = parser().get_terminal("NAME").pattern.to_regexp()
    if not re.fullmatch(pattern, name):
        message = f"`{name}` is no name: letters, digits and `_`, no digit first"
        raise GroError.plain(message, help="such as `my_method`; the file is written here", code="E602")
    if name in library.built_in():
        help = f"call it `my_{name}`; the built-in one can be extended: `extends {name}`"
        raise GroError.plain(f"`{name}` is a built-in method", help=help, code="E602")
    text = TEMPLATES[data].format(name=name) if data else extending(name, parent(extends or ""))
    path = Path(f"{name}.gro")
    write_new(path, text)
    say(f"wrote {path}; check it with `grolang check {path}`, train with `grolang run {path}`")


def parent(name: str) -> Source:
    """As `extends` looks for it: a file of that name in this folder, else a built-in method."""
    if not re.fullmatch(r"\w+", name):
        help = "copy the file into this folder, and give its name without `.gro`"
        raise GroError.plain(f"`{name}` cannot be extended: that takes a name, not a path", help=help, code="E602")
    path = Path(f"{name}.gro")
    return library.read(path) if path.is_file() else library.find(name)
