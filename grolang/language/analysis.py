"""Facts about a checked method."""

from __future__ import annotations

from grolang.language.declarations import Declarations
from grolang.language.findings import Findings
from grolang.language.ir import MethodIR


def analyse(method: MethodIR, declared: Declarations, findings: Findings) -> None:
    """Add what only the whole method shows."""
