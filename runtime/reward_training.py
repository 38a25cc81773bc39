"""`grolang reward train`: a sequence classifier of one output on pairs, by Eq. 1 of arXiv:2503.19523 (Bradley–Terry).

    L = −mean over pairs of log σ(r(x, chosen) − r(x, rejected))

The same rows, order, optimizer, checkpoints and view as any other run; the gradient of a step is that of all its
pairs, however they are cut into micro-batches and processes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from grolang.language.diagnostics import GroError
from grolang.runtime import checkpoints, defaults
from grolang.runtime.data import checked, open_rows
from grolang.runtime.descent import Descent, learning_rate
from grolang.runtime.examples import Encoder, Example, Examples, Limits, load_examples, positions
from grolang.runtime.figures import Figures
from grolang.runtime.interrupts import Interrupt, held_interrupts
from grolang.runtime.launch import settings_of
from grolang.runtime.metrics import MetricsFile
from grolang.runtime.models import load_classifier, load_tokenizer, vocabulary, window
from grolang.runtime.names import check_folder
from grolang.runtime.output import Outcome, begin, fingerprint, noted, open_folder
from grolang.runtime.processes import joined, share
from grolang.runtime.progress import Screen, View, comparison, say, steps
from grolang.runtime.record import as_json, write_text
from grolang.runtime.reward_model import pad_of, rewards
from grolang.runtime.settings import REWARD, RunSettings, Settings, read_config, read_settings, to_toml
from grolang.runtime.sharding import wanted
from grolang.runtime.step import add_up

APART, APART_MOST = 20, 256  # held out of data that comes without such rows: one pair in 20, and 256 at most
DEFAULTS = {"steps": 100, "batch": 32}
LR, OWN_LR = 3e-4, 1e-5  # of the embedded model, and of one of the user's


def start(flags: Settings, config: str | Path | None = None, console: Console | None = None) -> Outcome:
    """Train as the flags and the file say, or go on with `resume` where a folder's last checkpoint stands."""
    if config is None and flags.get("resume"):
        config = settings_of(flags.get("output"))
    given = {
        name: value for name, value in read_config(None if config is None else str(config)).items() if name != "method"
    }
    given |= flags
    for name in given:
        if name not in REWARD:
            raise GroError.plain(f"there is no setting `{name}` here; the settings are {', '.join(REWARD)}")
    if len(given.get("data", ())) > 1 and not isinstance(given["data"], str):
        raise GroError.plain("--data: a reward model is trained on one file of pairs", help="put them into one file")
    rate = LR if given.get("model") is None else OWN_LR
    settings = read_settings("preference", DEFAULTS | {"lr": rate} | given | {"method": "reward"})
    if settings.precision in ("fp16", "fp64"):
        raise GroError.plain(f"--precision {settings.precision}: a reward model is trained in fp32 or bf16")
    return train(settings, console or Screen())


def train(settings: RunSettings, console: Console) -> Outcome:
    """Everything that a user gave is checked before the first step."""
    accelerator, console = joined(console)
    if wanted(False, accelerator):
        message = "a reward model is not shared out, and accelerate's configuration asks for it"
        raise GroError.plain(message, help="leave out --use_deepspeed or --use_fsdp: each process holds all of it")
    set_seed(settings.seed)
    path = settings.model or str(defaults.model_path())
    check_folder(path, "--model")
    trust, template = settings.trust_remote_code, settings.chat_template
    encoder = Encoder(load_tokenizer(path, trust_remote_code=trust, template=template))
    model = load_classifier(path, accelerator.device, fresh=True, trust_remote_code=trust)
    model.config.pad_token_id = pad_of(encoder)
    limits = Limits(window(model), settings.max_prompt, settings.max_completion, vocabulary(model))
    name = settings.data[0] if settings.data else str(defaults.data_path("preference", "train"))
    pairs, held = _hold_out(_pairs(name, encoder, limits), settings, limits)
    output = open_folder("reward", settings, accelerator)
    descent = Descent.of(model, settings)
    state = checkpoints.restore(output, model, descent, accelerator.process_index) if settings.resume else None
    if accelerator.is_main_process:
        write_text(output / "settings.toml", to_toml(settings, REWARD))
        begin(
            output,
            "reward model",
            {one: fingerprint(Path(one)) for one in (name, settings.eval_data) if one},
            accelerator,
        )
    training = _Training(settings, accelerator, model, encoder, descent, output, console)
    with noted(output, accelerator.is_main_process) as end, held_interrupts(console) as interrupt:
        outcome = training.go(pairs, held, state, interrupt)
        if outcome.interrupted:
            end("interrupted")
    return outcome


def _pairs(name: str, encoder: Encoder, limits: Limits) -> Examples:
    return load_examples(checked(open_rows(name), "preference"), "preference", encoder, limits)


