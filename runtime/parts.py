"""The files of a run's data: what `--data [KIND=]NAME[:WEIGHT]` says, or the embedded rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grolang.language.diagnostics import GroError
from grolang.language.findings import nearest
from grolang.runtime import defaults
from grolang.runtime.forms import COLUMNS
from grolang.runtime.settings import RunSettings


@dataclass(frozen=True)
class Part:
    """A file of the data: what `--data [KIND=]NAME[:WEIGHT]` says. Without weights files count by their rows."""

    name: str
    kind: str
    weight: float | None = None


def data_parts(kinds: Sequence[str], settings: RunSettings) -> list[Part]:
    """The files of each data kind: the embedded rows, or what `--data` says."""
    if not settings.data:
        return [Part(str(defaults.data_path(kind)), kind) for kind in kinds]
    return read_parts(settings.data, kinds)


def read_parts(given: Sequence[str], kinds: Sequence[str]) -> list[Part]:
    """The files of a method that learns from these kinds, in the order of the kinds.

    Files without a kind: one holds all kinds, as many as there are kinds stand in their order.
    """
    words = [_words(text) for text in given]
    if len(kinds) > 1 and all(kind is None for kind, _, _ in words):
        if len(words) not in (1, len(kinds)):
            raise GroError.plain(
                f"--data was given {len(given)} times, and the method learns from {' + '.join(kinds)}",
                help=f"say of what kind each is: --data {kinds[0]}=NAME",
            )
        words = [(kind, *words[at if len(words) > 1 else 0][1:]) for at, kind in enumerate(kinds)]
    parts = [Part(name, kind or kinds[0], weight) for kind, name, weight in words]
    _check_parts(parts, kinds)
    return sorted(parts, key=lambda part: kinds.index(part.kind))


def _check_parts(parts: Sequence[Part], kinds: Sequence[str]) -> None:
    first, *others = kinds
    seen: set[tuple[str, Path]] = set()
    for part in parts:
        if part.kind not in kinds:
            message = f"--data {part.kind}={part.name}: the method learns from {' + '.join(kinds)}"
            raise GroError.plain(message, help="leave that file out")
        if part.weight is not None and part.kind in others:
            message = f"--data {part.name}: {part.kind} join the groups of their prompts, so they have no weight"
            raise GroError.plain(message, help=f"leave out :{part.weight:g}")
        if (place := (part.kind, Path(part.name).resolve())) in seen:
            message = f"--data {part.name} is given twice"
            raise GroError.plain(message, help=f"give it once; a larger share is {part.name}:WEIGHT")
        seen.add(place)
    for kind in kinds:
        if kind not in {part.kind for part in parts}:
            raise GroError.plain(f"--data: no file of {kind}", help=f"add --data {kind}=NAME")
    bare = [part.name for part in parts if part.kind == first and part.weight is None]
    if bare and any(part.weight is not None for part in parts):
        raise GroError.plain("--data: some files have a weight", help=f"give {bare[0]} one too, as {bare[0]}:1")


def _words(text: str) -> tuple[str | None, str, float | None]:
    """Kind, name and weight. A file whose own name looks like that is taken by its name."""
    kind, name, weight = None, text, None
    stem, _, tail = text.rpartition(":")
    if stem and not Path(text).exists() and (number := _number(tail)) is not None:
        name, weight = stem, number
        if not 0 < weight < math.inf:
            raise GroError.plain(
                f"--data {text}: a weight is a number above 0", help=f"write {stem}:1, or leave it out"
            )
    head, equals, rest = name.partition("=")
    if equals and head.isidentifier() and not Path(name).exists():
        kind, name = head, rest
        if kind not in COLUMNS:
            message = f"--data {text}: there is no such file, and `{kind}` is no kind of data"
            close = nearest(kind, COLUMNS)
            mend = f"write {close}={rest}" if close else f"write KIND={rest}, KIND one of {', '.join(COLUMNS)}"
            raise GroError.plain(message, help=mend)
    return kind, name, weight


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
