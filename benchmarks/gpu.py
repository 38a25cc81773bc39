"""Everything that waits for a GPU, in one command: `make gpu`, or `python benchmarks/gpu.py [NAME …]`.

What is installed, the tests that need a GPU, whole runs, the block sizes of the kernels, the tables of the loss and of
a training step against other libraries. What fails leaves its output behind and stops nothing else; the last table says
how each went, and the exit code is 1 where one failed. `--quick` takes small sizes: a few minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
LIMIT = 3600
"""Seconds that one of them may take."""


def jobs(folder: Path, *, quick: bool = False) -> dict[str, list[str]]:
    """Name → command."""
    python = sys.executable
    grolang = [python, "-m", "grolang"]
    steps, sizes = (3, ["1024", "512", "32768"]) if quick else (60, ["8192", "4096", "128256"])

    def loss(name: str, *more: str) -> list[str]:
        size = [word for pair in zip(("--rows", "--hidden", "--vocabulary"), sizes) for word in pair]
        flags = ["--device", "cuda", *size, "--json", str(folder / f"{name}.json"), *more]
        return [python, str(HERE / "loss.py"), *flags]

    def run(method: str, *more: str) -> list[str]:
        return [*grolang, "run", method, "--steps", str(steps), "--output", str(folder / f"run-{method}"), *more]

    made = {
        "doctor": [*grolang, "doctor"],
        "tests": [python, "-m", "pytest", "-rs", str(HERE.parent / "tests/gpu")],
        "run-kto": run("kto"),
        "run-grpo": run("grpo"),
        "run-dpo": run("dpo", "--kernels", "off"),
        "kernels": [python, str(HERE / "blocks.py"), *sizes],
        "loss-grpo": loss("loss-grpo", "--dtype", "bfloat16"),
        "loss-dpo": loss("loss-dpo", "--dtype", "bfloat16", "--method", "dpo"),
        "loss-masked": loss("loss-masked", "--dtype", "bfloat16", "--valid", "0.4", "--dead", "0.25"),
        "loss-frozen": loss("loss-frozen", "--dtype", "bfloat16", "--frozen"),
        "loss-fp32": loss("loss-fp32"),
        "step": [python, str(HERE / "step.py"), "--json", str(folder / "step.json")],
    }
    if not quick:
        made["step-bf16"] = [*made["step"][:-1], str(folder / "step-bf16.json"), "--sizes", "large", "--bf16"]
    return made


def done(chosen: Mapping[str, Sequence[str]], folder: Path, console: Console, limit: float = LIMIT) -> bool:
    """Run each, its output to `folder`/NAME.txt and its end to the console; whether all went well."""
    table, well = Table("", "seconds", "", "output"), True
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in chosen.items():
        console.rule(name)
        path, began = folder / f"{name}.txt", time.perf_counter()
        with path.open("w", encoding="utf-8") as out:
            try:
                code = subprocess.run(
                    command, stdout=out, stderr=subprocess.STDOUT, timeout=limit, check=False
                ).returncode
                said = "" if code == 0 else f"failed: exit code {code}"
            except (OSError, subprocess.TimeoutExpired) as error:
                said = f"failed: {error}"
        console.print(path.read_text(encoding="utf-8", errors="replace")[-4000:], markup=False, highlight=False)
        table.add_row(name, f"{time.perf_counter() - began:.0f}", said, str(path))
        well = well and not said
    console.print(table)
    return well


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("names", nargs="*", help="some of them alone")
    made.add_argument("--output", type=Path, default=Path("runs/gpu"))
    made.add_argument("--quick", action="store_true")
    args = made.parse_args()
    every = jobs(args.output, quick=args.quick)
    if unknown := [name for name in args.names if name not in every]:
        made.error(f"no {', '.join(unknown)}: there are {', '.join(every)}")
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device")
    chosen = {name: every[name] for name in args.names or every}
    sys.exit(0 if done(chosen, args.output, Console()) else 1)


if __name__ == "__main__":
    main()
