"""A run here beside the same script in TRL: same rows, same first steps. Skipped where TRL is not installed."""

from __future__ import annotations

import io
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Write, lines, tiny_model, tokenizer
from rich.console import Console
from transformers import AutoModelForSequenceClassification

from grolang.runtime import start
from grolang.runtime.reward_training import start as start_reward

CHATML = (
    "{% for m in messages %}{% if not loop.first %}\n{% endif %}<{{ m['role'] }}>{{ m['content'] }}|end|{% endfor %}"
    "{% if add_generation_prompt %}\n<assistant>{% endif %}"
)
WIDER = {"max_position_embeddings": 128}
COUNT, STEPS = 8, 2


def rows(kind: str) -> list[dict[str, Any]]:
    found = []
    for at in range(COUNT):
        prompt = [{"role": "user", "content": f"{at}+1="}]
        right, wrong = ([{"role": "assistant", "content": text}] for text in (str(at + 1), f"I think {at}"))
        found.append(
            {
                "preference": {"prompt": prompt, "chosen": right, "rejected": wrong},
                "unpaired": {"prompt": prompt, "completion": wrong if at % 2 else right, "label": at % 2 == 0},
                "demonstrations": {"prompt": prompt, "completion": right},
            }[kind]
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "kind", "method", "told", "options"),
    [
        ("SFT", "demonstrations", "sft", {}, {}),
        ("DPO", "preference", "dpo", {"beta": 0.2}, {"beta": 0.2}),
        ("KTO", "unpaired", "kto", {"undesirable": 1.5}, {"undesirable_weight": 1.5}),
        ("Reward", "preference", "", {}, {}),
    ],
)
def test_the_first_steps_are_those_of_trl(
    trainer: str,
    kind: str,
    method: str,
    told: dict[str, float],
    options: dict[str, float],
    tmp_path: Path,
    write: Write,
) -> None:
    trl = pytest.importorskip("trl", reason="needs TRL")
    load_dataset = import_module("datasets").load_dataset
    model, data = str(tmp_path / "model"), write(rows(kind))
    made = tiny_model(**WIDER)
    made.save_pretrained(model)
    tokenizer(CHATML).save_pretrained(model)
    if trainer == "Reward":
        torch.manual_seed(1)
        AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).save_pretrained(model)
    args = getattr(trl, f"{trainer}Config")(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=COUNT, learning_rate=1e-3, max_steps=STEPS,
        logging_steps=1, save_strategy="no", report_to="none", bf16=False, use_cpu=True, disable_tqdm=True,
        gradient_checkpointing=False, **options,
    )  # fmt: skip
    load = load_dataset("json", data_files=data, split="train", cache_dir=str(tmp_path / "cache"))
    there = getattr(trl, f"{trainer}Trainer")(model=model, args=args, train_dataset=load)
    there.train()
    wanted = [one["grad_norm"] for one in there.state.log_history if "grad_norm" in one]

    flags = {"model": model, "data": data, "batch": COUNT, "lr": 1e-3, "warmup": 0, "steps": STEPS, "eval_rows": 0}
    flags |= {"output": str(tmp_path / "here")} | ({"method": method, "set": told} if method else {})
    (start if method else start_reward)(flags, None, Console(file=io.StringIO()))
    assert [one["grad_norm"] for one in lines(tmp_path / "here")] == pytest.approx(wanted, rel=1e-4)
