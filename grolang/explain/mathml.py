"""LaTeX to MathML Core, which browsers draw without scripts, fonts or a network."""

from __future__ import annotations

from functools import cache
from typing import Any

from grolang.language.diagnostics import GroError


def converted(latex: str, *, display: bool = False) -> str:
    """A `<math>` element. Without the package math-core this is a GroError that says how to get it."""
    return str(_converter().convert_with_local_state(latex, displaystyle=display))


@cache
def _converter() -> Any:
    try:
        from math_core import LatexToMathML
    except ImportError:
        help = "pip install 'grolang[explain]'; --markdown and --latex do without"
        raise GroError.plain("formulas in HTML need the package math-core", help=help) from None
    return LatexToMathML()
