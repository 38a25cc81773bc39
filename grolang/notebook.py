"""`%load_ext grolang.notebook`, then `%%gro NAME`: a cell that is checked, explained and compiled into NAME."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load_ipython_extension(shell: Any) -> None:
    """Give IPython the cell magic."""
    shell.register_magic_function(lambda line, cell: gro(shell, line, cell), "cell", "gro")


def gro(shell: Any, line: str, cell: str) -> None:
    """Check the cell; show its findings, or its page; put the method under the name on the line, else its own."""
    from grolang import explain
    from grolang.compiler.method import from_source
    from grolang.language.checker import check
    from grolang.language.diagnostics import render
    from grolang.language.source import Source

    source = Source("cell.gro", cell)
    checked = check(source)
    if checked.findings:
        print(render(checked.findings, checked.sources))  # noqa: T201  # a cell prints
    if checked.method is None:
        return
    method = from_source(source)
    shell.user_ns[line.strip() or method.name] = method
    page = explain.html.rendered(explain.page(method).document(plots=False))
    screen: Any = import_module("IPython.display")
    screen.display(screen.HTML(page))
