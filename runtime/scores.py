"""Numbers per completion from outside the method: built-in verifiers, columns and the user's own functions."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from grolang.language.diagnostics import GroError
from grolang.runtime.data import Record, text_of

ScoreFunction = Callable[..., Sequence[float]]
"""TRL's reward function: `function(prompts=…, completions=…, completion_ids=…, **columns)` gives one number each."""

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def final_answer(text: str) -> str:
    """What a solution ends in: the text after its last `####`, else its last number, else the text itself.

    Numbers are written one way: without thousands commas, units, trailing zeros or a sign of zero.
    """
    after = text.rsplit("####", 1)
    found = NUMBER.findall(after[-1])
    if not found:
        return " ".join(after[-1].lower().split())
    try:
        number = Decimal(found[0 if len(after) > 1 else -1].replace(",", ""))
    except InvalidOperation:
        return " ".join(after[-1].lower().split())
    return str(number.normalize() + 0)


def exact_match(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float]:
    """1 where the completion's final answer is the row's `answer`, else 0."""
    return [
        float(final_answer(text_of(completion)) == final_answer(str(right)))
        for completion, right in zip(completions, answer, strict=True)
    ]


def length(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """Tokens of the completion, the end token included."""
    return [float(len(ids)) for ids in completion_ids]


def regex(pattern: str) -> ScoreFunction:
    """1 where the pattern is found in the completion, else 0; `.` matches line ends."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise GroError.plain(f"the pattern of the score is no regular expression: {error}: {pattern}") from None

    def found(completions: Sequence[Any], **_: Any) -> list[float]:
        return [float(compiled.search(text_of(completion)) is not None) for completion in completions]

    return found


BUILTINS: dict[str, tuple[ScoreFunction, tuple[str, ...]]] = {
    "exact_match": (exact_match, ("answer",)),
    "length": (length, ()),
}
"""Scores that need no option: the function, and the columns that it reads."""

WITH_OPTION: dict[str, Callable[[str], ScoreFunction]] = {"regex": regex}
"""Scores that are made from the text after the colon: `--score fmt=regex:PATTERN`."""


@dataclass(frozen=True)
class Scorer:
    """A score of the method and the function that gives it."""

    name: str
    source: str
    function: ScoreFunction
    reads: tuple[str, ...] = ()  # columns that must have a value in every row

    def __call__(self, records: Sequence[Record], texts: Sequence[Any], ids: Sequence[Sequence[int]]) -> list[float]:
        """The score of every completion; an error names the function and the row where it fails to give one."""
        columns = {name: [record[name] for record in records] for name in records[0] if name not in RESERVED}
        prompts = [record["prompt"] for record in records]
        try:
            found = self.function(prompts=prompts, completions=list(texts), completion_ids=list(ids), **columns)
            values = list(found)
        except GroError:
            raise
        except Exception as error:
            raise GroError.plain(
                f"the score `{self.name}` ({self.source}) failed: {type(error).__name__}: {error}{_raised_at(error)}",
                help="it gets prompts, completions, completion_ids and the columns of the data, and gives a list",
            ) from error
        if len(values) != len(texts):
            raise GroError.plain(
                f"the score `{self.name}` ({self.source}) gave {len(values)} values for {len(texts)} completions"
            )
        return [self._checked(value, prompts[row], texts[row], row) for row, value in enumerate(values)]

    def _checked(self, value: object, prompt: object, text: object, row: int) -> float:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number):
            return number
        raise GroError.plain(
            f"the score `{self.name}` ({self.source}) gave {value!r} for completion {row}: "
            f"{_short(prompt)} → {_short(text)}",
            help="give a finite number for every completion",
        )


RESERVED = ("prompt", "prompts", "completion", "completions", "completion_ids", "chosen", "rejected")
"""Columns that a score function does not get by name: they come as prompts and completions, as TRL gives them."""


def _short(value: object) -> str:
    text = text_of(value)
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _raised_at(error: BaseException) -> str:
    """Where in the user's own file, from the last frame of the traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"


def column(name: str) -> ScoreFunction:
    """The data's own column of that name."""

    def values(**columns: Any) -> Sequence[float]:
        found: Sequence[float] = columns[name]
        return found

    return values


def find_scorers(
    wanted: Mapping[str, str | None], given: Mapping[str, str], columns: Sequence[str], *, drawn: bool
) -> list[Scorer]:
    """The function behind each score of a method.

    `wanted` names the scores and their built-in defaults, `given` is what `--score` says, `columns` are the
    data's. A column of the score's name counts for completions of the data, not for `drawn` ones.
    """
    for name in given:
        if name not in wanted:
            known = ", ".join(f"`{score}`" for score in wanted) or "none"
            raise GroError.plain(f"--score {name}: the method has no score of that name; it has {known}")
    return [_scorer(name, default, given.get(name), columns, drawn=drawn) for name, default in wanted.items()]


def _scorer(name: str, default: str | None, given: str | None, columns: Sequence[str], *, drawn: bool) -> Scorer:
    if given is None and not drawn and name in columns:
        return Scorer(name, f"column {name}", column(name))
    source = given or default
    if source is None:
        known = ", ".join([*BUILTINS, *WITH_OPTION])
        mend = f"add --score {name}=FILE.py:FUNCTION or one of the built-in scores: {known}"
        raise GroError.plain(f"nothing supplies the score `{name}`", help=mend)
    head, _, option = source.partition(":")
    if head in WITH_OPTION:
        if not option:
            raise GroError.plain(f"the score {head} needs a pattern", help=f"add --score '{name}={head}:PATTERN'")
        return Scorer(name, source, WITH_OPTION[head](option))
    if head in BUILTINS and not option:
        function, needed = BUILTINS[head]
        missing = [f"`{one}`" for one in needed if one not in columns]
        if missing:
            there = ", ".join(f"`{one}`" for one in columns)
            raise GroError.plain(
                f"the score {head} reads the column {', '.join(missing)}; the data has {there}",
                help=f"add the column, or another score with --score {name}=FILE.py:FUNCTION",
            )
        return Scorer(name, head, function, needed)
    path, _, attribute = source.rpartition(":")
    if Path(path).suffix != ".py":
        known = ", ".join([*BUILTINS, *(f"{one}:PATTERN" for one in WITH_OPTION)])
        raise GroError.plain(f"--score {name}={source}: expected FILE.py:FUNCTION or one of {known}")
    return Scorer(name, source, _load(Path(path), attribute))


def _load(path: Path, attribute: str) -> ScoreFunction:
    """A function of the user's file. Running that file is what `--score` asks for; a `.gro` file never does it."""
    if not path.is_file():
        raise GroError.plain(f"there is no file {path}", help="check the path that --score gives")
    name = f"grolang_score_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise GroError.plain(f"{path} fails when it is imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise GroError.plain(
            f"{path} has no function `{attribute}`", help=f"define `def {attribute}(completions, **columns)`"
        )
    found: ScoreFunction = function
    return found
