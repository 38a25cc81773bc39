"""Ctrl-C and SIGTERM, held back until the step is done."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from accelerate import Accelerator
from rich.console import Console

from grolang.runtime.processes import anywhere

SAID = b"\nstopping after this step and saving; press Ctrl-C again to stop at once\n"


@dataclass
class Interrupt:
    """Whether someone asked the run to stop."""

    asked: bool = False

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether a stop was asked for in any process."""
        return anywhere(accelerator, self.asked)


@contextmanager
def held_interrupts(console: Console) -> Iterator[Interrupt]:
    """Ctrl-C (or a scheduler's SIGTERM) is remembered, so that the step is finished and saved; a second one ends."""
    interrupt = Interrupt()

    def remember(number: int, frame: FrameType | None) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True
        if not console.quiet:
            _tell()

    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield interrupt
        return
    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell() -> None:
    """Past Python's buffers: the signal may have come in the midst of a print, which cannot be entered twice."""
    with suppress(OSError, ValueError, AttributeError):  # no such file, or one that is closed
        os.write(sys.__stderr__.fileno(), SAID)  # type: ignore[union-attr]
