"""The course of a run, whatever it trains: steps, evaluations on the way, checkpoints, the best model, the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from accelerate import Accelerator
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from grolang.language.diagnostics import GroError
from grolang.runtime import checkpoints
from grolang.runtime.descent import Descent
from grolang.runtime.evaluation import Measured, check_evaluation
from grolang.runtime.examples import Encoder
from grolang.runtime.figures import Best, Figures, best, key_metric
from grolang.runtime.interrupts import Interrupt, held_interrupts
from grolang.runtime.journal import Journal, Seen
from grolang.runtime.output import Outcome, noted
from grolang.runtime.processes import of_all
from grolang.runtime.progress import View, comparison, say, steps
from grolang.runtime.record import as_json, write_text
from grolang.runtime.settings import RunSettings


@dataclass
class Training(ABC):
    """What a run trains, how far it has come, and the course that every training takes.

    A kind of training says what it is (`start`), how a draw of rows becomes optimizer steps (`updates`), and what is
    measured (`measure`).
    """

    name: str
    settings: RunSettings
    accelerator: Accelerator
    model: PreTrainedModel
    encoder: Encoder
    descent: Descent
    output: Path
    console: Console
    step: int = 0
    saved: int = -1  # the step of the last checkpoint
    tokens: int = 0
    skipped: int = 0  # steps that were left out
    before: Figures = field(default_factory=dict)
    evaluations: list[Figures] = field(default_factory=list)  # a line each, with its step
    seen: Seen | None = None  # the last step, as the method saw it

    result: ClassVar[str] = "the trained model is in {}"

    @abstractmethod
    def start(self) -> None:
        """Write down what the run is, before anything is measured."""

    @abstractmethod
    def updates(self, draw: int) -> Iterator[Figures]:
        """The optimizer steps of this draw of rows, with the figures of each."""

    @abstractmethod
    def measure(self) -> Measured:
        """What the model is worth now, on held-out rows."""

    def save(self, state: checkpoints.State, best: int | None) -> None:
        """Write a checkpoint, beside those that are kept and that of step `best`."""
        keep = self.settings.keep
        checkpoints.save(self.output, self.model, self.descent, state, self.accelerator, keep, best)

    def weights(self) -> dict[str, Tensor] | None:
        """The model's weights where it does not hold them itself; every process has to ask."""
        return None

    @property
    def main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def say(self, text: str) -> None:
        say(self.console, text)

    def go(self, state: checkpoints.State | None) -> Outcome:
        """All of it, from the start or on from `state`; how it ends goes to the run's record."""

        def work() -> Outcome:
            with held_interrupts(self.console) as interrupt:
                of_all(self.accelerator, self.start)
                return self._course(state, interrupt)

        return noted(self.output, self.main, work)

    def _course(self, state: checkpoints.State | None, interrupt: Interrupt) -> Outcome:
        start = 0 if state is None else state.step
        view = View(self.console, self.name, self.settings.steps, start)
        with Journal(view, self.settings, self.encoder.tokenizer, self.output, self.accelerator) as journal:
            if state is None:
                self.before = self._evaluate(journal)
                check_evaluation(self.settings, self.before)
            else:
                self.step = self.saved = start
                self.before, self.tokens, self.skipped = dict(state.before), state.num_tokens, state.skipped
                self.evaluations = journal.evaluations or [{"step": 0, **self.before}]
                self.say(f"continuing after step {start}")
            try:
                self._steps(journal, interrupt)
                interrupted = self.step < self.settings.steps and not self._enough()
                self._checkpoint()
                if interrupted:
                    journal.status = "interrupted"
                after = {} if interrupted else self._evaluate(journal)
            except Exception:  # of any kind: what was learned is kept
                self._rescue()
                raise
            with journal.doing("saving the model"):  # in the journal's time: where it fails the run has failed
                self.save_model("model")
        if not interrupted:
            self._finish(after)
        else:
            self.say(f"stopped after {steps(self.step)}; --resume --output {self.output} goes on from there")
        return Outcome(self.output, self.step, self.before, after, interrupted)

    def _steps(self, journal: Journal, interrupt: Interrupt) -> None:
        """Draw after draw, until all steps are taken, evaluations say enough, or an interrupt asks to stop."""
        settings = self.settings
        while True:
            if settings.eval_every and self.step - self.evaluations[-1]["step"] >= settings.eval_every:
                self._evaluate(journal)
            if settings.save_every and self.step - max(0, self.saved) >= settings.save_every:
                journal.flush()
                self._checkpoint()
            if self.step >= settings.steps or self._enough() or interrupt.agreed(self.accelerator):
                return
            for figures in self.updates(self.step // settings.updates):
                self.step += 1
                journal.step(figures, self.seen)

    def _evaluate(self, journal: Journal) -> Figures:
        """The held-out figures at this step. The best of a run with `--eval-every` is kept, model and checkpoint."""
        if not self.evaluations or self.evaluations[-1]["step"] != self.step:
            with journal.doing("measuring held-out rows"):
                measured = self.measure()
            self.evaluations.append({"step": self.step, **measured.figures})
            journal.evaluated(self.step, measured)
            if self.step and self._best_step() == self.step:
                self.save_model("best")
                journal.flush()
                self._checkpoint()
        return {name: value for name, value in self.evaluations[-1].items() if name != "step"}

    def _best(self) -> Best | None:
        """The best evaluation so far, by `--eval-metric`."""
        name = self.settings.eval_metric or key_metric(self.evaluations[0])
        return None if name is None else best(self.evaluations, name)

    def _best_step(self) -> int | None:
        """The step whose checkpoint and model are kept as the best; None in a run without evaluations on the way."""
        found = self._best() if self.settings.eval_every else None
        return None if found is None else found.step

    def _enough(self) -> bool:
        """Whether as many evaluations as `--early-stop` says brought no gain."""
        found, patience = self._best(), self.settings.early_stop
        return bool(patience and found and found.since >= patience)

    def _checkpoint(self) -> None:
        """Write down where the run stands; nothing where that is written already."""
        if self.step == self.saved:
            return
        self.save(checkpoints.State(self.step, self.tokens, self.before, self.skipped), self._best_step())
        self.saved = self.step
        self.accelerator.wait_for_everyone()

    def _rescue(self) -> None:
        """After an error: keep what was learned, where the model stands between two draws. Best effort.

        Processes that have not failed do not come here, so that only a run of one can wait for nobody.
        """
        if self.accelerator.num_processes > 1 or self.step % self.settings.updates:
            return
        with suppress(GroError):  # the disk may be what failed
            self._checkpoint()
        if self.saved > 0:
            self.say(f"{steps(self.saved)} saved; --resume --output {self.output} goes on from there")

    def save_model(self, name: str) -> None:
        """Model and tokenizer in transformers' own format, in the folder of this name, replaced as one."""
        weights = self.weights()
        if self.main:
            checkpoints.replace_folder(self.output / name, partial(self.write_model, self.model, weights=weights))

    def write_model(self, model: PreTrainedModel, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Fill a folder for `from_pretrained`."""
        model.save_pretrained(folder, state_dict=weights, safe_serialization=True)
        self.encoder.tokenizer.save_pretrained(str(folder))

    def _finish(self, after: Figures) -> None:
        """Write and say what came out of it."""
        found = self._best()
        if after:
            self.console.print(comparison(f"{self.name} after {steps(self.step)}", self.before, after))
        if self.main:
            text = {"steps": self.step, "before": self.before, "after": after}
            text |= {} if found is None else {"best": {"step": found.step, found.name: found.value}}
            write_text(self.output / "evaluation.json", as_json(text))
        if self.skipped:
            self.say(f"{self.skipped} of {self.step} steps were left out")
        if self.step < self.settings.steps and found:
            self.say(f"stopped early: {found.since} evaluations without gain in {found.name}")
        if (self.output / "best").is_dir() and found:
            self.say(f"the best model, of step {found.step} by {found.name}, is in {self.output / 'best'}")
        self.say(self.result.format(self.output / "model"))
