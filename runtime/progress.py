"""What a person sees of a run: a live view on a terminal, plain lines elsewhere, and the table at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from grolang.runtime.curves import dots, short, sparkline
from grolang.runtime.figures import Figures, key_metric

CURVES = ("reward", "rewards/accuracies", "rewards/margins", "loss")
"""The figure that is drawn: the first that a step has."""

SHOWN = ("loss", "reward", "rewards/margins", "kl", "entropy", "completions/mean_length", "grad_norm")
"""The figures in words, where a step has them."""

WARNINGS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("frac_reward_zero_std", lambda value: value == 1, "no group of step {step} has two rewards that differ"),
    ("completions/clipped_ratio", lambda value: value > 0.5, "at step {step} {value:.0%} ran into --max-completion"),
    ("grad_norm", lambda value: value == 0, "the gradient of step {step} is 0: nothing was learned from it"),
    ("entropy", lambda value: value < 0.01, "at step {step} the entropy is {value:.2g} nats: hardly anything is tried"),
)
"""What is worth a line, once a run: a figure, when, and what to say of it."""

EVERY = 10.0  # seconds between plain lines
RECENT = 10  # steps that speed and time left are taken from


class Screen(Console):
    """Where a run says how it goes. Who read it may leave: the run goes on in silence, and its files hold all."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        if self.file is sys.stdout:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(console: Console, text: str) -> None:
    """One line as it is: paths are not styled, marked up or broken."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def steps(count: int) -> str:
    """So many steps, in words."""
    return f"{count} step{'s' * (count != 1)}"


class View:
    """A context manager around the steps; `step` is called after each of them, `evaluated` after evaluations."""

    def __init__(self, console: Console, title: str, steps: int, start: int) -> None:
        self.console, self.title, self.steps, self.done = console, title, steps, start
        self.lines: list[Figures] = []
        self.held_out: list[Figures] = []
        self.now = ""
        self.warned: set[str] = set()
        self.said = -EVERY
        self.began = time.monotonic()
        alive = console.is_terminal and not console.is_dumb_terminal and not console.quiet
        self.live = Live(self, console=console, refresh_per_second=4) if alive else None

    def __enter__(self) -> View:
        if self.live is not None:
            self.live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """While this holds, the view says what takes the time."""
        self.now = what
        try:
            yield
        finally:
            self.now = ""

    def step(self, figures: Figures) -> None:
        """Take a step into the view, or print a line where there is no terminal and the last one is a while ago."""
        self.lines.append(figures)
        self.done = int(figures["step"])
        self._warn(figures)
        if self.live is None and (time.monotonic() - self.said >= EVERY or self.done == self.steps):
            self.said = time.monotonic()
            say(self.console, "  ".join([f"step {self.done}/{self.steps}", *self._words(), *self._speed()]))

    def evaluated(self, step: int, figures: Figures) -> None:
        """Take an evaluation into the view; a plain line only on the way, since before and after have a table."""
        self.held_out.append({"step": step, **figures})
        name = key_metric(figures)
        if self.live is None and name is not None and 0 < step < self.steps:
            say(self.console, f"step {step}/{self.steps}  held out: {name} {short(figures[name])}")

    def _warn(self, figures: Figures) -> None:
        for name, wrong, text in WARNINGS:
            if name in figures and name not in self.warned and wrong(figures[name]):
                self.warned.add(name)
                say(self.console, "note: " + text.format(step=int(figures["step"]), value=figures[name]))

    def _words(self) -> list[str]:
        last = self.lines[-1] if self.lines else {}
        return [f"{name} {short(last[name])}" for name in SHOWN if name in last]

    def _speed(self) -> list[str]:
        """Tokens a second and the time left, from the last steps."""
        some = self.lines[-RECENT:]
        seconds = sum(line["seconds"] for line in some)
        if not some or seconds <= 0:
            return []
        found = []
        if len(some) > 1:
            tokens = some[-1]["num_tokens"] - some[0]["num_tokens"]
            found.append(f"{tokens / max(1e-9, seconds - some[0]['seconds']):,.0f} tokens/s")
        if self.done < self.steps:
            found.append(f"{clock(seconds / len(some) * (self.steps - self.done))} left")
        return found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The view, for whatever width the terminal has now."""
        width = max(10, options.max_width - 1)
        ascii = options.ascii_only
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(f"{self.title}  step {self.done}/{self.steps}", style="bold", no_wrap=True),
            ProgressBar(total=self.steps, completed=self.done, width=max(5, min(40, width - len(self.title) - 24))),
            Text(f"{self.done / self.steps:.0%}", no_wrap=True),
        )
        yield bar
        time_used = f"{clock(time.monotonic() - self.began)} so far"
        yield _line("  ".join([time_used, *self._speed(), *([self.now] if self.now else [])]), width, "dim")
        yield from self._curve(width, ascii)
        yield _line("  ".join(self._words()), width)
        if self.held_out and (name := key_metric(self.held_out[0])):
            values = [line[name] for line in self.held_out]
            arrow = " -> " if ascii else " → "
            text = f"held out: {name} " + arrow.join(short(value) for value in dict.fromkeys((values[0], values[-1])))
            room = width - len(text) - 2
            yield _line(f"{text}  {sparkline(values, min(room, 30), ascii=ascii)}" if room > 2 else text, width, "cyan")

    def _curve(self, width: int, ascii: bool) -> Iterator[Text]:
        name = next((name for name in CURVES if self.lines and name in self.lines[-1]), None)
        values = [line[name] for line in self.lines if name in line] if name else []
        if name is None or len(values) < 2:
            return
        low, high = short(min(values)), short(max(values))
        edge = max(len(low), len(high))
        if ascii or width < 30:
            yield _line(f"{name} {sparkline(values, width - len(name) - 1, ascii=ascii)}", width, "green")
            return
        rows = dots(values, min(70, width - edge - 2), 4)
        yield _line(f"{' ' * edge}  {name}", width, "bold")
        for at, row in enumerate(rows):
            label = high if at == 0 else low if at == len(rows) - 1 else ""
            yield _line(f"{label:>{edge}}  {row}", width, "green")


def _line(text: str, width: int, style: str = "") -> Text:
    """One line of the view: never wider than the terminal, so that what is redrawn is what was drawn."""
    return Text(text if len(text) <= width else text[: max(0, width - 1)] + "…", style=style, no_wrap=True)


def clock(seconds: float) -> str:
    """1:05, 2:03:04 or 1 d 2:03:04."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02d}"
    return (f"{days} d " if days else "") + f"{hour}:{minute:02d}:{second:02d}"


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
