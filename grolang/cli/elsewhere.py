"""Flags that other trainers have, and what is written here in their place."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

ELSEWHERE = {
    "model_name_or_path": "--model",
    "dataset_name": "--data",
    "output_dir": "--output",
    "loss_type": "the method's name: `grolang list`",
    "beta": "--set beta=…",
    "epsilon": "--set epsilon=…",
    "epsilon_high": "--set epsilon_high=…",
    "num_generations": "--group",
    "per_device_train_batch_size": "--batch, of the whole step, and --micro-batch",
    "gradient_accumulation_steps": "--batch, of the whole step, and --micro-batch",
    "num_iterations": "--updates",
    "max_steps": "--steps",
    "num_train_epochs": "--epochs",
    "learning_rate": "--lr",
    "lr_scheduler_type": "--schedule",
    "warmup_steps": "--warmup",
    "max_completion_length": "--max-completion",
    "max_prompt_length": "--max-prompt",
    "max_length": "--max-prompt and --max-completion",
    "reward_funcs": "--score NAME=FILE.py:FUNCTION",
    "ref_model": "--reference",
    "use_peft": "--lora RANK",
    "lora_r": "--lora",
    "lora_target_modules": "--lora-targets",
    "bf16": "--precision bf16",
    "fp16": "--precision fp16",
    "gradient_checkpointing": "--checkpointing",
    "attn_implementation": "--attention",
    "use_vllm": "--engine vllm",
    "eval_steps": "--eval-every",
    "save_steps": "--save-every",
    "save_total_limit": "--keep",
    "resume_from_checkpoint": "--resume --output FOLDER",
    "report_to": "--track",
}
"""TRL's arguments, by their names in Python."""


class Command(TyperCommand):
    """A command that says of a flag of another trainer what it is called here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            name = str(getattr(error, "option_name", ""))
            if here := ELSEWHERE.get(name.removeprefix("--").replace("-", "_")):
                error.message = f"No such option: {name}. Write {here}."  # type: ignore[attr-defined]
                error.possibilities = None  # type: ignore[attr-defined]
            raise