def _hold_out(pairs: Examples, settings: RunSettings, limits: Limits) -> tuple[Examples, Examples]:
    if settings.eval_data is not None:
        held = _pairs(settings.eval_data, pairs.encoder, limits)
        return pairs, held.part(held.kept[: settings.eval_rows])
    return pairs.divide(min(len(pairs) // APART, APART_MOST, settings.eval_rows), settings.seed)


@dataclass
class _Training:
    settings: RunSettings
    accelerator: Accelerator
    model: PreTrainedModel
    encoder: Encoder
    descent: Descent
    output: Path
    console: Console
    step: int = 0
    tokens: int = 0

    def go(self, pairs: Examples, held: Examples, state: checkpoints.State | None, interrupt: Interrupt) -> Outcome:
        settings, main = self.settings, self.accelerator.is_main_process
        before = self._measure(held) if state is None else state.before
        if state is not None:
            self.step, self.tokens = state.step, state.num_tokens
            say(self.console, f"continuing after step {self.step}")
        metrics = MetricsFile(self.output / "metrics.jsonl", self.step) if main else None
        self._evaluated(0, before)
        saved = -1 if state is None else self.step
        try:
            with View(self.console, "reward model", settings.steps, self.step) as view:
                while self.step < settings.steps and not interrupt.agreed(self.accelerator):
                    figures = self._step(pairs)
                    if metrics is not None:
                        metrics.write(figures)
                        view.step(figures)
                    if settings.save_every and self.step - max(0, saved) >= settings.save_every:
                        saved = self._save(before)
            if self.step != saved:
                self._save(before)
        except Exception:  # of any kind: what was learned is kept
            self._rescue(before, saved)
            raise
        finally:
            if metrics is not None:
                metrics.close()
        self._save_model()
        if self.step < settings.steps:
            say(self.console, f"stopped after {steps(self.step)}; --resume --output {self.output} goes on from there")
            return Outcome(self.output, self.step, before, {}, interrupted=True)
        after = self._measure(held)
        self._evaluated(self.step, after)
        if main and after:
            self.console.print(comparison(f"reward model after {steps(self.step)}", before, after))
            write_text(self.output / "evaluation.json", as_json({"steps": self.step, "before": before, "after": after}))
        say(self.console, f"the reward model is in {self.output / 'model'}: --score NAME={self.output / 'model'}")
        return Outcome(self.output, self.step, before, after)

    def _evaluated(self, step: int, figures: Figures) -> None:
        """A line for the list of runs; of one step there is one."""
        if self.accelerator.is_main_process and figures:
            file = MetricsFile(self.output / "evaluations.jsonl", step - 1)
            file.write({"step": step, **figures})
            file.close()

    def _step(self, pairs: Examples) -> Figures:
        began, settings = time.perf_counter(), self.settings
        places = positions(settings.seed, len(pairs), self.step * settings.batch, settings.batch)
        examples = pairs.take(places)
        margins = self._margins(examples, train=True)
        if self.accelerator.num_processes > 1:
            for parameter in self.descent.named.values():
                if parameter.grad is None:  # a process without a pair
                    parameter.grad = torch.zeros_like(parameter)
            add_up(self.descent.named.values())
        rate = learning_rate(settings, self.step)
        norm = self.descent(self.step)
        self.step += 1
        self.tokens += sum(len(one.prompt) + len(ids) for one in examples for ids in one.completions)
        found = {"step": self.step, **_figures(margins), "grad_norm": norm or 0.0, "learning_rate": rate}
        found |= {"epoch": self.step * settings.batch / len(pairs), "num_tokens": self.tokens}
        return found | {"seconds": time.perf_counter() - began}

    def _margins(self, examples: Sequence[Example], *, train: bool) -> Tensor:
        """[pairs] of r(chosen) − r(rejected), the same in every process; with `train` the gradient is left behind."""
        own = range(len(examples))[share(self.accelerator, len(examples))]
        margins = torch.zeros(len(examples), device=self.accelerator.device)
        size = max(1, self.settings.micro_batch // 2)
        for start in range(own.start, own.stop, size):
            part = examples[start : min(start + size, own.stop)]
            with torch.set_grad_enabled(train), self._autocast():
                sides = [one.prompt + one.completions[side] for side in (0, 1) for one in part]
                chosen, rejected = rewards(self.model, sides, window(self.model)).chunk(2)
                margin = chosen - rejected
                if train:
                    (-logsigmoid(margin).sum() / len(examples)).backward()  # type: ignore[no-untyped-call]  # torch has no type for it
            margins[start : start + len(part)] = margin.detach()
        found: Tensor = self.accelerator.reduce(margins, "sum")
        return found

    def _measure(self, held: Examples) -> Figures:
        if not len(held):
            return {}
        found = _figures(self._margins(held.take(range(len(held))), train=False))
        return {name: found[name] for name in ("rewards/accuracies", "rewards/margins", "loss")}

    def _autocast(self) -> Any:
        device = self.accelerator.device.type
        wanted = self.settings.precision == "bf16" or (self.settings.precision == "auto" and device == "cuda")
        return torch.autocast(device, dtype=torch.bfloat16, enabled=wanted)

    def _rescue(self, before: Figures, saved: int) -> None:
        """After an error: keep what was learned. Best effort; with several processes the others would not come."""
        if self.accelerator.num_processes > 1:
            return
        with suppress(GroError):  # the disk may be what failed
            saved = self.step if saved == self.step else self._save(before)
        if saved > 0:
            say(self.console, f"{steps(saved)} saved; --resume --output {self.output} goes on from there")

    def _save(self, before: Figures) -> int:
        state = checkpoints.State(self.step, self.tokens, before)
        checkpoints.save(self.output, self.model, self.descent, state, self.accelerator, self.settings.keep)
        self.accelerator.wait_for_everyone()
        return self.step

    def _save_model(self) -> None:
        def write(folder: Path) -> None:
            self.model.save_pretrained(folder)
            self.encoder.tokenizer.save_pretrained(str(folder))

        if self.accelerator.is_main_process:
            checkpoints.replace_folder(self.output / "model", write)
        self.accelerator.wait_for_everyone()


def _figures(margins: Tensor) -> Figures:
    """Eq. 1 and what it means: the share of pairs in the right order, a tie counting half, and their mean distance."""
    won = (margins > 0).double() + 0.5 * (margins == 0).double()
    return {
        "loss": float(-logsigmoid(margins.double()).mean()),
        "rewards/accuracies": float(won.mean()),
        "rewards/margins": float(margins.mean()),
    }
