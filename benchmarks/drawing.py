"""Completions drawn by transformers' `generate` and by ours: `python benchmarks/drawing.py [--json drawing.json]`.

The mid-size model of `step.py` with random weights, its end made as unlikely as any token, so that nearly all
completions come to the limit of 48 tokens. Prompts are padded on the left for `generate`, as trainers do. Seconds are
the least of `--repeat` rounds, in turn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from step import make_model
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, GenerationConfig

from grolang.runtime.decoding import LONG
from grolang.runtime.sampling import Generate, Sampling

SHAPES = {  # tokens of each prompt, completions of each
    "32 short prompts": ([20, 28, 39, 45] * 8, 1),
    "4 short prompts, 8 each": ([20, 28, 39, 45], 8),
    "4 long prompts, 8 each": ([400, 450, 500, 600], 8),
    "2 long prompts, 32 each": ([400, 600], 32),
}


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeat", type=int, default=3)
    made.add_argument("--json")
    args = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_model("mid-size", Path(folder))
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
    draw, how = torch.Generator().manual_seed(0), Sampling(frozenset([3]), 48)
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=how.limit, eos_token_id=3, pad_token_id=3)
    own = Generate(model, own=True, shared_from=LONG)

    def grolang(prompts: list[list[int]]) -> None:
        own(prompts, list(range(len(prompts))), how)

    def generate(prompts: list[list[int]]) -> None:
        ids = pad_sequence([torch.tensor(prompt[::-1]) for prompt in prompts], True, -1).flip(1)
        model.generate(ids.clamp(min=0), attention_mask=(ids >= 0).long(), generation_config=config)

    table, results = Table("", "generate, s", "grolang, s", "times as fast"), []
    for name, (lengths, each) in SHAPES.items():
        drawn = [torch.randint(256, (length,), generator=draw).tolist() for length in lengths]
        prompts = [prompt for prompt in drawn for _ in range(each)]
        best = {"generate": float("inf"), "grolang": float("inf")}
        for _ in range(args.repeat):
            for side in (generate, grolang):
                began = time.perf_counter()
                side(prompts)
                best[side.__name__] = min(best[side.__name__], time.perf_counter() - began)
        theirs, ours = best.values()
        table.add_row(name, f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.2f}")
        results.append({"shape": name, **best})
    Console().print(table)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
