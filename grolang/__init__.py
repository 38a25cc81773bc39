"""grolang: training methods for language models as text files.

    import grolang

    method = grolang.load("dpo", beta=0.2)
    method.coefficients(batch)     # [S, T]: the factor in front of each token's gradient
    grolang.compile(method)        # the same as one fused torch loss

Importing this package imports no torch; the first use of a name that needs it does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from grolang.language.diagnostics import Diagnostic, GroError

if TYPE_CHECKING:
    from grolang.compiler.batch import Batch
    from grolang.compiler.method import Evaluation, Method, load
    from grolang.compiler.module import Compiled, compile

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "Compiled",
    "Diagnostic",
    "Evaluation",
    "GroError",
    "Method",
    "__version__",
    "compile",
    "load",
]

_NEEDS_TORCH = {
    "Batch": "batch",
    "Compiled": "module",
    "Evaluation": "method",
    "Method": "method",
    "compile": "module",
    "load": "method",
}


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        return getattr(import_module(f"grolang.compiler.{_NEEDS_TORCH[name]}"), name)
    raise AttributeError(f"module 'grolang' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What `help(grolang)` and completion show: names that wait for torch are among them."""
    return sorted({*globals(), *__all__})
