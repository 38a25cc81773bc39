"""A method's training: draws of sequences, the exact optimizer steps on them, and what is not finite."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor

from grolang import Method
from grolang.compiler.blame import NotFinite
from grolang.language.diagnostics import GroError
from grolang.runtime import checkpoints, zero
from grolang.runtime.adapters import merged
from grolang.runtime.descent import Descent, learning_rate
from grolang.runtime.evaluation import Measured
from grolang.runtime.examples import key
from grolang.runtime.figures import Figures
from grolang.runtime.journal import Seen
from grolang.runtime.loop import Training
from grolang.runtime.metrics import step_figures
from grolang.runtime.models import load_model
from grolang.runtime.output import Outcome, changed, describe, fingerprints, note, open_output
from grolang.runtime.processes import joined
from grolang.runtime.progress import say
from grolang.runtime.reference import store
from grolang.runtime.replay import Kept, write_batch
from grolang.runtime.report import leave_report
from grolang.runtime.sequences import Sample, Step
from grolang.runtime.settings import RunSettings
from grolang.runtime.setup import Run, prepare
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
    output = open_output(method, run.settings, accelerator)
    descent = Descent.of(run.model, run.settings)
    process = accelerator.process_index
    state = checkpoints.restore(output, run.model, descent, process, run.feed.past) if settings.resume else None
    if deepspeed():
        descent = zero.share_out(run.engine, descent)
    training = MethodTraining(
        method.name, run.settings, accelerator, run.model, run.encoder, descent, output, console, run=run
    )

    try:
        return training.go(state)
    finally:  # also of a run that failed
        if accelerator.is_main_process:
            leave_report(output, partial(say, console))


@dataclass
class MethodTraining(Training):
    """The parts of a run of a method, on their course."""

    run: Run = field(kw_only=True)

    def start(self) -> None:
        """And find what the reference says of rows of the data, which is the same in every epoch and every run."""
        method, settings, engine, feed = self.run.method, self.settings, self.run.engine, self.run.feed
        if self.main:
            if other := changed(self.output, settings):
                self.say(f"note: settings are not those that the run began with: {', '.join(other)}")
            for name in describe(self.output, method, settings, self.accelerator):
                self.say(f"note: {name} is not the file that the run began with; what follows is another run")
            note(self.output, kernels="triton" if engine.kernels else "torch")
        if feed.sampler is None and engine.reference is not None and not engine.sharded:
            files = [str(one.get("sha256", name)) for name, one in fingerprints(method, settings).items()]
            data = [*method.data, *files, str(feed.rows.weights)]
            engine.known = store(engine.reference.model, settings, data, self.accelerator.num_processes)

    def updates(self, draw: int) -> Iterator[Figures]:
        """A draw of which no row could be scored (`--on-score-error skip`) gives steps that are left out."""
        run, settings = self.run, self.settings
        began = time.perf_counter()
        drawn = run.feed.draw(draw)
        step = run.engine.prepare(drawn.samples) if drawn.samples else None
        for update in range(settings.updates):
            taken = draw * settings.updates + update
            self.seen = None
            if step is None:
                figures = self._left_out(taken)
            else:
                step, figures = self._update(step, drawn.samples, taken)
                if update == 0 and self.seen is not None:
                    run.feed.remember(step)
            figures |= drawn.figures
            figures["seconds"] = time.perf_counter() - began
            began = time.perf_counter()
            yield figures

    def _left_out(self, taken: int, **more: float) -> Figures:
        """The line of a step that moved nothing."""
        self.skipped += 1
        first = {"step": taken + 1, "learning_rate": learning_rate(self.settings, taken), **more}
        return first | {"skipped": self.skipped, "num_tokens": self.tokens}

    def _update(self, step: Step, samples: list[Sample], taken: int) -> tuple[Step, Figures]:
        """One optimizer step on these sequences. Nothing that is not finite reaches the optimizer."""
        run, engine, scale = self.run, self.run.engine, self.descent.scale
        drawn, told = run.feed.sampler is not None, dict[str, float]()
        if self.settings.lora_dropout:  # a function of the seed, as all that is drawn
            torch.manual_seed(key(self.settings.seed, "dropout", taken, self.accelerator.process_index))
        if scale is not None:
            engine.scale = told["loss_scale"] = scale.value
        try:
            batch = engine.backward(step, entropy=drawn)
            seen = Seen(samples, *step.shown(batch, run.method.evaluate(batch)))
            norm = self.descent(taken)
        except GroError as error:
            self._not_finite(error, samples, taken + 1)
            norm = None
        if norm is None:
            return step, self._left_out(taken, **told)
        self.seen = seen
        figures = step_figures(samples, seen.batch, seen.evaluation, drawn=drawn, old=run.method.needs.old)
        self.tokens += int(figures["num_tokens"])
        first = {"step": taken + 1, "loss": figures.pop("loss"), "grad_norm": norm}
        first |= {"learning_rate": learning_rate(self.settings, taken), **told}
        if self.settings.on_nonfinite == "skip":
            first["skipped"] = self.skipped
        return step.remembering(batch), first | figures | {"num_tokens": self.tokens}

    def _not_finite(self, error: GroError, samples: Sequence[Sample], step: int) -> None:
        """Keep the batch for a look; with `--on-nonfinite skip` go on where a number was not finite."""
        run, decode = self.run, self.encoder.tokenizer.decode
        path = self.output / f"failed-batch-{step}.safetensors"
        if run.engine.seen is not None and self.main and self.skipped < FAILED:
            said = [tuple(str(decode(ids)) for ids in (one.prompt, one.completion)) for one in samples]
            try:
                write_batch(path, Kept(run.engine.seen, run.method.params, said))
                self.say(f"the batch of this step: grolang replay {self.settings.method} {path}")
            except GroError as full:  # of two errors the first is to be mended first
                self.say(str(full))
        if self.settings.on_nonfinite == "stop" or not isinstance(error, NotFinite):
            raise error
        run.engine.policy.zero_grad()
        self.say(f"{error}\nstep {step} is left out")

    def measure(self) -> Measured:
        return self.run.held_out.measure(self.run.engine)

    def save(self, state: checkpoints.State, best: int | None) -> None:
        """With the log-probs under the reference that are known by now, and the groups of earlier steps."""
        if self.main and self.run.engine.known is not None:
            self.run.engine.known.save()
        checkpoints.save(
            self.output, self.model, self.descent, state, self.accelerator, self.settings.keep, best, self.run.feed.past
        )

    def weights(self) -> dict[str, Tensor] | None:
        """Those of a policy that is shared out, tied ones once."""
        own = self.model.state_dict(keep_vars=True) if self.run.engine.sharded else {}
        tensors = {id(one): gathered(one) for one in own.values()}
        return {name: tensors[id(one)] for name, one in own.items()} or None

    def save_model(self, name: str) -> None:
        """With `--merge`, the model at the end also with its adapter added into it."""
        super().save_model(name)
        if self.main and self.settings.merge and name == "model":
            path, trust = self.settings.model_path, self.settings.trust_remote_code
            model = load_model(path, dtype=torch.float32, device=torch.device("cpu"), trust_remote_code=trust)
            whole = merged(model, self.output / name)
            checkpoints.replace_folder(self.output / "merged", partial(self.write_model, whole))
