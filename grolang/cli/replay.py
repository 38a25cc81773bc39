"""`grolang replay`: a method on the batch of a step that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grolang.cli.options import File, Parameters, numbers

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("reward", "advantage", "omega", "upsilon")
SHOWN, WIDTH = 4, 60


def replay(
    file: File,
    batch: Annotated[Path, typer.Argument(help="The file of the batch that the run wrote.")],
    setting: Parameters = None,
) -> None:
    """Evaluate a method on a kept batch: where a number that is not finite comes from, or that all are finite now.

    Exit code 0: all are finite; 1: one is not.
    """
    from grolang.cli.paint import say, table
    from grolang.compiler.blame import NotFinite
    from grolang.compiler.method import load
    from grolang.language.usage import idle_scores, without
    from grolang.runtime.replay import read_batch

    kept = read_batch(batch)
    method = load(file)
    known = {name: value for name, value in kept.params.items() if name in method.params}
    method = method.replace(**(known | numbers(setting)))
    method = replace(method, ir=without(method.ir, idle_scores(method.ir, kept.batch.scores)))
    mask = kept.batch.mask
    say(f"{method.name} on {len(mask)} sequences with {int(mask.sum())} tokens")
    try:
        found = method.evaluate(kept.batch)
    except NotFinite as error:
        for row in error.rows[:SHOWN]:
            if row < len(kept.texts):
                say(f"row {row}: " + " → ".join(map(_short, kept.texts[row])))
        raise
    parts = [(name, found.parts[name]) for name in PARTS if name in found.parts]
    rows = [(name, *_figures(part[mask])) for name, part in [*parts, ("coefficient", found.coefficients)]]
    say(table([("", "least", "mean", "greatest"), *rows]))
    say(f"loss {float(found.loss):.6g}; every number is finite")


def _figures(values: Tensor) -> Sequence[str]:
    return [f"{float(value):.4g}" for value in (values.min(), values.mean(), values.max())]


def _short(text: str) -> str:
    return repr(text if len(text) <= WIDTH else text[:WIDTH] + "…")
