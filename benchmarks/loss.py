"""Time, memory and error of the log-probs' gradients, against plain logits and against peers that are installed.

    python benchmarks/loss.py --rows 4096 --hidden 512 --vocabulary 32768 --problem grpo --json loss.json

Each contender runs in a process of its own on the same numbers: peaked logits (standard deviation 5, since
nearly flat ones flatter filters). `rate` is the fraction of this machine's measured matrix-product rate in
the same dtype, counting 6·N·D·V operations, and 4 with --frozen: rows that need not be computed lift it
above 1. `MiB` is the peak of the process above its start, gradients included. `error` is the relative
Frobenius error of the gradients against float64, the worse of hidden states and head; --no-error leaves out
that slow reference.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from grolang.compiler.fused import (
    BUDGET,
    Head,
    attach,
    factored_pass,
    forward,
    frozen_logps,
    single_pass,
    surrogate,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLIP, BETA, TOKENS_OF_A_PAIR = 0.2, 0.1, 256


@dataclass(frozen=True)
class Problem:
    """N valid tokens and what their coefficients are made of.

    grpo: c = A·ratio/N, 0 where clipped; ratio against `old` [N], advantage A [N], 0 for a share of the
    tokens. dpo: pairs of 256 tokens, the first half chosen; c = ±β·sigmoid(−β·margin)/pairs.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    old: Tensor
    advantage: Tensor
    pair: Tensor
    sign: Tensor
    kind: str
    budget: int

    def coefficients(self, logp: Tensor, rows: slice = slice(None)) -> Tensor:
        """c [n] of `rows`, which hold whole pairs where the problem is dpo."""
        if self.kind == "grpo":
            ratio, advantage = (logp - self.old[rows]).exp(), self.advantage[rows]
            clipped = torch.where(advantage > 0, ratio > 1 + CLIP, ratio < 1 - CLIP)
            return advantage * ratio * ~clipped / len(self.old)
        return self.scale(logp, rows) * self.sign[rows]

    def scale(self, logp: Tensor, rows: slice = slice(None)) -> Tensor:
        pair = self.pair[rows] - self.pair[rows][0]
        gained = self.sign[rows] * (logp - self.old[rows])
        margin = torch.zeros(int(pair[-1]) + 1, dtype=logp.dtype, device=logp.device).index_add(0, pair, gained)
        return BETA * torch.sigmoid(-BETA * margin)[pair] / (int(self.pair[-1]) + 1)


