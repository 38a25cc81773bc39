"""`grolang run`: train a model with a method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from grolang.language.diagnostics import GroError

HELP = {
    "model": "Folder or hub name of the model; the embedded one if left out.",
    "reference": "Folder or hub name of the reference model; the model if left out.",
    "data": "JSONL, JSON, CSV or parquet file, or hub name, in TRL's columns; one for each data kind of the method.",
    "eval_data": "Held-out rows, measured before and after.",
    "eval_rows": "How many of them; 0 leaves evaluation out.",
    "steps": "Optimizer steps.",
    "batch": "Rows of the data in a step: pairs, completions or prompts.",
    "micro_batch": "Sequences that pass through the model at once; changes no result.",
    "updates": "Optimizer steps on the same rows and completions.",
    "lr": "Learning rate.",
    "schedule": "Of the rate, after the warm-up: constant, linear or cosine.",
    "warmup": "Steps over which the rate rises.",
    "weight_decay": "AdamW's.",
    "max_grad_norm": "Larger gradients are scaled down to this norm.",
    "set": "A hyper-parameter of the method: --set beta=0.2",
    "score": "A score of the method: --score correct=rewards.py:function, or a built-in one.",
    "group": "Completions drawn for each prompt; the method's number if left out.",
    "temperature": "Of sampling, and of every log-prob.",
    "max_prompt": "Rows with more prompt tokens are left out.",
    "max_completion": "Tokens at which samples end and rows are cut.",
    "precision": "auto, fp32, bf16 or fp64.",
    "output": "Folder of the run; runs/METHOD-N if left out.",
    "save_every": "Steps between checkpoints; 0 saves at the end and at Ctrl-C.",
    "keep": "Checkpoints kept.",
    "seed": "Of the order of rows and of sampling.",
    "config": "TOML file of settings under the flags' names; flags override it.",
    "resume": "Continue the run of the output folder.",
    "trust_remote_code": "Run code that the model's hub folder brings along.",
}
"""What `grolang run --help` says of each flag."""


def option(name: str) -> Any:
    """A flag that is left out unless the user gives it: the defaults are the runtime's own."""
    return typer.Option("--" + name.replace("_", "-"), help=HELP[name])


def run(
    file: Annotated[str | None, typer.Argument(help="A .gro file or the name of a built-in method.")] = None,
    model: Annotated[str | None, option("model")] = None,
    reference: Annotated[str | None, option("reference")] = None,
    data: Annotated[list[str] | None, option("data")] = None,
    eval_data: Annotated[str | None, option("eval_data")] = None,
    eval_rows: Annotated[int | None, option("eval_rows")] = None,
    steps: Annotated[int | None, option("steps")] = None,
    batch: Annotated[int | None, option("batch")] = None,
    micro_batch: Annotated[int | None, option("micro_batch")] = None,
    updates: Annotated[int | None, option("updates")] = None,
    lr: Annotated[float | None, option("lr")] = None,
    schedule: Annotated[str | None, option("schedule")] = None,
    warmup: Annotated[int | None, option("warmup")] = None,
    weight_decay: Annotated[float | None, option("weight_decay")] = None,
    max_grad_norm: Annotated[float | None, option("max_grad_norm")] = None,
    set_: Annotated[list[str] | None, option("set")] = None,
    score: Annotated[list[str] | None, option("score")] = None,
    group: Annotated[int | None, option("group")] = None,
    temperature: Annotated[float | None, option("temperature")] = None,
    max_prompt: Annotated[int | None, option("max_prompt")] = None,
    max_completion: Annotated[int | None, option("max_completion")] = None,
    precision: Annotated[str | None, option("precision")] = None,
    output: Annotated[str | None, option("output")] = None,
    save_every: Annotated[int | None, option("save_every")] = None,
    keep: Annotated[int | None, option("keep")] = None,
    seed: Annotated[int | None, option("seed")] = None,
    config: Annotated[Path | None, option("config")] = None,
    resume: Annotated[bool, option("resume")] = False,
    trust_remote_code: Annotated[bool, option("trust_remote_code")] = False,
) -> None:
    """Train a model with a method, and show it before and after."""
    flags: dict[str, Any] = {name: value for name, value in locals().items() if name not in ("set_", "config")}
    flags |= {
        "method": flags.pop("file"),
        "set": assignments(set_, "--set", number),
        "score": assignments(score, "--score", str),
    }
    from grolang.runtime import start  # torch is needed from here on, and `grolang --help` should not wait for it

    unsaid: tuple[object, ...] = (None, {}, [])
    given = {name: value for name, value in flags.items() if value not in unsaid and value is not False}
    outcome = start(given, config)
    if outcome.interrupted:
        raise typer.Exit(130)


def assignments(items: list[str] | None, flag: str, read: Callable[[str], Any]) -> dict[str, Any]:
    """NAME=VALUE flags as a mapping."""
    found = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            raise GroError.plain(f"{flag} {item}: expected NAME=VALUE", help=f"write {flag} NAME=VALUE")
        found[name] = read(value)
    return found


def number(text: str) -> float:
    """The value of a hyper-parameter."""
    try:
        return float(text)
    except ValueError:
        raise GroError.plain(f"--set: `{text}` is not a number") from None
