"""Time, memory and error of a method's loss and its gradients, against other libraries that are installed.

    python benchmarks/loss.py                              the four settings of the manual's table
    python benchmarks/loss.py --method dpo --rows 4096 --hidden 512 --vocabulary 128256
    python benchmarks/loss.py --dtype bfloat16 --device cuda

Each contender (peers.py) runs in processes of its own on the same numbers, in turn with the others, and its fastest
call counts. `rate` is the fraction of this machine's measured matrix-product rate in the same dtype, counting 6·N·D·V
operations for the N valid tokens, and 4 with --frozen: rows that need not be computed lift it above 1. `MiB` is the
peak of the process above its start, gradients included. `error` is the relative Frobenius error of the gradients
against float64, the worse of hidden states and head; --no-error leaves out that slow reference. The peers:
`pip install trl liger-kernel cut-cross-entropy verl`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from measure import forget_peak, least, matrix_rate, memory
from peers import CONTENDERS, SLOTS, Problem, problem
from rich.console import Console
from rich.table import Table
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TABLE = [
    ["--method", "grpo", "--rows", "4096", "--hidden", "1024", "--vocabulary", "32768"],
    ["--method", "grpo", "--rows", "4096", "--hidden", "512", "--vocabulary", "128256"],
    ["--method", "dpo", "--rows", "4096", "--hidden", "512", "--vocabulary", "128256"],
    ["--method", "grpo", "--rows", "4096", "--hidden", "1024", "--vocabulary", "32768"]
    + ["--valid", "0.4", "--dead", "0.25"],
]
LIMIT = 900
"""Seconds that one contender may take in one process."""
Result = dict[str, float | str]


def given(args: argparse.Namespace) -> Problem:
    """The problem in the dtype and on the device that were asked for."""
    p = problem(args.method, args.rows, args.hidden, args.vocabulary, valid=args.valid, dead=args.dead)
    dtype, device = DTYPES[args.dtype], args.device
    batch = p.batch.to(device)
    return replace(
        p,
        hidden=p.hidden.to(device, dtype).requires_grad_(),
        weight=p.weight.to(device, dtype).requires_grad_(not args.frozen),
        targets=p.targets.to(device),
        batch=batch,
    )


def one(args: argparse.Namespace) -> Result:
    """Seconds and peak MiB of one contender in this process; its gradients go to --keep."""
    p, work = given(args), CONTENDERS[args.one]

    def step() -> None:
        p.hidden.grad = p.weight.grad = None
        torch.autograd.backward(work(p))

    forget_peak(args.device)
    start = memory(args.device, peak=False)
    seconds = least(step, args.device, args.repeat)
    peak = memory(args.device, peak=True) - start
    torch.save((p.hidden.grad, p.weight.grad), args.keep)
    return {"seconds": seconds, "MiB": peak}


def reference(p: Problem) -> tuple[Tensor, Tensor]:
    """Gradients by float64 logits of the rounded inputs, and the method's own coefficients in float64."""
    hidden, weight = p.hidden.detach().double(), p.weight.detach().double()
    logp = torch.stack(
        [
            (states @ weight.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
            for states, targets in zip(hidden, p.targets)
        ]
    )
    c = p.method.coefficients(p.batch.replace(logp=logp))
    d_hidden, d_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
    for s, states in enumerate(hidden):
        errors = (states @ weight.T).softmax(-1)
        errors.scatter_add_(1, p.targets[s, :, None], -torch.ones_like(c[s, :, None])).mul_(c[s, :, None])
        d_hidden[s] = errors @ weight
        d_weight.addmm_(errors.T, states)
    return d_hidden, d_weight


def relative(found: Tensor | None, expected: Tensor) -> float:
    return 0.0 if found is None else float((found.double() - expected).norm() / expected.norm())


def run(name: str, words: list[str], keep: str) -> Result:
    """One contender in a process of its own."""
    command = [sys.executable, __file__, *words, "--one", name, "--keep", keep]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"name": name, "skipped": f"not done after {LIMIT} s"}
    if done.returncode != 0:
        return {"name": name, "skipped": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    return {"name": name, **json.loads(done.stdout.splitlines()[-1])}


def compare(args: argparse.Namespace, words: list[str]) -> list[Result]:
    """Every contender on one setting: the least of the rounds, so that a noisy minute costs nobody its place."""
    p = given(args)
    expected = None if args.no_error else tuple(one.cpu() for one in reference(p))
    if args.device == "cuda":
        torch.cuda.empty_cache()  # the contenders' processes need the room
    operations = (4 if args.frozen else 6) * int(p.batch.mask.sum()) * p.weight.numel()
    rate, results = 0.0, {}
    for _ in range(args.rounds):
        rate = max(rate, matrix_rate(p.hidden.flatten(0, 1), p.weight))
        for name in args.only or CONTENDERS:
            with tempfile.TemporaryDirectory() as folder:
                keep = str(Path(folder) / "gradients.pt")
                found = run(name, words, keep)
                if expected is not None and "skipped" not in found:
                    found["error"] = max(map(relative, torch.load(keep, map_location="cpu"), expected))
            before = results.get(name)
            if before is not None and "skipped" not in before and "skipped" not in found:
                found["seconds"] = min(found["seconds"], before["seconds"])
            results[name] = found
    return [
        found if "skipped" in found else {**found, "rate": operations / float(found["seconds"]) / rate}
        for found in results.values()
    ]


def show(results: list[Result], args: argparse.Namespace) -> None:
    settings = f"N {args.rows}, D {args.hidden}, V {args.vocabulary}, {args.dtype}, {args.device}"
    settings += f", {args.valid:.0%} valid" * (args.valid < 1) + f", {args.dead:.0%} zero advantage" * (args.dead > 0)
    table = Table("", "rate", "MiB", "error", "seconds", title=f"{args.method}, {settings}")
    for result in results:
        numbers = [f"{result[key]:.3g}" if key in result else "" for key in ("rate", "MiB", "error", "seconds")]
        table.add_row(str(result["name"]), *(numbers if "skipped" not in result else ["", "", "", "skipped"]))
    Console().print(table, *(f"{one['name']}: {one['skipped']}" for one in results if "skipped" in one), sep="\n")


def main() -> None:
    words = sys.argv[1:]
    args = parser().parse_args(words)
    torch.set_num_threads(args.threads)
    if args.one:
        sys.stdout.write(json.dumps(one(args)))
        return
    chosen = any(word in ("--method", "--rows", "--hidden", "--vocabulary") for word in words)
    made = []
    for setting in [[]] if chosen else TABLE:
        whole = [*words, *setting]
        args = parser().parse_args(whole)
        results = compare(args, whole)
        show(results, args)
        hidden = ("one", "keep", "json", "only")
        made.append({"settings": {k: v for k, v in vars(args).items() if k not in hidden}, "results": results})
    if args.json:
        Path(args.json).write_text(json.dumps(made, indent=2) + "\n")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--method", default="grpo", help="grpo or dpo, or a method like grpo")
    made.add_argument("--rows", type=int, default=4096, help=f"token slots, a multiple of {SLOTS}")
    made.add_argument("--hidden", type=int, default=1024)
    made.add_argument("--vocabulary", type=int, default=32768)
    made.add_argument("--valid", type=float, default=1.0, help="share of the slots that hold a completion")
    made.add_argument("--dead", type=float, default=0.0, help="share of the groups of zero advantage")
    made.add_argument("--dtype", choices=DTYPES, default="float32")
    made.add_argument("--device", default="cpu")
    made.add_argument("--frozen", action="store_true", help="the head is not trained")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--repeat", type=int, default=3, help="calls in one process")
    made.add_argument("--rounds", type=int, default=2, help="processes of each contender, in turn")
    made.add_argument("--no-error", action="store_true")
    made.add_argument("--only", nargs="*", help="contenders by name")
    made.add_argument("--json", help="write the numbers here")
    made.add_argument("--one", help=argparse.SUPPRESS)
    made.add_argument("--keep", help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    main()
