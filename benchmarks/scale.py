"""How the cost of the compiled loss grows.

    python benchmarks/scale.py
    python benchmarks/scale.py --only rows --rows 1024 4096 16384 --hidden 4096
    python benchmarks/scale.py --only vocabulary --vocabulary 32768 131072 262144

One setting is changed at a time: tokens, vocabulary, completions of a prompt, token slots of a sequence, the share of
groups whose rewards are all equal, and the share of slots that hold a token. Seconds of loss and gradients, least of
three; `against` is the ratio to the middle setting, to be read beside how the number of products grows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from measure import least
from peers import compiled, problem
from rich.console import Console
from rich.table import Table

MIDDLE: dict[str, float] = {
    "rows": 2048,
    "vocabulary": 32768,
    "group_size": 8,
    "slots": 64,  # 32 sequences in 4 groups
    "dead": 0.0,
    "valid": 1.0,
}
CHANGES: dict[str, list[float]] = {
    "rows": [1024, 2048, 4096, 8192],
    "vocabulary": [8192, 32768, 131072],
    "group_size": [2, 8, 32],
    "slots": [16, 64, 256],
    "dead": [0.0, 0.25, 0.5, 1.0],
    "valid": [1.0, 0.5, 0.25],
}


def seconds(method: str, hidden: int, setting: dict[str, float]) -> float:
    """Of one loss with its gradients."""
    whole = {name: value if name in ("dead", "valid") else int(value) for name, value in setting.items()}
    p = problem(method, hidden=hidden, **whole)  # type: ignore[arg-type]  # whole numbers but two
    p.hidden.requires_grad_()
    p.weight.requires_grad_()

    def step() -> None:
        p.hidden.grad = p.weight.grad = None
        torch.autograd.backward(compiled(p))

    return least(step, "cpu", 3)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--method", default="grpo")
    made.add_argument("--hidden", type=int, default=512)
    for name, values in CHANGES.items():
        made.add_argument(f"--{name.replace('_', '-')}", type=type(values[0]), nargs="+", default=values)
    made.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES), help="what is changed")
    made.add_argument("--json", help="write the numbers here")
    args = made.parse_args()
    middle = seconds(args.method, args.hidden, MIDDLE)
    table = Table("changed", "to", "seconds", "against", title=f"{args.method}, D {args.hidden}, else {MIDDLE}")
    rows = []
    for name in args.only:
        for value in getattr(args, name):
            found = seconds(args.method, args.hidden, MIDDLE | {name: value})
            rows.append({"changed": name, "to": value, "seconds": found, "against": found / middle})
            table.add_row(name, f"{value:g}", f"{found:.2f}", f"{found / middle:.2f}")
    Console().print(table)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
