"""Methods explained: formulas, Table 1, costs, facts, relatives and curves, as Markdown, HTML, LaTeX or text.

    from grolang import explain

    page = explain.page("dpo", beta=0.2)          # or a loaded Method, or a path
    page.estimator.gradient.latex                 # a Formula: .latex, .text, .mathml()
    page.row.omega, page.cost, page.facts         # the parts, as values
    page.figures["omega"].svg                     # an SVG element; page.plots holds the numbers
    explain.html.rendered(page.document())        # a whole page, nothing fetched from anywhere
    explain.html.fragment(page.section("estimator"))  # a piece of another page; explain.html.style() is its style

Nothing here imports torch before curves of coefficients are asked for.
"""

from __future__ import annotations

from grolang.explain import html, latex, markdown
from grolang.explain.document import Document, Figure, Section
from grolang.explain.estimator import Estimator
from grolang.explain.formula import Formula
from grolang.explain.page import Page, page
from grolang.explain.row import Row, table_of

__all__ = [
    "Document",
    "Estimator",
    "Figure",
    "Formula",
    "Page",
    "Row",
    "Section",
    "html",
    "latex",
    "markdown",
    "page",
    "table_of",
]
