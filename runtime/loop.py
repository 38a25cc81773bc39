"""The run: draw, optimize, write down; evaluate before and after; save."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

from grolang import Batch, Evaluation, Method
from grolang.language.diagnostics import GroError
from grolang.runtime import checkpoints
from grolang.runtime.evaluation import check_evaluation
from grolang.runtime.examples import positions
from grolang.runtime.figures import Best, Figures, best, key_metric
from grolang.runtime.interrupts import Interrupt, held_interrupts
from grolang.runtime.journal import Journal, Seen
from grolang.runtime.metrics import step_figures
from grolang.runtime.output import as_json, describe, open_output, write_text
from grolang.runtime.progress import comparison, say
from grolang.runtime.replay import write_batch
from grolang.runtime.rollout import offline_samples
from grolang.runtime.settings import RunSettings
from grolang.runtime.setup import Run, prepare
from grolang.runtime.step import Sample, Step
from grolang.runtime.tracking import chosen


@dataclass(frozen=True)
class Outcome:
    """What a run did: its folder, the steps it has taken, the held-out figures, and whether it was interrupted."""

    output: Path
    steps: int
    before: Figures
    after: Figures
    interrupted: bool = False


def train(method: Method, settings: RunSettings, console: Console | None = None) -> Outcome:
    """Run the method as the settings say. Everything that a user gave is checked before the first step."""
    # Without CUDA accelerate must be told so: else processes started together would not see each other. Apple's GPUs
    # have no float64, which sampling and metrics use.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=_autocast(settings))
    if console is None or not accelerator.is_main_process:
        console = Console(quiet=not accelerator.is_main_process, stderr=True)
    set_seed(settings.seed)
    chosen(settings.track)
    run = prepare(method, settings, accelerator)
    run.engine.say = partial(say, console)
    output = open_output(method, settings, accelerator)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in run.model.parameters() if parameter.requires_grad],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
    )
    run.engine.policy, prepared = accelerator.prepare(run.engine.policy, optimizer)
    state = checkpoints.restore(output, run.model, optimizer) if settings.resume else None
    if accelerator.is_main_process:
        describe(output, method, settings)
    with held_interrupts(console) as interrupt:
        return _Loop(run, output, prepared, optimizer, console, interrupt).go(state)


@dataclass
class _Loop:
    run: Run
    output: Path
    prepared: torch.optim.Optimizer  # as accelerate wraps it
    optimizer: torch.optim.Optimizer
    console: Console
    interrupt: Interrupt
    step: int = 0
    saved: int = 0
    tokens: int = 0
    before: Figures = field(default_factory=dict)
    evaluations: list[Figures] = field(default_factory=list)  # a line each, with its step
    seen: Seen | None = None  # the last step, as the method saw it

    @property
    def main(self) -> bool:
        return bool(self.run.engine.accelerator.is_main_process)

    def go(self, state: checkpoints.State | None) -> Outcome:
        run, settings = self.run, self.run.settings
        start = 0 if state is None else state.step
        self.step = self.saved = start
        with Journal(run, self.output, self.console, start) as journal:
            if state is None:
                self.before = self._evaluate(journal)
                check_evaluation(settings, self.before)
            else:
                self.before, self.tokens = dict(state.before), state.num_tokens
                self.evaluations = journal.evaluations or [{"step": 0, **self.before}]
                say(self.console, f"continuing after step {start}")
            try:
                self._steps(journal)
                interrupted = self.step < settings.steps and not self._enough()
                self._checkpoint()
                after = {} if interrupted else self._evaluate(journal)
            except Exception:
                self._rescue()
                raise
        self._save_model()
        if not interrupted:
            return self._finish(after)
        say(self.console, f"stopped after {self.step} steps; --resume --output {self.output} continues after them")
        return Outcome(self.output, self.step, self.before, {}, interrupted=True)

    def _steps(self, journal: Journal) -> None:
        """Draw after draw, until all steps are taken, evaluations say enough, or an interrupt asks to stop."""
        settings = self.run.settings
        while True:
            if settings.eval_every and self.step - self.evaluations[-1]["step"] >= settings.eval_every:
                self._evaluate(journal)
            if settings.save_every and self.step - self.saved >= settings.save_every:
                journal.flush()
                self._checkpoint()
            if self.step >= settings.steps or self._enough() or self._stopping():
                return
            for figures in self._draw(self.step // settings.updates):
                self.step += 1
                if self.seen is not None:
                    journal.step(figures, self.seen)

    def _evaluate(self, journal: Journal) -> Figures:
        """The held-out figures at this step. The best of a run with `--eval-every` is kept, model and checkpoint."""
        if not self.evaluations or self.evaluations[-1]["step"] != self.step:
            with journal.doing("measuring held-out rows"):
                measured = self.run.held_out.measure(self.run.engine)
            self.evaluations.append({"step": self.step, **measured.figures})
            journal.evaluated(self.step, measured)
            if self.step and self._best_step() == self.step:
                self._save_model("best")
                journal.flush()
                self._checkpoint()
        return {name: value for name, value in self.evaluations[-1].items() if name != "step"}

    def _best(self) -> Best | None:
        """The best evaluation so far, by `--eval-metric`."""
        name = self.run.settings.eval_metric or key_metric(self.evaluations[0])
        return None if name is None else best(self.evaluations, name)

    def _best_step(self) -> int | None:
        """The step whose checkpoint and model are kept as the best; None in a run without evaluations on the way."""
        found = self._best() if self.run.settings.eval_every else None
        return None if found is None else found.step

    def _enough(self) -> bool:
        """Whether as many evaluations as `--early-stop` says brought no gain."""
        found, patience = self._best(), self.run.settings.early_stop
        return bool(patience and found and found.since >= patience)

    def _stopping(self) -> bool:
        """Whether a stop was asked for; processes that hear of it at different moments agree on the step."""
        accelerator = self.run.engine.accelerator
        if accelerator.num_processes == 1:
            return self.interrupt.asked
        asked = torch.tensor(float(self.interrupt.asked), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum") > 0)

    def _rescue(self) -> None:
        """After an error: keep what was learned, where the model stands between two draws. Best effort.

        Processes that have not failed do not come here, so that only a run of one can wait for nobody.
        """
        accelerator = self.run.engine.accelerator
        if accelerator.num_processes > 1 or self.step % self.run.settings.updates:
            return
        with suppress(GroError):  # the disk may be what failed
            self._checkpoint()
            if self.step:
                again = f"{self.step} steps are saved; --resume --output {self.output} continues after them"
                say(self.console, again)

    def _finish(self, after: Figures) -> Outcome:
        found = self._best()
        if after:
            title = f"{self.run.method.name} after {self.step} steps"
            self.console.print(comparison(title, self.before, after))
        if self.main:
            text = {"steps": self.step, "before": self.before, "after": after}
            text |= {} if found is None else {"best": {"step": found.step, found.name: found.value}}
            write_text(self.output / "evaluation.json", as_json(text))
        if self.step < self.run.settings.steps and found:
            say(self.console, f"stopped early: {found.since} evaluations without gain in {found.name}")
        if (self.output / "best").is_dir() and found:
            say(self.console, f"the best model, of step {found.step} by {found.name}, is in {self.output / 'best'}")
        say(self.console, f"the trained model is in {self.output / 'model'}")
        return Outcome(self.output, self.step, self.before, after)

    def _draw(self, number: int) -> Iterator[Figures]:
        """The updates of draw `number`, with the figures of each."""
        run, settings = self.run, self.run.settings
        began = time.perf_counter()
        places = positions(settings.seed, len(run.examples), number * settings.batch, settings.batch)
        examples = run.examples.take(places)
        if run.sampler is not None:
            samples = run.sampler.group_samples(examples, number)
        else:
            samples = offline_samples(examples, run.examples.kind, run.scorers)
        step = run.engine.prepare(samples)
        for update in range(settings.updates):
            taken = number * settings.updates + update
            step, figures = self._update(step, samples, taken)
            figures["epoch"] = (number + 1) * settings.batch / len(run.examples)
            figures["seconds"] = time.perf_counter() - began
            began = time.perf_counter()
            yield figures

    def _update(self, step: Step, samples: list[Sample], taken: int) -> tuple[Step, Figures]:
        """One optimizer step on these sequences. Nothing that is not finite reaches the optimizer."""
        run, settings = self.run, self.run.settings
        accelerator = run.engine.accelerator
        rate = learning_rate(settings, taken)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch, evaluation = self._backward(step)
        norm = accelerator.clip_grad_norm_(run.engine.policy.parameters(), settings.max_grad_norm)
        if not math.isfinite(float(norm)):
            raise GroError.plain(
                f"the gradient of step {taken + 1} is not finite (norm {float(norm)}); the model was not changed by it",
                help="lower --lr, or look for extreme scores in the rows of this step",
            )
        self.prepared.step()
        self.prepared.zero_grad()
        self.seen = Seen(samples, batch, evaluation)
        figures = step_figures(samples, batch, evaluation, drawn=run.sampler is not None, old=run.method.needs.old)
        self.tokens += int(figures["num_tokens"])
        ordered = {"step": taken + 1, "loss": figures.pop("loss"), "grad_norm": float(norm), "learning_rate": rate}
        return step.remembering(batch), ordered | figures | {"num_tokens": self.tokens}

    def _backward(self, step: Step) -> tuple[Batch, Evaluation]:
        """The step's gradient; where the method finds a number that is not finite, its batch is kept for a look."""
        try:
            batch = self.run.engine.backward(step, entropy=self.run.sampler is not None)
            return batch, self.run.method.evaluate(batch)
        except GroError:
            seen, path = self.run.engine.seen, self.output / "failed-batch.safetensors"
            if seen is not None and self.main:
                write_batch(path, seen)
                say(self.console, f"the batch of this step is in {path}")
            raise

    def _checkpoint(self) -> None:
        """Write down where the run stands; nothing where that is written already."""
        if self.step == self.saved and (self.step or checkpoints.kept(self.output)):
            return
        if self.main:
            state = checkpoints.State(self.step, self.tokens, self.before)
            checkpoints.save(
                self.output, self.run.model, self.optimizer, state, self.run.settings.keep, self._best_step()
            )
        self.saved = self.step
        self.run.engine.accelerator.wait_for_everyone()

    def _save_model(self, name: str = "model") -> None:
        """Model and tokenizer in transformers' own format, replaced as one."""

        def write(folder: Path) -> None:
            self.run.model.save_pretrained(folder, safe_serialization=True)
            self.run.encoder.tokenizer.save_pretrained(str(folder))

        if self.main:
            checkpoints.replace_folder(self.output / name, write)


def learning_rate(settings: RunSettings, step: int) -> float:
    """The rate of a step counted from 0: a linear rise over the warm-up, then the schedule. No state to save."""
    warmup = settings.warmup
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    part = (step - warmup) / max(1, settings.steps - warmup)
    shape = {"constant": 1.0, "linear": 1.0 - part, "cosine": 0.5 + 0.5 * math.cos(math.pi * part)}
    return settings.lr * shape[settings.schedule]


def _autocast(settings: RunSettings) -> str:
    automatic = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16" if settings.precision == "bf16" or (settings.precision == "auto" and automatic) else "no"
