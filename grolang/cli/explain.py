"""`grolang explain`: everything that is known of a method, on one page."""

from __future__ import annotations

from typing import Annotated

import typer

from grolang.cli.options import File, Force, Html, Output, Parameters, numbers


def explain(
    file: File,
    html: Html = False,
    latex: Annotated[bool, typer.Option("--latex", help="An article, without curves.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Markdown; with -o the curves lie beside it.")] = False,
    output: Output = None,
    setting: Parameters = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="With or without curves.")] = True,
    force: Force = False,
) -> None:
    """Explain a method: its estimator and coefficient as formulas, its row of Table 1, costs, facts, relatives, curves.

    Without a format it is text for the terminal; with -o the file's suffix (.html, .tex, .md) decides.
    """
    from grolang.cli.deliver import asked, deliver
    from grolang.explain import page

    form = asked(html, latex, markdown, output)
    shown = page(file, **numbers(setting))
    drawn = form == "html" or (form == "markdown" and output is not None)
    bars = shown.plots.values() if plots and form == "text" else ()
    deliver(shown.document(plots=plots and drawn), form, output, force=force, plots=bars)
