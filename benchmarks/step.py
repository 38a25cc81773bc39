"""A whole training step, offline and online, against TRL's trainers: `python benchmarks/step.py [--json step.json]`.

Both sides train the same model on the same rows of the embedded task, with the same batch, AdamW, fp32 weights (with
--bf16 products in bf16), one process each: DPO on pairs, GRPO on prompts with completions of the same number of
tokens (the end of a text is made as unlikely as any other token, so nearly all samples reach the limit). Seconds are
the median time from one optimizer step to the next, the least of `--repeat` runs that the two sides take in turn; `MiB`
is the peak of the process above its start. `difference` is between the gradients of the first offline step, relative
(Frobenius); online the two sides draw different samples. Needs `pip install trl`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import clock, forget_peak, memory
from rich.console import Console
from rich.table import Table
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from grolang.runtime import defaults

SIZES = {  # hidden, layers, vocabulary
    "tiny": (160, 3, 258),
    "mid-size": (384, 6, 8192),
    "large": (2048, 16, 32000),  # for a GPU: --sizes large --bf16
}
PAIRS, PROMPTS, GROUP, TOKENS = 16, 4, 8, 48
NO_CLIP = 1e9
REWARDS = """def correct(completions, **_):
    return [float(sum(map(ord, said)) % 7) for said in completions]
"""  # of samples of a model that knows nothing: rewards that differ, or there would be nothing to compute


def make_model(size: str, folder: Path) -> None:
    """A Llama with random weights and the embedded tokenizer, its vocabulary filled up with words of no use."""
    hidden, layers, vocabulary = SIZES[size]
    tokenizer = AutoTokenizer.from_pretrained(defaults.model_path())
    tokenizer.add_tokens([f"<{i}>" for i in range(vocabulary - len(tokenizer))])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():  # no two alike, so that the two sides' gradients can be matched
        parameter.data += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Watch:
    """Hooks into every optimizer: when it steps, and the gradients of the first step."""

    def __init__(self, device: str) -> None:
        self.times: list[float] = []
        self.gradients: list[torch.Tensor] = []
        self.device = device
        forget_peak(device)
        self.start = memory(device, peak=False)
        register_optimizer_step_pre_hook(self.see)

    def see(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.times.append(clock(self.device))
        if len(self.times) == 1:
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            parameters.sort(key=lambda p: (p.shape, float(p.double().sum())))  # each side has an order of its own
            self.gradients = [p.grad.detach().clone() for p in parameters]

    def found(self) -> dict[str, float]:
        steps = [later - earlier for earlier, later in zip(self.times, self.times[1:])]
        return {"seconds": statistics.median(steps), "MiB": memory(self.device, peak=True) - self.start}


def rows(kind: str, count: int) -> list[dict[str, Any]]:
    lines = defaults.data_path(kind).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def grolang_side(problem: str, model: Path, folder: Path, steps: int, bf16: bool) -> None:
    from grolang.runtime import start

    kind, count = ("preference", PAIRS) if problem == "dpo" else ("prompts", PROMPTS)
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(kind, count)), encoding="utf-8")
    flags: dict[str, Any] = {
        "method": problem,
        "model": str(model),
        "data": [str(data)],
        "eval_rows": 0,
        "steps": steps,
        "batch": count,
        "micro_batch": 2 * PAIRS,
        "lr": 1e-6,
        "warmup": 0,
        "schedule": "constant",
        "max_grad_norm": NO_CLIP,
        "precision": "bf16" if bf16 else "fp32",
        "output": str(folder / "run"),
    }
    if problem == "grpo":
        (folder / "rewards.py").write_text(REWARDS)
        flags |= {"group": GROUP, "max_completion": TOKENS, "score": {"correct": f"{folder / 'rewards.py'}:correct"}}
    start(flags)


def trl_side(problem: str, model: Path, folder: Path, steps: int, bf16: bool) -> None:
    from datasets import Dataset

    common: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "max_steps": steps,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "max_grad_norm": NO_CLIP,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": not torch.cuda.is_available(),
        "bf16": bf16,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "disable_tqdm": True,
        "optim": "adamw_torch",
    }
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model)
    if problem == "dpo":
        from trl import DPOConfig, DPOTrainer

        config = DPOConfig(per_device_train_batch_size=PAIRS, beta=0.1, **common)
        data = Dataset.from_list(rows("preference", PAIRS))
        DPOTrainer(policy, args=config, train_dataset=data, processing_class=tokenizer).train()
        return
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=TOKENS,
        beta=0.04,
        loss_type="grpo",
        **common,
    )

    own: dict[str, Any] = {}
    exec(REWARDS, own)
    data = Dataset.from_list(rows("prompts", PROMPTS))
    trainer = GRPOTrainer(
        policy, reward_funcs=own["correct"], args=config, train_dataset=data, processing_class=tokenizer
    )
    trainer.train()


SIDES = {"grolang": grolang_side, "TRL": trl_side}


def one(args: argparse.Namespace) -> None:
    watch = Watch("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        SIDES[args.one](args.problem, Path(args.model), Path(folder), args.steps, args.bf16)
    torch.save(watch.gradients, args.keep)
    Path(args.keep).with_suffix(".json").write_text(json.dumps(watch.found()))


def difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """Relative, over all parameters at once."""
    apart = sum(float((a - b).double().norm() ** 2) for a, b in zip(left, right, strict=True))
    return (apart / sum(float(b.double().norm() ** 2) for b in right)) ** 0.5


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--steps", type=int, default=8)
    made.add_argument("--repeat", type=int, default=2)
    made.add_argument("--json")
    made.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "mid-size"])
    made.add_argument("--bf16", action="store_true")
    for hidden in ("--one", "--keep", "--problem", "--model"):
        made.add_argument(hidden, help=argparse.SUPPRESS)
    args = made.parse_args()
    if args.one:
        one(args)
        return
    table = Table("", "model", "seconds", "against TRL", "MiB", "difference")
    results, failed = [], list[str]()
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            make_model(size, model)
            for problem in ("dpo", "grpo"):
                found: dict[str, dict[str, float]] = {}
                for side in [*SIDES] * args.repeat:
                    keep = Path(folder) / f"{side}.pt"
                    words = ["--one", side, "--keep", keep, "--problem", problem, "--model", model]
                    words += ["--bf16"] * args.bf16
                    command = [sys.executable, __file__, "--steps", str(args.steps), *map(str, words)]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    if done.returncode == 0:
                        seen = json.loads(keep.with_suffix(".json").read_text())
                        found[side] = min(seen, found.get(side, seen), key=lambda row: row["seconds"])
                    else:
                        failed.append(f"{side}, {problem}, {size}: {done.stderr[-1500:]}")
                apart = None
                if problem == "dpo" and len(found) == len(SIDES):
                    apart = difference(*(torch.load(Path(folder) / f"{side}.pt", map_location="cpu") for side in SIDES))
                for side, row in found.items():
                    ratio = f"{found['TRL']['seconds'] / row['seconds']:.2f}" if "TRL" in found else ""
                    shown = "" if apart is None or side == "TRL" else f"{apart:.1e}"
                    cells = (f"{row['seconds']:.2f}", ratio, f"{row['MiB']:.0f}", shown)
                    table.add_row(f"{problem}, {side}", size, *cells)
                    results.append({"problem": problem, "side": side, "size": size, "difference": apart, **row})
    Console().print(table)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
