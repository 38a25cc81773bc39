"""All commands under one name. Only the command that is called is imported, so that none waits for the others."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
import typer.main

#: the word on the command line -> the file and its function, in the order of `--help`
COMMANDS = {
    "run": "run:run",
    "reward": "reward:reward",
    "replay": "replay:replay",
    "check": "check:check",
    "fmt": "fmt:fmt",
    "show": "show:show",
    "explain": "explain:explain",
    "table": "table:table",
    "emit": "emit:emit",
    "new": "new:new",
    "list": "list_methods:list_methods",
    "test": "test:test",
    "equiv": "equiv:equiv",
    "diff": "diff:diff",
    "lift": "lift:lift",
    "audit": "audit:audit",
    "lsp": "lsp:lsp",
    "runs": "runs:runs",
    "compare": "compare:compare",
    "report": "report:report",
    "doctor": "doctor:doctor",
    "explain-error": "explain_error:explain_error",
    "version": "version:version",
}


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
        file, function = COMMANDS[name].split(":")
        module = import_module(f"grolang.cli.{file}")
        made.command(name, cls=getattr(module, "Command", None))(getattr(module, function))
    return typer.main.get_command(made)
