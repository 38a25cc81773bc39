"""`grolang version`."""

from __future__ import annotations

import platform

from grolang import __version__
from grolang.cli.paint import say


def version() -> None:
    """Print the versions of grolang and of Python."""
    say(f"grolang {__version__} (Python {platform.python_version()})")
