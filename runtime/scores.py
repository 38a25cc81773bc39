"""Numbers per completion from outside the method: how a score function is called, and what is said when it fails."""

from __future__ import annotations

import inspect
import math
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from grolang.language.diagnostics import GroError
from grolang.runtime.calls import Caller, NoAnswer
from grolang.runtime.data import Record
from grolang.runtime.forms import is_conversation, text_of
from grolang.runtime.verifiers import ScoreFunction

RESERVED = ("prompt", "prompts", "completion", "completions", "completion_ids", "chosen", "rejected")
"""Columns that a score function does not get by name: they come as prompts and completions, as TRL gives them."""

LEAST = 0.125  # of the time limit, for however few completions when the failing one is searched
SEARCH = 4.0  # time limits that such a search may take


@dataclass(frozen=True)
class Patience:
    """How long a call may take, in seconds (0: for ever), how often a call that fails is made again, and what then.

    `stop` raises; with `zero` a completion without a score counts as 0; with `skip` its row is left out of the step.
    """

    seconds: float = 600.0
    retries: int = 0
    on_error: Literal["stop", "zero", "skip"] = "stop"


PATIENT = Patience()


@dataclass(frozen=True)
class Marks:
    """What a score gave: a number for each completion, None where it says that it does not apply, and what failed."""

    values: tuple[float | None, ...]
    faults: Mapping[int, str] = field(default_factory=dict)  # by the completion's place; its value is None


@dataclass(frozen=True)
class Scorer:
    """A score of the method and the function that gives it."""

    name: str
    source: str
    function: ScoreFunction
    reads: tuple[str, ...] = ()  # columns that must have a value in every row
    patience: Patience = PATIENT

    @cached_property
    def caller(self) -> Caller:
        return Caller(self.function)

    def check(self, columns: Sequence[str]) -> None:
        """Raise GroError where the function cannot be given these columns of the data."""
        words = ["prompts", "completions", "completion_ids", *(name for name in columns if name not in RESERVED)]
        try:
            inspect.signature(self.function).bind(**dict.fromkeys(words))
        except TypeError as error:
            help = f"it is given {', '.join(words)}: name what it reads, and end with `**columns`"
            raise GroError.plain(f"{self} cannot be called: {error}", help=help) from None
        except ValueError:  # nobody knows what it takes
            return

    def __str__(self) -> str:
        return f"the score `{self.name}` ({self.source})"


@dataclass(frozen=True)
class Scored:
    """The scores of one completion, those that failed and those that do not apply among them as 0."""

    scores: dict[str, float]
    failed: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """Completions that want a score."""

    records: Sequence[Record]
    texts: Sequence[Any]
    ids: Sequence[Sequence[int]]
    columns: Sequence[str] = ()  # of all files, whichever of them these rows are from

    def __len__(self) -> int:
        return len(self.records)

    def words(self, rows: slice = slice(None)) -> dict[str, Any]:
        """The arguments of a score function, TRL's."""
        records = self.records[rows]
        names = dict.fromkeys([*self.columns, *(name for record in records for name in record)])
        columns = {name: [record.get(name) for record in records] for name in names if name not in RESERVED}
        own = {"completions": list(self.texts[rows]), "completion_ids": list(self.ids[rows])}
        return columns | own | {"prompts": [record["prompt"] for record in records]}

    @property
    def talks(self) -> bool:
        """Whether the completions are messages."""
        return is_conversation(self.texts[0])

    def shown(self, row: int) -> str:
        return f"completion {row}: {_short(self.records[row]['prompt'])} → {_short(self.texts[row])}"


class Failure(Exception):
    """A call that gave no numbers."""


class Miscounted(Failure):
    """A call that gave another number of values, so that nobody knows whose each is."""


def score(
    scorers: Sequence[Scorer],
    records: Sequence[Record],
    texts: Sequence[Any],
    ids: Sequence[Sequence[int]],
    columns: Sequence[str] = (),
) -> tuple[list[Scored], list[str]]:
    """Every score of every completion, and what went wrong.

    Async functions wait for the world together, the others run in turn. A score that is None does not apply to the
    completion and counts as 0, as TRL's sum of rewards has it; one of them must apply. Raises GroError where one fails
    that has the patience to `stop`: it names the function and the completion.
    """
    asked = Asked(records, texts, ids, columns)
    if not len(asked):
        return [], []
    begun = {scorer.name: scorer.caller.start(**asked.words()) for scorer in scorers if scorer.caller.waits}
    marks = {scorer.name: _marks(scorer, asked, begun.get(scorer.name)) for scorer in scorers}
    found, faults = [], [fault for one in marks.values() for fault in one.faults.values()]
    for row in range(len(asked)):
        values = {name: one.values[row] for name, one in marks.items()}
        failed = tuple(name for name, one in marks.items() if row in one.faults)
        absent = tuple(name for name, value in values.items() if value is None and name not in failed)
        if absent and len(absent) == len(scorers):
            fault = f"no score applies to {asked.shown(row)}: {' and '.join(map(str, scorers))} gave None"
            if scorers[0].patience.on_error == "stop":
                raise GroError.plain(fault, help="one of them must give a number")
            failed, absent, faults = absent, (), [*faults, fault]
        found.append(Scored({name: value or 0.0 for name, value in values.items()}, failed, absent))
    return found, faults


