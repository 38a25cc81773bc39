"""Sequences padded and packed through one model: `python benchmarks/packing.py [--json packing.json]`.

Forward and backward pass of one micro-batch with given coefficients, fp32, the two ways in turn, the least of each.
`tokens` is how many go through the model padded, against packed: what can be gained but for attention and copying.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from measure import least
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from grolang.runtime.packing import enable
from grolang.runtime.policy import Policy, Tokens, given

VOCABULARY = 8192
SHAPES: dict[str, tuple[int, int, tuple[int, int], tuple[int, int]]] = {
    # prompts, completions of each, tokens of a prompt, of a completion
    "32 of one length": (32, 1, (32, 32), (32, 32)),
    "32 uneven": (32, 1, (8, 32), (8, 96)),
    "16 pairs": (16, 2, (40, 120), (16, 64)),
    "4 groups of 8": (4, 8, (64, 64), (48, 48)),
    "4 uneven groups of 8": (4, 8, (32, 128), (8, 96)),
    "8 long, uneven": (8, 1, (32, 32), (32, 1000)),
    "2 long prompts, groups of 8": (2, 8, (400, 600), (32, 64)),
    "4 pairs of long prompts": (4, 2, (400, 600), (32, 128)),
}


def sequences(shape: str) -> list[tuple[list[int], list[int]]]:
    """(prompt, completion) pairs of random tokens."""
    prompts, each, prompt, completion = SHAPES[shape]
    draw = torch.Generator().manual_seed(0)

    def ids(between: tuple[int, int]) -> list[int]:
        count = int(torch.randint(between[0], between[1] + 1, (1,), generator=draw))
        return torch.randint(0, VOCABULARY, (count,), generator=draw).tolist()

    first = [ids(prompt) for _ in range(prompts)]
    return [(first[row // each], ids(completion)) for row in range(prompts * each)]


def measure(model: LlamaForCausalLM, pairs: Sequence[tuple[list[int], list[int]]], repeat: int) -> dict[str, float]:
    device = model.device
    tokens = Tokens.of(pairs, 0, device)
    coefficients = torch.randn(int(tokens.target.sum()), device=device)
    seen: list[int] = []
    hook = (
        model.get_decoder().layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0][..., 0].numel()))
    )

    def once(policy: Policy) -> None:
        model.zero_grad()
        loss, _, _ = policy(tokens, given(coefficients))
        loss.backward()

    ways = {"padded": Policy(model), "packed": Policy(model, packed=True)}
    for policy in ways.values():
        once(policy)
    hook.remove()
    times = dict.fromkeys(ways, float("inf"))
    for _ in range(repeat):
        for name, policy in ways.items():
            times[name] = min(times[name], least(lambda policy=policy: once(policy), device.type, 1))
    return {**times, "tokens": seen[0] / seen[1], "gain": times["padded"] / times["packed"]}


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--hidden", type=int, default=512)
    made.add_argument("--layers", type=int, default=4)
    made.add_argument("--repeat", type=int, default=7)
    made.add_argument("--json")
    args = made.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32,
    )
    model = LlamaForCausalLM(config).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    assert enable(model) is None
    table, results = Table("", "padded, s", "packed, s", "tokens", "gain"), []
    for shape in SHAPES:
        row = measure(model, sequences(shape), args.repeat)
        results.append({"shape": shape, **row})
        cells = (f"{row['padded']:.3f}", f"{row['packed']:.3f}", f"{row['tokens']:.2f}", f"{row['gain']:.2f}")
        table.add_row(shape, *cells)
    Console().print(table)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
