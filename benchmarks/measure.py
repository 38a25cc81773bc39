"""Time, memory and the machine's rate: what the benchmarks share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def clock(device: str) -> float:
    """Seconds, once the device has done all that it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def memory(device: str, *, peak: bool) -> float:
    """MiB of this process, now or at its peak since `forget_peak`."""
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def least(work: Callable[[], object], device: str, repeat: int) -> float:
    """Seconds of the fastest of some calls."""
    found = []
    for _ in range(repeat):
        begin = clock(device)
        work()
        found.append(clock(device) - begin)
    return min(found)


def matrix_rate(hidden: Tensor, weight: Tensor) -> float:
    """Operations per second of the three products of a head, at the shape of a chunk of 1024 rows."""
    rows, weight = hidden.detach()[:1024], weight.detach()
    tile, d_weight = rows @ weight.T, torch.empty_like(weight)
    products: list[Callable[[], Tensor]] = [
        lambda: torch.mm(rows, weight.T, out=tile),
        lambda: torch.mm(tile, weight),
        lambda: torch.mm(tile.T, rows, out=d_weight),
    ]
    seconds = sum(least(product, rows.device.type, 5) for product in products)
    return 6 * len(rows) * weight.numel() / seconds
