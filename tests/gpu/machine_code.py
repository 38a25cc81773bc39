"""`python -m tests.gpu.machine_code`: every kernel compiled for GPUs, which needs Triton and no GPU."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import grolang
from grolang.compiler.fused import gpu, launch
from grolang.compiler.kernel import PLAIN, kernel

CAPABILITIES = 80, 90
SHARED = 99 * 1024
"""Bytes of shared memory that a program may have on every GPU from compute capability 8.0 on."""


def kernels(operand: str) -> list[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    """Name, function, types of the arguments, values of those known when compiling."""
    flags = {"BIASED": True, "CAPPED": True}
    rows = {"tile": "*fp32", "out": f"*{operand}", "bias": f"*{operand}", "targets": "*i64"}
    scalars = {"width": "i32", "alpha": "fp32", "beta": "fp32"}
    block = flags | {"BLOCK": launch.BLOCK}
    found = []
    weighed = {name: kernel(grolang.load(name).schedule.program, output) for name, output in WEIGHED}
    for name, one in {"plain": PLAIN, **weighed}.items():
        assert one is not None
        more = {f"{word}_out": "*fp32" for word in ("logp", "lse", "entropy", "c")}
        more |= {f"known{index}": "*fp32" for index in one.known}
        found.append((f"rows of {name}", launch._module(one.text).rows, rows | more | scalars, block))
    found.append(("errors", gpu.errors, rows | {"lse": "*fp32", "first": "i32"} | scalars, block))
    height, width, depth = launch.TILES[2 if operand == "bf16" else 4]
    sizes = {"ROWS": height, "COLUMNS": width, "DEPTH": depth}
    dtype = gpu.DTYPES["bfloat16" if operand == "bf16" else "float32"]
    states = {"hidden": f"*{operand}", "weight": f"*{operand}", "bias": f"*{operand}", "targets": "*i64"}
    numbers = dict.fromkeys(("count", "width", "depth", "span", "hidden_row", "weight_row"), "i32")
    types = states | {"found": "*fp32"} | numbers | {"alpha": "fp32", "beta": "fp32"}
    ones = {"hidden_column": 1, "weight_column": 1}
    found.append(("reduced", gpu.reduced, types, flags | sizes | ones | {"OPERAND": dtype}))
    return found


def used(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of stack and local memory, where registers go that there are not enough of."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        said = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return found["REG"], found["STACK"] + found["LOCAL"]


WEIGHED = [("grpo", "coefficient"), ("dpo", "weight")]


def main() -> None:
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for operand, capability in (("bf16", 80), ("fp32", 80), ("bf16", 90), ("fp32", 90)):
        for name, function, types, known in kernels(operand):
            signature = {one: types.get(one, "constexpr") for one in function.arg_names}
            even = {
                (k,): [["tt.divisibility", 16]]
                for k, one in enumerate(function.arg_names)
                if types.get(one, "fp32") != "fp32"
            }
            source = ASTSource(fn=function, signature=signature, constexprs=known, attrs=even)
            made = compiled(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": launch.WARPS})
            shared, (registers, stack) = made.metadata.shared, used(made.asm["cubin"])
            assert "tf32" not in made.asm["ptx"], f"{name} rounds fp32 operands"
            assert "lg2.approx" not in made.asm["ptx"], f"{name} takes logarithms that are wrong near 1"
            assert shared <= SHARED, f"{name}: {shared} bytes of shared memory"
            assert stack == 0, f"{name}: registers spill, {stack} bytes"
            if name.startswith("rows"):
                assert "ld.global.v4" in made.asm["ptx"], f"{name} reads numbers one by one"
            sys.stdout.write(f"{name}, {operand}, sm_{capability}: {registers} registers, {shared} bytes shared\n")


if __name__ == "__main__":
    main()
