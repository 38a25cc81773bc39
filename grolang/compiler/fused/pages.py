"""Large buffers of a CPU on huge pages, where Linux lends them to those who ask (`madvise`, its usual setting).

The first touch of a page of 4 KiB costs more than filling it: 4 times less in all on pages of 2 MiB, and passes and
products over them gain some hundredths. Elsewhere nothing changes, nor where the system refuses.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

from torch import Tensor

HUGE = 2 * 2**20
LARGE = 32 * 2**20
"""Bytes from which on an allocator mostly maps a buffer of its own, so that the advice ends with it."""

ADVICE = 14
"""MADV_HUGEPAGE."""


def on_huge_pages(buffer: Tensor) -> Tensor:
    """The buffer, which nothing has touched yet: its whole pages become huge ones when they are."""
    count = buffer.untyped_storage().nbytes()
    if buffer.device.type != "cpu" or count < LARGE or not sys.platform.startswith("linux"):
        return buffer
    begin = buffer.data_ptr()
    first = -(-begin // HUGE) * HUGE
    _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t((begin + count) // HUGE * HUGE - first), ADVICE)
    return buffer


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
