"""A method as a row of Table 1 of arXiv:2503.19523: ω, ε*, B and A, with z, what it needs, bias and aggregation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grolang.compiler.needs import needs_of
from grolang.explain.components import argues, components, plain_body
from grolang.explain.document import Block, Document, Items, Link, Paragraph, Section, Table, Words
from grolang.explain.facts import bias
from grolang.explain.formula import Formula
from grolang.explain.notation import ATOM, OPEN, PRODUCT, SUM
from grolang.explain.printer import MINUS, Printer, Written
from grolang.language import library
from grolang.language.checker import check
from grolang.language.diagnostics import Diagnostic
from grolang.language.ir import Argument, MethodIR, constant
from grolang.language.source import heading

#: definitions that a row writes out; what else an author has named stays a name
_EXPANDED = ("measure", "alpha")

HEAD = ("method", "ω(z)", "z", "ε*", "B", "A", "needs", "bias", "aggregation")


@dataclass(frozen=True)
class Row:
    """One method. A cell is None where the estimator does not use that part: ω = 1 compares nothing."""

    name: str
    omega: Formula
    z: Formula | None
    anchor: Formula | None
    baseline: Formula
    advantage: Formula
    needs: str
    bias: str
    aggregation: str

    @property
    def cells(self) -> tuple[Words, ...]:
        """In the order of HEAD."""
        formulas = (self.omega, self.z, self.anchor, self.baseline, self.advantage)
        shown: list[Words] = [(formula,) if formula is not None else ("–",) for formula in formulas]
        return ((Link(self.name),), *shown, (self.needs,), (self.bias,), (self.aggregation,))


def row(method: MethodIR, findings: Sequence[Diagnostic]) -> Row:
    """The row of a checked method."""
    compares, printer = argues(components(method).omega), Printer(method, _EXPANDED)
    return Row(
        name=method.name,
        omega=_omega(printer).tight(),
        z=_z(printer).tight() if compares else None,
        anchor=printer.of(plain_body("anchor", method)).tight() if compares else None,
        baseline=printer.of(plain_body("baseline", method)).tight(),
        advantage=_advantage(printer).tight(),
        needs=", ".join(needs_of(method).words) or "–",
        bias=bias(method, findings).word,
        aggregation=", ".join(step.text for step in method.aggregate),
    )


def _omega(printer: Printer) -> Formula:
    printer.arguments = {"omega": Formula.plain("z")}
    return printer.of(printer.method.functions["omega"].body)


def _z(printer: Printer) -> Formula:
    """α (m − ε*), without what is 1 or 0."""
    method = printer.method
    alpha, measure = plain_body("alpha", method), plain_body("measure", method)
    anchor = method.definitions["anchor"].body
    if constant(anchor) == 0:
        distance, level = printer.of(measure, PRODUCT if constant(alpha) != 1 else OPEN), ATOM
    else:
        distance, level = printer.of(measure, SUM) + MINUS + printer.symbol("anchor", anchor.scope), SUM
    if constant(alpha) == 1:
        return distance
    return printer.of(alpha, PRODUCT) + Formula("", "·") + Written.at(level, distance).held(PRODUCT)


def _advantage(printer: Printer) -> Formula:
    """A, or υ of it where υ is the author's."""
    method, upsilon = printer.method, printer.method.functions["upsilon"]
    body = printer.of(plain_body("advantage", method))
    if isinstance(upsilon.body, Argument):
        return body
    sign = printer.symbol("advantage", method.definitions["advantage"].body.scope)
    printer.arguments = {"upsilon": sign}
    return printer.of(upsilon.body) + Formula(r",\ ", ", ") + sign + " = " + body


def erratum(text: str) -> str:
    """What the comment at a file's head says of a misprint: from `Erratum:` to the line that ends its sentence."""
    lines = heading(text)
    start = next((at for at, line in enumerate(lines) if line.startswith(_ERRATUM)), len(lines))
    end = next((at for at in range(start, len(lines)) if lines[at].endswith(".")), len(lines) - 1)
    return " ".join(lines[start : end + 1]).removeprefix(_ERRATUM).strip()


def table_of(names: Iterable[str] | None = None) -> Document:
    """Table 1 of these files or built-in methods, of all built-in ones where none is named.

    A row whose file notes an erratum of the printed table is marked †; the errata stand below.
    """
    checked = [check(library.find(name)) for name in (library.built_in() if names is None else names)]
    rows, errata = [], []
    for found in checked:
        method = found.unwrap()
        (name, *_), *cells = row(method, found.findings).cells
        noted = erratum(found.sources[method.file].text)
        rows.append(((name, " †") if noted else (name,), *cells))
        errata += [(name, f": {noted}")] if noted else []
    blocks: list[Block] = [Paragraph(_ABOUT), Table(tuple((word,) for word in HEAD), tuple(rows))]
    if errata:
        blocks += [Paragraph(("† departs from what the paper prints, where the method's own paper says otherwise:",))]
        blocks += [Items(tuple(errata))]
    return Document("Table 1 of arXiv:2503.19523, from the files", (Section("", tuple(blocks)),))


_ERRATUM = "Erratum:"
_ABOUT: Words = (
    "The gradient sums ω(z) υ(A) ∇ log π over tokens; where ω depends on no z, nothing is compared. A sequence has the "
    "index i, its token t, its group g; R is the reward, A its advantage over the baseline B.",
)
