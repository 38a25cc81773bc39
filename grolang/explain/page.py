"""A method explained: its formulas, its row of Table 1, what it costs, what is known of it, its family, its curves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from grolang.explain import curves
from grolang.explain.curves import Plot
from grolang.explain.document import (
    Block,
    Code,
    Display,
    Document,
    Figure,
    Figures,
    Items,
    Listing,
    Paragraph,
    Section,
    Table,
    Words,
)
from grolang.explain.estimator import Estimator, Sign, estimator
from grolang.explain.facts import cost, facts
from grolang.explain.formula import Formula
from grolang.explain.relatives import relatives
from grolang.explain.row import HEAD, Row, row
from grolang.language import library
from grolang.language.checker import check
from grolang.language.diagnostics import Diagnostic
from grolang.language.ir import MethodIR
from grolang.language.parameters import bound
from grolang.language.source import Source, heading

if TYPE_CHECKING:
    from grolang.compiler.method import Method


_COST: tuple[Words, ...] = (("what",), ("per step",))


@dataclass(frozen=True)
class Page:
    """The parts of a method's page. Nothing is drawn, and no torch is imported, before `plots` or `figures` is read.

    estimator: formulas, each with `.latex`, `.text` and `.mathml()`. row: the row of Table 1. cost: what a step
    takes, as (what, how much). facts, relatives: sentences, as words of texts, formulas, code and names.
    """

    ir: MethodIR
    sources: Mapping[str, Source]
    findings: tuple[Diagnostic, ...]

    @property
    def name(self) -> str:
        """The method's name."""
        return self.ir.name

    @cached_property
    def estimator(self) -> Estimator:
        """ĝ, the coefficient and the losses of its laws as formulas, with what each sign means."""
        return estimator(self.ir)

    @cached_property
    def row(self) -> Row:
        """ω, z, ε*, B, A, needs, bias and aggregation."""
        return row(self.ir, self.findings)

    @cached_property
    def cost(self) -> tuple[tuple[str, str], ...]:
        """What a step takes: passes, completions, the schedule of the fused loss; (what, how much)."""
        return cost(self.ir)

    @cached_property
    def facts(self) -> tuple[Words, ...]:
        """Bias and why, ranges, invariances, what a parameter of 0 drops; a sentence each."""
        return facts(self.ir, self.findings)

    @cached_property
    def relatives(self) -> tuple[Words, ...]:
        """What it extends or equals, and what extends or equals it; a sentence each."""
        return relatives(self.ir)

    @cached_property
    def plots(self) -> dict[str, Plot]:
        """`omega` and `upsilon`, where they are functions worth drawing, and `coefficient`."""
        from grolang.compiler.method import Method

        found = (curves.omega(self.ir), curves.upsilon(self.ir), curves.coefficient(Method(self.ir, self.sources)))
        return {plot.name: plot for plot in found if plot is not None}

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """The plots as SVG; needs matplotlib (extra `explain`)."""
        from grolang.explain.plots import drawn

        return {name: drawn(plot) for name, plot in self.plots.items()}

    def section(self, name: str) -> Section:
        """One part of the page: about, estimator, row, cost, facts, relatives, curves or file."""
        return self._sections(plots=name == "curves")[name]

    def document(self, *, plots: bool = True) -> Document:
        """The whole page, to be printed by markdown, html, latex or terminal."""
        sections = self._sections(plots=plots).values()
        return Document(self.ir.title or self.ir.name, tuple(section for section in sections if section.blocks))

    def _sections(self, *, plots: bool = True) -> dict[str, Section]:
        text = self.sources[self.ir.file].text
        about = tuple(Paragraph((line,)) for line in _paragraphs(heading(text)))
        costs = Table(_COST, tuple(((what,), (much,)) for what, much in self.cost))
        return {
            "about": Section("", about),
            "estimator": Section("Estimator", self._estimator()),
            "row": Section("Row of Table 1", (self._row(),)),
            "cost": Section("What a step costs", (costs,)),
            "facts": Section("Facts", (Items(self.facts),)),
            "relatives": Section("Relatives", (Items(self.relatives),) if self.relatives else ()),
            "curves": Section("Curves", (Figures(tuple(self.figures.values())),) if plots else ()),
            "file": Section("The file", (Listing(text.rstrip("\n"), "gro"),)),
        }

    def _row(self) -> Table:
        """The row turned upright: a formula is wider than a column."""
        cells = zip(HEAD[1:], self.row.cells[1:])
        return Table((("column",), (self.name,)), tuple(((word,), cell) for word, cell in cells))

    def _estimator(self) -> tuple[Block, ...]:
        shown = self.estimator
        blocks: list[Block] = [Display((shown.gradient,))]
        if shown.where:
            blocks += [Paragraph(("where",)), Display(shown.where)]
        blocks += [
            Paragraph(("The coefficient of a token, the number in front of its ∇ log π:",)),
            Display((shown.coefficient,)),
        ]
        for name, loss in shown.losses:
            blocks += [Paragraph(("Its law ", Code(name), " says that this descends")), Display((loss,))]
        if shown.loss_where:
            blocks += [Paragraph(("with",)), Display(shown.loss_where)]
        token: Words = (Formula("y_{i,t}", "y_it"), ": token t of completion i, of the prompt ", Formula("x_i", "x_i"))
        token += (", in the group g",) if self.ir.grouped else ()
        return (*blocks, Items((token, *_meanings(shown.signs), *_meanings(shown.parameters))))


def _meanings(signs: tuple[Sign, ...]) -> list[Words]:
    return [(sign.sign, f": {sign.meaning}" if sign.meaning else "") for sign in signs]


def _paragraphs(lines: list[str]) -> list[str]:
    """Comment lines as paragraphs: a line that ends a sentence may be followed by another of the same paragraph."""
    text = "\n".join(lines).strip()
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def page(method: Method | Source | str | os.PathLike[str], /, **params: float) -> Page:
    """The page of a loaded method, of a text, or of a file or built-in method by its name, with parameters set.

    Raises GroError with every error of the file, or for a parameter that it does not have.
    """
    if not isinstance(method, (Source, str, os.PathLike)):
        checked = check(method.sources[method.ir.file])
        return Page(bound(method.ir, params), method.sources, checked.findings)
    checked = check(method if isinstance(method, Source) else library.find(method))
    return Page(bound(checked.unwrap(), params), checked.sources, checked.findings)
