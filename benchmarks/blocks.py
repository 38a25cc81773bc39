"""Block sizes of the Triton kernels on this GPU: `python benchmarks/blocks.py [ROWS HIDDEN VOCABULARY]`.

Microseconds of one call with each setting, bf16, and of torch's operations that do the same. The fastest of each belong
into `BLOCK`, `WARPS` and `TILES` of grolang/compiler/fused/launch.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from measure import least
from rich.console import Console
from rich.table import Table

from grolang.compiler.forming import plain_kernel
from grolang.compiler.fused import Head, forward, launch
from grolang.compiler.fused.rows import errors, exponentials

BLOCKS, WARPS = (1024, 2048, 4096, 8192), (4, 8, 16)
TILES = [(128, 128, 64), (128, 256, 64), (64, 128, 64), (64, 256, 64), (128, 128, 32), (128, 64, 64)]
HIGH = 1024  # rows of a chunk


def timed(work: Callable[[], object]) -> str:
    """Microseconds, or why it cannot be run."""
    try:
        work()
        return f"{1e6 * least(work, 'cuda', 5):.0f}"
    except Exception as error:  # a setting that this GPU has no room for
        return f"{type(error).__name__}: {str(error)[:60]}"


def main() -> None:
    rows, width, words = map(int, sys.argv[1:4]) if len(sys.argv) > 3 else (8192, 4096, 128256)
    torch.manual_seed(0)
    states = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
    head = Head(torch.randn(words, width, device="cuda", dtype=torch.bfloat16) * 5 / width**0.5)
    targets = torch.randint(words, (rows,), device="cuda")
    tile = torch.randn(HIGH, words, device="cuda") * 5
    out = torch.empty_like(tile, dtype=torch.bfloat16)
    kernel, console = plain_kernel(), Console()

    def with_torch() -> None:
        found = exponentials(tile, targets[:HIGH], entropy=False)
        out.copy_(errors(tile, targets[:HIGH], found.logp, found.total, found.total.reciprocal()[:, None]))

    table = Table("columns", "warps", "microseconds", title=f"a chunk's rows, {HIGH} by {words}")
    for launch.BLOCK in BLOCKS:
        for launch.WARPS in WARPS:
            said = timed(lambda: kernel(slice(0, HIGH), head, tile, out, targets[:HIGH]))
            table.add_row(str(launch.BLOCK), str(launch.WARPS), said)
    table.add_row("torch", "", timed(with_torch))
    console.print(table)

    table = Table("tile", "warps", "microseconds", title=f"log-probs, {rows} by {width} by {words}")
    for launch.TILES[2] in TILES:
        for launch.WARPS in WARPS[:2]:
            said = timed(lambda: launch.reduced(states, head, targets))
            table.add_row(str(launch.TILES[2]), str(launch.WARPS), said)
    table.add_row("torch", "", timed(lambda: forward(states, head, targets)))
    console.print(table)


if __name__ == "__main__":
    main()
