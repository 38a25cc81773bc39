"""TRL's trainers on a batch: their own `training_step`, on a Llama that gives the batch's log-probs.

Sampling alone is replaced: the completions are the batch's. Rewards, advantages, old and reference log-probs, the loss,
its normalisation over micro-batches and the backward pass are TRL's and transformers' own code.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import logging
import os
import textwrap
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.experimental.tpo import TPOConfig, TPOTrainer

from grolang.compiler.batch import Batch
from grolang.integrations.cases import LENGTH
from grolang.integrations.peer import Gradient, Run, call
from grolang.integrations.scripted import PAD, Script, folder, follow, script, tokenizer

#: what a configuration is made with
Options = dict[str, Any]
#: rows of a batch, in the form that a trainer's `training_step` takes, one entry per micro-batch
Rows = Callable[[Any, Script, int], list[Any]]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, warnings and tables."""
    disable_progress_bars()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no type for it
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def _train(
    trainer: Any, config: Any, options: Options, told: Script, parts: int, size: int, rows: Rows, **extra: Any
) -> Gradient:
    """The gradient of one optimizer step: `parts` micro-batches of `size` rows through the trainer's own step."""
    with _quiet(), TemporaryDirectory() as output:
        args = config(
            output_dir=output,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            **options,
        )
        model = LlamaForCausalLM.from_pretrained(folder().name)
        made = trainer(model, args=args, processing_class=tokenizer(), **extra)
        follow(made.model, told.now, told.old)
        if getattr(made, "ref_model", None) is not None:
            follow(made.ref_model, told.reference, told.reference)
        made.current_gradient_accumulation_steps = parts
        torch.manual_seed(0)
        for inputs in rows(made, told, parts):
            made.training_step(made.model, inputs, None)
    return Gradient(*told.gradient())


def _online(trainer: Any, config: Any, options: Options) -> Run:
    """A trainer that draws completions; old log-probs are those of the no-grad pass after drawing."""
    rollouts = trainer is not RLOOTrainer  # which has no `rollout_func`

    def run(batch: Batch, parts: int) -> Gradient:
        told, size = script(batch), batch.mask.shape[0]
        assert batch.group is not None
        scores = batch.scores["correct"].tolist()
        completions = [told.completion(row) for row in range(size)]

        def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
            return [scores[told.row(ids[0])] for ids in completion_ids]

        def drawn(*_: Any) -> dict[str, Any]:
            return {
                "prompt_ids": [told.prompt(row) for row in range(size)],
                "completion_ids": completions,
                "logprobs": None,
            }

        def rows(made: Any, told: Script, parts: int) -> list[Any]:
            if not rollouts:
                made._generate_single_turn = lambda *_: completions
            return [[{"prompt": " ".join(f"t{token}" for token in told.prompt(row))} for row in range(size)]] * parts

        return _train(
            trainer,
            config,
            {
                "num_generations": int((batch.group == 0).sum()),
                "num_iterations": 2,
                "steps_per_generation": parts,
                "max_completion_length": LENGTH,
                **options,
            },
            told,
            parts,
            size // parts,
            rows,
            reward_funcs=reward,
            train_dataset=Dataset.from_dict({"prompt": ["t2"]}),
            **({"rollout_func": drawn} if rollouts else {}),
        )

    return run


def _online_dpo(config: Any, options: Options) -> Run:
    """Online DPO, on pairs that the reward function tells the better one of: the batch's labels."""

    def run(batch: Batch, parts: int) -> Gradient:
        told, count = script(batch), batch.mask.shape[0] // 2
        assert batch.label is not None
        labels = batch.label.tolist()
        text = [" ".join(f"t{token}" for token in told.prompt(2 * pair)) for pair in range(count)]

        def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
            return [labels[told.row(ids[0])] for ids in completion_ids]

        def drawn(_: Any, prompts: list[str], images: Any = None) -> tuple[Any, ...]:
            pairs = [text.index(prompt) for prompt in prompts]
            first = [2 * pair + pair % 2 for pair in pairs]  # the better one is drawn first, or second
            taken = first + [row ^ 1 for row in first]
            prompt = torch.tensor([told.prompt(row) for row in taken])
            ids = [torch.tensor(told.completion(row)) for row in taken]
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(part) for part in ids], batch_first=True)
            completion = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD)
            return prompt, torch.ones_like(prompt), completion, mask, None

        def rows(made: Any, told: Script, parts: int) -> list[Any]:
            made._generate = drawn
            step = count // parts
            return [{"prompt": text[start : start + step]} for start in range(0, count, step)]

        return _train(
            OnlineDPOTrainer,
            config,
            options,
            told,
            parts,
            count // parts,
            rows,
            reward_funcs=reward,
            train_dataset=Dataset.from_dict({"prompt": ["t2"]}),
        )

    return run


