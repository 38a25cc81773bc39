"""All commands under one name. Only the command that is called is imported, so that none waits for the others."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
import typer.main

#: in the order of `--help`
COMMANDS = (  # a text, since a list would take a line a word
    """run reward replay check fmt show explain table emit new list test equiv diff lift audit lsp runs compare report
    doctor explain-error version""".split()  # noqa: SIM905
)
#: a command's file and function where its own word is a name of Python's, or is none
NAMED = {"list": "list_methods", "explain-error": "explain_error"}


def top(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Training methods for language models as text files: checked, compiled to exact gradients, run."""
    if show_version:
        from grolang.cli.version import version

        version()
        raise typer.Exit


def command(word: str = "") -> Any:
    """The command line as typer's callable object: the one command of this name, or all where there is none."""
    made = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
    made.callback(invoke_without_command=True)(top)
    for name in [word] if word in COMMANDS else COMMANDS:
        function = NAMED.get(name, name)
        module = import_module(f"grolang.cli.{function}")
        made.command(name, cls=getattr(module, "Command", None))(getattr(module, function))
    return typer.main.get_command(made)
