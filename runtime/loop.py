"""The run: draw, optimize, write down; evaluate before and after; save."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import set_seed
from rich.console import Console
from transformers import PreTrainedModel

from grolang import Method
from grolang.compiler.blame import NotFinite
from grolang.language.diagnostics import GroError
from grolang.runtime import checkpoints, zero
from grolang.runtime.adapters import merged
from grolang.runtime.descent import Descent, learning_rate
from grolang.runtime.evaluation import check_evaluation
from grolang.runtime.examples import key
from grolang.runtime.figures import Best, Figures, best, key_metric
from grolang.runtime.interrupts import Interrupt, held_interrupts
from grolang.runtime.journal import Journal, Seen
from grolang.runtime.metrics import step_figures
from grolang.runtime.output import Outcome, describe, fingerprints, note, noted, open_output
from grolang.runtime.processes import joined
from grolang.runtime.progress import comparison, say, steps
from grolang.runtime.record import as_json, write_text
from grolang.runtime.reference import store
from grolang.runtime.replay import Kept, write_batch
from grolang.runtime.report import leave_report
from grolang.runtime.sequences import Sample, Step
from grolang.runtime.settings import RunSettings
from grolang.runtime.setup import Run, fresh_model, prepare
from grolang.runtime.sharding import deepspeed, gathered
from grolang.runtime.tracking import chosen

FAILED = 10  # batches of steps that were left out which are kept


def train(method: Method, settings: RunSettings, console: Console | None = None) -> Outcome:
    """Run the method as the settings say. Everything that a user gave is checked before the first step."""
    if deepspeed():
        zero.check(settings)
    accelerator, console = joined(console or Console(stderr=True))
    set_seed(settings.seed)
    chosen(settings.track)
    run = prepare(method, settings, accelerator, partial(say, console))
    settings = run.settings
    output = open_output(method, settings, accelerator)
    descent = Descent.of(run.model, settings)
    process = accelerator.process_index
    state = checkpoints.restore(output, run.model, descent, process, run.feed.past) if settings.resume else None
    if deepspeed():
        descent = zero.share_out(run.engine, descent)
    try:
        with noted(output, accelerator.is_main_process) as end, held_interrupts(console) as interrupt:
            if accelerator.is_main_process:
                for name in describe(output, method, settings, accelerator):
                    say(console, f"note: {name} is not the file that the run began with; what follows is another run")
                note(output, kernels="triton" if run.engine.kernels else "torch")
            if run.feed.sampler is None and run.engine.reference is not None and not run.engine.sharded:
                files = [str(one.get("sha256", name)) for name, one in fingerprints(method, settings).items()]
                model, data = run.engine.reference.model, [*method.data, *files, str(run.feed.rows.weights)]
                run.engine.known = store(model, settings, data, accelerator.num_processes)
            outcome = _Loop(run, output, descent, console, interrupt).go(state)
            if outcome.interrupted:
                end("interrupted")
    finally:  # also of a run that failed
        if accelerator.is_main_process:
            leave_report(output, partial(say, console))
    return outcome


@dataclass
class _Loop:
    run: Run
    output: Path
    descent: Descent
    console: Console
    interrupt: Interrupt
    step: int = 0
    saved: int = 0
    tokens: int = 0
    skipped: int = 0
    before: Figures = field(default_factory=dict)
    evaluations: list[Figures] = field(default_factory=list)  # a line each, with its step
    seen: Seen | None = None  # the last step, as the method saw it

    @property
    def main(self) -> bool:
        return bool(self.run.engine.accelerator.is_main_process)

    def go(self, state: checkpoints.State | None) -> Outcome:
        run, settings = self.run, self.run.settings
        start = 0 if state is None else state.step
        self.step, self.saved = start, -1 if state is None else start
        with Journal(run, self.output, self.console, start) as journal:
            if state is None:
                self.before = self._evaluate(journal)
                check_evaluation(settings, self.before)
            else:
                self.before, self.tokens, self.skipped = dict(state.before), state.num_tokens, state.skipped
                self.evaluations = journal.evaluations or [{"step": 0, **self.before}]
                say(self.console, f"continuing after step {start}")
            try:
                self._steps(journal)
                interrupted = self.step < settings.steps and not self._enough()
                self._checkpoint()
                if interrupted:
                    journal.status = "interrupted"
                after = {} if interrupted else self._evaluate(journal)
            except Exception:  # of any kind: what was learned is kept
                self._rescue()
                raise
        self._save_model()
        if not interrupted:
            return self._finish(after)
        say(self.console, f"stopped after {steps(self.step)}; --resume --output {self.output} goes on from there")
        return Outcome(self.output, self.step, self.before, {}, interrupted=True)

    def _steps(self, journal: Journal) -> None:
        """Draw after draw, until all steps are taken, evaluations say enough, or an interrupt asks to stop."""
        settings = self.run.settings
        while True:
            if settings.eval_every and self.step - self.evaluations[-1]["step"] >= settings.eval_every:
                self._evaluate(journal)
            if settings.save_every and self.step - max(0, self.saved) >= settings.save_every:
                journal.flush()
                self._checkpoint()
            if self.step >= settings.steps or self._enough() or self.interrupt.agreed(self.run.engine.accelerator):
                return
            for figures in self._draw(self.step // settings.updates):
                self.step += 1
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

    def _rescue(self) -> None:
        """After an error: keep what was learned, where the model stands between two draws. Best effort.

        Processes that have not failed do not come here, so that only a run of one can wait for nobody.
        """
        accelerator = self.run.engine.accelerator
        if accelerator.num_processes > 1 or self.step % self.run.settings.updates:
            return
        with suppress(GroError):  # the disk may be what failed
            self._checkpoint()
        if self.saved > 0:
            say(self.console, f"{steps(self.saved)} saved; --resume --output {self.output} goes on from there")

    def _finish(self, after: Figures) -> Outcome:
        found = self._best()
        if after:
            title = f"{self.run.method.name} after {steps(self.step)}"
            self.console.print(comparison(title, self.before, after))
        if self.main:
            text = {"steps": self.step, "before": self.before, "after": after}
            text |= {} if found is None else {"best": {"step": found.step, found.name: found.value}}
            write_text(self.output / "evaluation.json", as_json(text))
        if self.skipped:
            say(self.console, f"{self.skipped} of {self.step} steps were left out")
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
        draw = run.feed.draw(number)
        step = run.engine.prepare(draw.samples) if draw.samples else None
        for update in range(settings.updates):
            taken = number * settings.updates + update
            if step is None:
                figures = self._left_out(taken)
            else:
                step, figures = self._update(step, draw.samples, taken)
                if update == 0 and self.seen is not None:
                    run.feed.remember(step)
            figures |= draw.figures
            figures["seconds"] = time.perf_counter() - began
            began = time.perf_counter()
            yield figures

    def _left_out(self, taken: int) -> Figures:
        """A step of which no row could be scored, with `--on-score-error skip`."""
        self.seen, self.skipped = None, self.skipped + 1
        rate = learning_rate(self.run.settings, taken)
        return {"step": taken + 1, "learning_rate": rate, "skipped": self.skipped, "num_tokens": self.tokens}

    def _update(self, step: Step, samples: list[Sample], taken: int) -> tuple[Step, Figures]:
        """One optimizer step on these sequences. Nothing that is not finite reaches the optimizer."""
        run, engine = self.run, self.run.engine
        ordered = {"step": taken + 1, "learning_rate": learning_rate(run.settings, taken)}
        self.seen, norm = None, None
        if run.settings.lora_dropout:  # a function of the seed, as all that is drawn
            torch.manual_seed(key(run.settings.seed, "dropout", taken, engine.accelerator.process_index))
        try:
            if self.descent.scale is not None:
                engine.scale = ordered["loss_scale"] = self.descent.scale.value
            batch = engine.backward(step, entropy=run.feed.sampler is not None)
            self.seen = Seen(samples, *step.shown(batch, run.method.evaluate(batch)))
            norm = self.descent(taken)
        except GroError as error:
            self._not_finite(error, samples, taken + 1)
        if norm is None:
            self.skipped += 1
        if norm is None or run.settings.on_nonfinite == "skip":
            ordered["skipped"] = self.skipped
        if norm is None or self.seen is None:
            self.seen = None
            return step, ordered | {"num_tokens": self.tokens}
        figures = step_figures(
            samples, self.seen.batch, self.seen.evaluation, drawn=run.feed.sampler is not None, old=run.method.needs.old
        )
        self.tokens += int(figures["num_tokens"])
        first = {"step": taken + 1, "loss": figures.pop("loss"), "grad_norm": norm}
        return step.remembering(batch), first | ordered | figures | {"num_tokens": self.tokens}

    def _not_finite(self, error: GroError, samples: Sequence[Sample], step: int) -> None:
        """Keep the batch for a look; with `--on-nonfinite skip` go on where a number was not finite."""
        run, decode = self.run, self.run.encoder.tokenizer.decode
        path = self.output / f"failed-batch-{step}.safetensors"
        if run.engine.seen is not None and self.main and self.skipped < FAILED:
            said = [tuple(str(decode(ids)) for ids in (one.prompt, one.completion)) for one in samples]
            try:
                write_batch(path, Kept(run.engine.seen, run.method.params, said))
                say(self.console, f"the batch of this step: grolang replay {run.settings.method} {path}")
            except GroError as full:  # of two errors the first is to be mended first
                say(self.console, str(full))
        if run.settings.on_nonfinite == "stop" or not isinstance(error, NotFinite):
            raise error
        run.engine.policy.zero_grad()
        say(self.console, f"{error}\nstep {step} is left out")

    def _checkpoint(self) -> None:
        """Write down where the run stands; nothing where that is written already."""
        if self.step == self.saved:
            return
        run, accelerator = self.run, self.run.engine.accelerator
        state = checkpoints.State(self.step, self.tokens, self.before, self.skipped)
        keep, best = run.settings.keep, self._best_step()
        if self.main and run.engine.known is not None:
            run.engine.known.save()
        checkpoints.save(self.output, run.model, self.descent, state, accelerator, keep, best, run.feed.past)
        self.saved = self.step
        accelerator.wait_for_everyone()

    def _save_model(self, name: str = "model") -> None:
        """Model and tokenizer in transformers' own format, replaced as one."""

        own = self.run.model.state_dict(keep_vars=True) if self.run.engine.sharded else {}
        tensors = {id(one): gathered(one) for one in own.values()}  # tied weights once
        state = {name: tensors[id(one)] for name, one in own.items()} or None

        def write(model: PreTrainedModel, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
            model.save_pretrained(folder, state_dict=state, safe_serialization=True)
            self.run.encoder.tokenizer.save_pretrained(str(folder))

        if self.main:
            checkpoints.replace_folder(self.output / name, partial(write, self.run.model, state=state))
            if self.run.settings.merge and name == "model":
                whole = merged(fresh_model(self.run.settings), self.output / name)
                checkpoints.replace_folder(self.output / "merged", partial(write, whole))