def _offline(trainer: Any, columns: Any, dataset: dict[str, list[Any]], config: Any, options: Options) -> Run:
    """A trainer on rows of the data; `columns` gives a row as the trainer's own collator takes it."""

    def run(batch: Batch, parts: int) -> Gradient:
        told = script(batch)
        count = batch.mask.shape[0] // (2 if "chosen" in dataset else 1)

        def rows(made: Any, told: Script, parts: int) -> list[Any]:
            examples = [columns(told, index) for index in range(count)]
            step = count // parts
            return [made.data_collator(examples[start : start + step]) for start in range(0, count, step)]

        rest = {"train_dataset": Dataset.from_dict(dataset)}
        return _train(trainer, config, options, told, parts, count // parts, rows, **rest)

    return run


def _pair(told: Script, index: int) -> dict[str, Any]:
    ids = {"prompt_ids": told.prompt(2 * index)}
    return ids | {"chosen_ids": told.completion(2 * index), "rejected_ids": told.completion(2 * index + 1)}


def _labelled_pair(told: Script, index: int) -> dict[str, Any]:
    """As CPO's and ORPO's `tokenize_row` gives it, without its end tokens."""
    prompt, made = told.prompt(2 * index), dict[str, Any]()
    for name, at in (("chosen", 2 * index), ("rejected", 2 * index + 1)):
        ids = prompt + told.completion(at)
        made |= {
            f"{name}_input_ids": ids,
            f"{name}_attention_mask": [1] * len(ids),
            f"{name}_labels": [-100] * len(prompt) + told.completion(at),
        }
    return made


def _unpaired(told: Script, index: int) -> dict[str, Any]:
    assert told.batch.label is not None
    return {
        "prompt_ids": told.prompt(index),
        "completion_ids": told.completion(index),
        "KL_completion_ids": told.mismatched(index),
        "label": bool(told.batch.label[index] > 0),
    }


_PAIRS = {"prompt": ["t2"], "chosen": [" t3"], "rejected": [" t4"]}
_TRIPLES = _PAIRS | {"reference": [" t5"]}
_COMPLETIONS: dict[str, list[Any]] = {"prompt": ["t2"] * 2, "completion": [" t3"] * 2, "label": [True, False]}

#: by a configuration's name, how its trainer is run under options
_TRAINERS: dict[str, Callable[[Options], Run]] = {
    config.__name__: partial(run, config)
    for config, run in (
        (GRPOConfig, partial(_online, GRPOTrainer)),
        (GMPOConfig, partial(_online, GMPOTrainer)),
        (RLOOConfig, partial(_online, RLOOTrainer)),
        (OnlineDPOConfig, _online_dpo),
        (DPOConfig, partial(_offline, DPOTrainer, _pair, _PAIRS)),
        (KTOConfig, partial(_offline, KTOTrainer, _unpaired, _COMPLETIONS)),
        (CPOConfig, partial(_offline, CPOTrainer, _labelled_pair, _PAIRS)),
        (ORPOConfig, partial(_offline, ORPOTrainer, _labelled_pair, _PAIRS)),
        (TPOConfig, partial(_offline, TPOTrainer, _pair, _TRIPLES)),
    )
}


def under(name: str) -> Run:
    """A trainer under the options of its configuration, given as its user writes it: `DPOConfig(beta=0.5)`."""
    config, options = call(name)
    return _TRAINERS[config](options)


def _named(function: Any, name: str) -> list[str]:
    """The strings that a function compares a name with: the loss types that its code knows."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    tests = [node for node in ast.walk(tree) if isinstance(node, ast.Compare) and ast.unparse(node.left) == name]
    words = [part.value for test in tests for part in ast.walk(test) if isinstance(part, ast.Constant)]
    return sorted({word for word in words if isinstance(word, str)})


#: by its configuration, the function of each trainer that tells loss types apart, and what it calls them
_KNOWING = {
    GRPOConfig.__name__: (GRPOTrainer._compute_loss, "self.loss_type"),
    DPOConfig.__name__: (DPOTrainer._compute_loss, "loss_type"),
    KTOConfig.__name__: (KTOTrainer._compute_loss, "self.loss_type"),
    CPOConfig.__name__: (CPOTrainer.cpo_loss, "self.loss_type"),
    TPOConfig.__name__: (TPOTrainer._compute_loss, "self.loss_type"),
    OnlineDPOConfig.__name__: (OnlineDPOTrainer.training_step, "self.args.loss_type"),
}


def known() -> Iterator[str]:
    """Every loss type that the trainers themselves know."""
    for config, (function, word) in _KNOWING.items():
        yield from (f'{config} loss_type="{name}"' for name in _named(function, word))