def _marks(scorer: Scorer, asked: Asked, begun: Future[Any] | None) -> Marks:
    stop = scorer.patience.on_error == "stop"
    found: dict[int, Any] = {}
    try:
        found = dict(enumerate(_patiently(scorer, asked, begun)))
    except Failure as failure:
        until = time.monotonic() + SEARCH * (scorer.patience.seconds or math.inf)
        for row, value in _halves(scorer, asked, range(len(asked)), until):
            found[row] = value
            if stop and isinstance(value, Failure):
                break
        nowhere = not any(isinstance(value, Failure) for value in found.values())
        if nowhere and (stop or isinstance(failure, Miscounted)):
            said = f"{scorer} {failure}, though not when it gets fewer completions at once"
            if stop:
                raise GroError.plain(said, help=_help(asked)) from failure.__cause__
            return Marks((None,) * len(asked), dict.fromkeys(range(len(asked)), said))
    values: list[float | None] = [None] * len(asked)
    faults: dict[int, str] = {}
    for row, value in sorted(found.items()):
        try:
            values[row] = None if value is None else _number(value)
        except Failure as failure:
            faults[row] = f"{scorer} {failure} for {asked.shown(row)}"
            if stop:
                raise GroError.plain(faults[row], help=_help(asked)) from failure.__cause__
    return Marks(tuple(values), faults)


def _help(asked: Asked) -> str:
    talk = ", each completion a list of one message (`completion[0]['content']`)" if asked.talks else ""
    return (
        f"it gets prompts, completions, completion_ids and the columns of the data{talk}, and gives a list of finite "
        "numbers; --on-score-error zero or skip goes on without this one"
    )


def _number(value: Any) -> float:
    if isinstance(value, Failure):
        raise value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise Failure(f"gave {value!r} instead of a finite number")
    return number


def _patiently(scorer: Scorer, asked: Asked, begun: Future[Any] | None) -> list[Any]:
    """The values of all completions, from a call that is made again where it fails."""
    for turn in range(scorer.patience.retries):
        try:
            return _call(scorer, asked, slice(None), 1.0, begun)
        except Failure:
            begun = None
            time.sleep(min(0.1 * 4**turn, 30.0))
    return _call(scorer, asked, slice(None), 1.0, begun)


def _halves(scorer: Scorer, asked: Asked, rows: range, until: float) -> Iterator[tuple[int, Any]]:
    """The value or Failure of each of these completions, on all of which together a call has failed."""
    middle = (len(rows) + 1) // 2
    for part in (rows[:middle], rows[middle:]):
        if not part:
            continue
        try:
            share = max(len(part) / len(asked), LEAST)
            yield from zip(part, _call(scorer, asked, slice(part.start, part.stop), share))
        except Failure as failure:
            if len(part) > 1 and time.monotonic() < until:
                yield from _halves(scorer, asked, part, until)
            else:
                yield from ((row, failure) for row in part)


def _call(scorer: Scorer, asked: Asked, rows: slice, share: float, begun: Future[Any] | None = None) -> list[Any]:
    """One call, which may take this share of the time limit. Raises Failure where it gives no list of values."""
    words = asked.words(rows)
    try:
        found = scorer.caller.result(begun or scorer.caller.start(**words), scorer.patience.seconds * share)
    except GroError:
        raise
    except NoAnswer:
        limit = scorer.patience.seconds
        time_given = f"{limit:g} seconds" if share == 1 else f"{limit * share:g} of the {limit:g} seconds that all have"
        raise Failure(f"gave no answer within {time_given}") from None
    except Exception as error:  # a user's function raises what it raises
        raise Failure(f"failed: {type(error).__name__}: {error}{_raised_at(error, scorer.source)}") from error
    try:
        values = list(found)
    except TypeError:
        raise Failure(f"gave {found!r} instead of a list") from None
    if len(values) != len(words["prompts"]):
        raise Miscounted(f"gave {_counted(values, 'value')} for {_counted(words['prompts'], 'completion')}")
    return values


def _counted(of: Sized, noun: str) -> str:
    return f"{len(of)} {noun}{'' if len(of) == 1 else 's'}"


def _short(value: object) -> str:
    text = text_of(value)
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _raised_at(error: BaseException, source: str) -> str:
    """Where in the user's own file; for a function that is not of one, where at all."""
    path = Path(source.rpartition(":")[0])
    frames = list(traceback.extract_tb(error.__traceback__))
    if path.suffix == ".py":
        frames = [frame for frame in frames if Path(frame.filename) == path.resolve()]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
