"""A formula in two spellings at once, LaTeX for pages and plain Unicode for terminals, put together as texts are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Formula:
    """One formula, or a piece of one: LaTeX for pages, Unicode text for terminals."""

    latex: str
    text: str

    @staticmethod
    def plain(text: str) -> Formula:
        """What both spellings write alike."""
        return Formula(text, text)

    def __add__(self, other: Formula | str) -> Formula:
        latex, text = (other, other) if isinstance(other, str) else (other.latex, other.text)
        return Formula(self.latex + latex, self.text + text)

    def __radd__(self, other: str) -> Formula:
        return Formula(other + self.latex, other + self.text)

    def __bool__(self) -> bool:
        """Whether anything is written."""
        return bool(self.latex or self.text)

    def join(self, parts: Iterable[Formula]) -> Formula:
        """The parts with this between them."""
        pieces = list(parts)
        return Formula(self.latex.join(one.latex for one in pieces), self.text.join(one.text for one in pieces))

    def format(self, *parts: Formula) -> Formula:
        """With the parts in the places of `{0}`, `{1}`, …; other braces are doubled."""
        return Formula(self.latex.format(*(one.latex for one in parts)), self.text.format(*(one.text for one in parts)))

    def replace(self, mark: str, by: Formula) -> Formula:
        """With a mark replaced wherever it stands."""
        return Formula(self.latex.replace(mark, by.latex), self.text.replace(mark, by.text))

    def tight(self) -> Formula:
        """With parentheses that grow only around what is tall."""
        return Formula(tightened(self.latex), self.text)

    def mathml(self, *, display: bool = False) -> str:
        """MathML Core, which browsers draw by themselves; needs the package math-core (extra `explain`)."""
        from grolang.explain.mathml import converted

        return converted(self.latex, display=display)


NOTHING = Formula("", "")

_DELIMITER = re.compile(r"\\(left|right)(\\[lr]vert|[()\[\]])")
_TALL = (r"\frac", r"\sum", r"\begin", r"\max_", r"\min_")


def tightened(latex: str) -> str:
    """Without \\left and \\right around what is no taller than a line: they would set it apart."""
    pieces = [""]  # of the text, one more for each open parenthesis
    last, signs = 0, list[str]()
    for found in _DELIMITER.finditer(latex):
        pieces[-1] += latex[last : found.start()]
        last = found.end()
        if found[1] == "left":
            pieces.append("")
            signs.append(found[2])
            continue
        inside, opening = pieces.pop(), signs.pop()
        if any(sign in inside for sign in _TALL):
            pieces[-1] += rf"\left{opening}{inside}\right{found[2]}"
        else:
            pieces[-1] += f"{opening}{inside}{found[2]}"
    return pieces[0] + latex[last:]
