"""`%load_ext grolang.notebook`, then `%%gro NAME`: a cell that is checked, explained and compiled into NAME."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load_ipython_extension(shell: Any) -> None:
    """Give IPython the cell magic."""
    shell.register_magic_function(lambda line, cell: gro(shell, line, cell), "cell", "gro")


def gro(shell: Any, line: str, cell: str) -> None:
    """Check the cell; show its findings, or its page; put the method under the name on the line, else its own.

    A notebook shows the page with formulas, a terminal the same as text. A cell with an error leaves the name as it
    was. A line that is no name is IPython's UsageError.
    """
    from grolang import explain
    from grolang.compiler.method import from_source
    from grolang.explain import terminal
    from grolang.language.checker import check
    from grolang.language.diagnostics import GroError, render
    from grolang.language.source import Source

    name = line.strip()
    if name and not name.isidentifier():
        raise import_module("IPython.core.error").UsageError(f"%%gro takes a name for the method, not `{name}`")
    source = Source("cell.gro", cell)
    checked = check(source)
    if checked.findings:
        print(render(checked.findings, checked.sources))  # noqa: T201  # a cell prints
    if checked.method is None:
        return
    method = from_source(source)
    shell.user_ns[name or method.name] = method
    document = explain.page(method).document(plots=False)
    shown = {"text/plain": terminal.plain(document)}
    try:
        shown["text/html"] = explain.html.rendered(document)
    except GroError as error:  # what HTML needs is not installed: the text is there still
        print(error)  # noqa: T201  # a cell prints
    shell.display_pub.publish(shown)
