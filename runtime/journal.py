"""What a run writes down and shows while it goes on: metrics, samples, the view. The other processes keep none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from grolang import Batch, Evaluation
from grolang.language.diagnostics import GroError
from grolang.runtime.evaluation import Measured
from grolang.runtime.figures import Figures
from grolang.runtime.metrics import MetricsFile
from grolang.runtime.processes import of_all
from grolang.runtime.progress import View, say
from grolang.runtime.samples import CompletionFiles, SamplesFile, table
from grolang.runtime.sequences import Sample
from grolang.runtime.settings import RunSettings
from grolang.runtime.tracking import Trackers, chosen


@dataclass(frozen=True)
class Seen:
    """A step as the method saw it."""

    samples: Sequence[Sample]
    batch: Batch
    evaluation: Evaluation


class Journal:
    """A context manager around the steps of a run, which begin (again) after those that the view has as done."""

    def __init__(
        self,
        view: View,
        settings: RunSettings,
        tokenizer: PreTrainedTokenizerBase,
        output: Path,
        accelerator: Accelerator,
    ) -> None:
        self.status = "finished"  # how the run ends, in the words of `Record.status`
        self.view, self.settings, self.main = view, settings, bool(accelerator.is_main_process)
        self.decode = partial(_decode, tokenizer)
        self.evaluations: list[Figures] = of_all(accelerator, lambda: self._opened(output) if self.main else [])[0]

    def _opened(self, output: Path) -> list[Figures]:
        """The evaluations of a run that goes on; trackers and files are open then."""
        settings, start = self.settings, self.view.done
        self.trackers = Trackers(chosen(settings.track), output, settings, start, partial(say, self.view.console))
        self.metrics = MetricsFile(output / "metrics.jsonl", start)
        self.samples = SamplesFile(output, start)
        self.held_out = MetricsFile(output / "evaluations.jsonl", start)
        self.completions = CompletionFiles(output, start)
        self.view.lines, self.view.held_out = list(self.metrics.kept), list(self.held_out.kept)
        return list(self.held_out.kept)

    def __enter__(self) -> Journal:
        self.view.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        self.view.__exit__(kind, error, trace)
        disk = suppress(GroError) if error is not None else nullcontext()  # which may be what failed
        with disk, ExitStack() as closing:  # the last comes first, and each also where another fails
            if self.main:
                closing.push(self._close_trackers)  # after the files: a full disk may show only now
                closing.callback(self.samples.flush)
                closing.callback(self.held_out.close)
                closing.callback(self.metrics.close)

    def _close_trackers(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell them how the run ended, `error` being what the last writes have met."""
        if error is not None:
            self.status = "failed"
        self.trackers.close(self.status)

    def doing(self, what: str) -> AbstractContextManager[None]:
        """While this holds, the view says what takes the time."""
        return self.view.doing(what)

    def step(self, figures: Figures, seen: Seen | None) -> None:
        """Write a step down and show it; `seen` is None where it was left out."""
        if not self.main:
            return
        number, every = int(figures["step"]), self.settings.keep_samples
        self.metrics.write(figures)
        if seen is not None and every and (number - 1) % every == 0:
            self.samples.add(table(number, seen.samples, seen.batch, seen.evaluation, self.decode))
        self.trackers.log("train", number, figures)
        self.view.step(figures)

    def evaluated(self, step: int, measured: Measured) -> None:
        """Write an evaluation down and show it."""
        if not self.main or not measured.figures:
            return
        self.held_out.write({"step": step, **measured.figures})
        self.trackers.log("eval", step, measured.figures)
        self.view.evaluated(step, measured.figures)
        if measured.completions:
            self.completions.write(step, measured.completions, self.decode)

    def flush(self) -> None:
        """Before a checkpoint: force what was written to the disk."""
        if self.main:
            self.metrics.flush()
            self.held_out.flush()
            self.samples.flush()


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], skip: bool) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=skip))