def problem(args: argparse.Namespace) -> Problem:
    generator = torch.Generator().manual_seed(0)
    n, d, v = args.rows, args.hidden, args.vocabulary
    hidden = torch.randn(n, d, generator=generator)
    weight = torch.randn(v, d, generator=generator).mul_(5 / math.sqrt(d))
    targets = torch.randint(v, (n,), generator=generator)
    old = (hidden * weight[targets]).sum(1) - 12.5 - math.log(v) + 0.1 * torch.randn(n, generator=generator)
    advantage = torch.randn(n, generator=generator) * (torch.rand(n, generator=generator) >= args.dead)
    place = torch.arange(n)
    sign = torch.where(place % TOKENS_OF_A_PAIR < TOKENS_OF_A_PAIR // 2, 1.0, -1.0)
    dtype, device = DTYPES[args.dtype], args.device
    return Problem(
        hidden.to(device, dtype).requires_grad_(),
        weight.to(device, dtype).requires_grad_(not args.frozen),
        targets.to(device),
        old.to(device),
        advantage.to(device),
        (place // TOKENS_OF_A_PAIR).to(device),
        sign.to(device),
        args.problem,
        args.budget * 2**20,
    )


def weighted(p: Problem, logp: Tensor) -> Tensor:
    return -(p.coefficients(logp.detach().float()) * logp).sum()


def fused(p: Problem) -> Tensor:
    """The schedule that fits: single pass for grpo, factored pass for dpo."""
    head = Head(p.weight)
    if p.kind == "grpo":
        found = single_pass(
            p.hidden, head, p.targets, lambda rows, logp, _: p.coefficients(logp, rows), budget=p.budget
        )
    else:
        found = factored_pass(
            p.hidden, head, p.targets, p.sign, p.pair, lambda rows, logp: p.scale(logp, rows), budget=p.budget
        )
    value = -(found.coefficients * found.rows.logp).sum()
    grads = [found.gradients.hidden, found.gradients.weight]
    del found
    return attach(value, (p.hidden, p.weight), grads)


def fused_recompute(p: Problem) -> Tensor:
    head = Head(p.weight)
    known = forward(p.hidden, head, p.targets, budget=p.budget)
    return surrogate(p.hidden, head, p.targets, p.coefficients(known.logp), known=known, budget=p.budget)


def fused_frozen(p: Problem) -> Tensor:
    return weighted(p, frozen_logps(p.hidden, Head(p.weight), p.targets, budget=p.budget)[0])


def plain(p: Problem) -> Tensor:
    logits = (p.hidden @ p.weight.T).float()
    return weighted(p, logits.log_softmax(1).gather(1, p.targets[:, None])[:, 0])


def torch_chunked(p: Problem) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return weighted(p, -F.linear_cross_entropy(p.hidden, p.weight, p.targets, reduction="none", options=options))


def cut_cross_entropy(p: Problem) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy  # type: ignore[import-not-found]

    kind = "cce" if p.hidden.is_cuda else "torch_compile"
    return weighted(p, -linear_cross_entropy(p.hidden, p.weight, p.targets, reduction="none", impl=kind))


def liger(p: Problem) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss  # type: ignore[import-not-found]

    if p.kind != "grpo":
        raise ImportError("only its GRPO loss has a wrapper here")
    loss = LigerFusedLinearGRPOLoss(beta=0.0, epsilon_low=CLIP, epsilon_high=CLIP, loss_type="bnpo")
    rows = (-1, TOKENS_OF_A_PAIR)
    mask = torch.ones_like(p.old).view(rows)
    per_sequence = p.advantage.view(rows)[:, 0]
    states = p.hidden.view(*mask.shape, -1)
    value = loss(states, p.weight, p.targets.view(rows), mask, per_sequence, old_per_token_logps=p.old.view(rows))
    return torch.as_tensor(value[0])


CONTENDERS: dict[str, Callable[[Problem], Tensor]] = {
    "fused": fused,
    "fused, recompute": fused_recompute,
    "plain logits": plain,
    "torch chunked": torch_chunked,
    "cut-cross-entropy": cut_cross_entropy,
    "liger": liger,
}
FROZEN: dict[str, Callable[[Problem], Tensor]] = {"fused, G": fused_frozen}


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Seconds and peak MiB of one contender in this process; its gradients go to --keep."""
    p = problem(args)
    work = (CONTENDERS | FROZEN)[args.one]
    forget_peak(args.device)
    start, seconds = peak_mib(args.device, now=True), []
    for _ in range(args.repeat):
        p.hidden.grad = p.weight.grad = None
        begin = clock(args.device)
        torch.autograd.backward(work(p))
        seconds.append(clock(args.device) - begin)
    peak = peak_mib(args.device) - start
    torch.save((p.hidden.grad, p.weight.grad), args.keep)
    return {"seconds": min(seconds), "MiB": peak}


def matrix_rate(p: Problem) -> float:
    """Operations per second of the three products, at the shape of a chunk of 1024 rows."""
    rows = p.hidden.detach()[:1024]
    tile, d_weight = rows @ p.weight.detach().T, torch.empty_like(p.weight)
    products: list[Callable[[], Tensor]] = [
        lambda: torch.mm(rows, p.weight.detach().T, out=tile),
        lambda: torch.mm(tile, p.weight.detach()),
        lambda: torch.mm(tile.T, rows, out=d_weight.detach()),
    ]
    total = 0.0
    for one in products:
        times = []
        for _ in range(5):
            begin = clock(p.hidden.device.type)
            one()
            times.append(clock(p.hidden.device.type) - begin)
        total += min(times)
    return 6 * len(rows) * p.weight.numel() / total


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: str, *, now: bool = False) -> float:
    if device == "cuda":
        return (torch.cuda.memory_allocated() if now else torch.cuda.max_memory_allocated()) / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    name = "VmRSS:" if now else "VmHWM:"
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def reference(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Gradients by float64 logits of the rounded inputs, coefficients by the same formula, in chunks of pairs."""
    p = problem(args)
    hidden, weight = p.hidden.detach().double(), p.weight.detach().double()
    d_hidden, d_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
    for start in range(0, len(hidden), TOKENS_OF_A_PAIR):
        rows = slice(start, start + TOKENS_OF_A_PAIR)
        log_p = (hidden[rows] @ weight.T).log_softmax(1)
        targets = p.targets[rows, None]
        c = p.coefficients(log_p.gather(1, targets)[:, 0], rows)[:, None]
        errors = log_p.exp_().scatter_add_(1, targets, -torch.ones_like(c)).mul_(c)
        d_hidden[rows] = errors @ weight
        d_weight.addmm_(errors.T, hidden[rows])
    return d_hidden, d_weight


def relative(found: Tensor | None, expected: Tensor) -> float:
    return 0.0 if found is None else float((found.double() - expected).norm() / expected.norm())


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.one:
        sys.stdout.write(json.dumps(measure(args)))
        return
    expected = None if args.no_error else reference(args)
    rate = matrix_rate(problem(args))
    names = list(CONTENDERS | (FROZEN if args.frozen else {}))
    results: list[dict[str, float | str]] = []
    for name in args.only or names:
        with tempfile.TemporaryDirectory() as folder:
            keep = str(Path(folder) / "gradients.pt")
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name, "--keep", keep]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                results.append({"name": name, "skipped": (done.stderr.strip().splitlines() or ["?"])[-1]})
                continue
            found = json.loads(done.stdout)
            if expected is not None:
                grads = torch.load(keep)
                found["error"] = max(relative(*pair) for pair in zip(grads, expected, strict=True))
        operations = (4 if args.frozen else 6) * args.rows * args.hidden * args.vocabulary
        found["rate"] = operations / found["seconds"] / rate
        results.append({"name": name, **found})
    show(results, args)


def show(results: list[dict[str, float | str]], args: argparse.Namespace) -> None:
    title = f"{args.problem}, N {args.rows}, D {args.hidden}, V {args.vocabulary}, {args.dtype}, {args.device}"
    table = Table("", "seconds", "rate", "MiB", "error", title=title)
    for one in results:
        cells = [f"{one[key]:.3g}" if key in one else "" for key in ("seconds", "rate", "MiB", "error")]
        table.add_row(str(one["name"]), *(cells if "skipped" not in one else [str(one["skipped"]), "", "", ""]))
    Console().print(table)
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in ("one", "keep", "json")}
        Path(args.json).write_text(json.dumps({"settings": settings, "results": results}, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096, help="N, a multiple of 256")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--problem", choices=["grpo", "dpo"], default="grpo")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dead", type=float, default=0.0, help="share of tokens of zero advantage")
    parser.add_argument("--frozen", action="store_true", help="the head is not trained")
    parser.add_argument("--budget", type=int, default=BUDGET // 2**20, help="MiB of logits for the fused passes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-error", action="store_true")
    parser.add_argument("--only", nargs="*", help="contenders by name")
    parser.add_argument("--json", help="write the numbers here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--keep", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
