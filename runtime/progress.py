"""What a person sees of a run: a bar on a terminal, plain lines elsewhere, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from grolang.runtime.figures import Figures

SHOWN = ("loss", "reward", "rewards/margins", "kl", "completions/mean_length")
"""The figures beside the bar, where a step has them."""

EVERY = 10.0  # seconds between plain lines


def say(console: Console, text: str) -> None:
    """One line as it is: paths are not styled, marked up or broken."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class View:
    """A context manager around the steps; `step` is called after each of them."""

    def __init__(self, console: Console, steps: int, start: int) -> None:
        self.console, self.steps = console, steps
        self.said = -EVERY
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, TextColumn("{task.fields[figures]}"), console=console)
        self.task = self.bar.add_task("steps", total=steps, completed=start, figures="")

    def __enter__(self) -> View:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """While this holds, the bar says what takes the time."""
        if self.console.is_terminal:
            self.bar.update(self.task, figures=what)
        yield

    def step(self, figures: Figures) -> None:
        """Move the bar, or print a line where there is no terminal and the last line is a while ago."""
        text = "  ".join(f"{name} {figures[name]:.4g}" for name in SHOWN if name in figures)
        done = int(figures["step"])
        if self.console.is_terminal:
            self.bar.update(self.task, completed=done, figures=text)
        elif time.monotonic() - self.said >= EVERY or done == self.steps:
            self.said = time.monotonic()
            say(self.console, f"step {done}/{self.steps}  {text}")


def comparison(title: str, before: Figures, after: Figures) -> Table:
    """The model before and after, a row for each figure."""
    table = Table(title=title)
    table.add_column("held out")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for name, value in before.items():
        if name in after:
            table.add_row(name, f"{value:.4f}", f"{after[name]:.4f}", f"{after[name] - value:+.4f}")
    return table
