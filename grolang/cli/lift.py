"""`grolang lift`: from a loss to its method."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from grolang.cli.files import write_new
from grolang.cli.options import Examples, Output, Seed, assignments
from grolang.cli.paint import say
from grolang.language import library
from grolang.language.diagnostics import GroError
from grolang.language.findings import listed

if TYPE_CHECKING:
    from grolang.laws.question import Question


class Command(TyperCommand):
    """Takes a loss that begins with a minus sign for what it is: every option here is `-o` or has two dashes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options, losses, words = list[str](), list[str](), iter(args)
        for word in words:
            if word == "--":
                losses += words
            elif word == "--help" or (word.startswith("--") and "=" in word):
                options.append(word)
            elif word == "-o" or word.startswith("--"):
                options += [word, *[value for value in [next(words, None)] if value is not None]]
            else:
                losses.append(word)
        found: list[str] = super().parse_args(ctx, [*options, "--", *losses])
        return found


def lift(
    loss: Annotated[str, typer.Argument(metavar="LOSS", help="A loss in the language of laws, or a file with one.")],
    law: Annotated[str | None, typer.Option(help="The law of the file, where it has several losses.")] = None,
    data: Annotated[str | None, typer.Option(help="Kind of data; by default what the loss needs.")] = None,
    aggregate: Annotated[str | None, typer.Option(help="How the loss is averaged; a loss per token must say.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the method.")] = None,
    param: Annotated[list[str] | None, typer.Option(metavar="P=V", help="A hyper-parameter of the loss.")] = None,
    score: Annotated[list[str] | None, typer.Option(metavar="R", help="A score of the loss, or R=BUILTIN.")] = None,
    let: Annotated[list[str] | None, typer.Option(metavar="X=EXPR", help="A name that the loss uses.")] = None,
    output: Output = None,
    examples: Examples = 100,
    seed: Seed = 0,
) -> None:
    """Write the method of a loss: its gradient as measure, anchor, omega, advantage, …

    The file holds the loss as its law, and is printed only after that law was proved or tried. What has not the
    estimator's form stays a penalty. Exit code 1: all of it does.
    """
    from grolang.laws.lift import lift as lifted
    from grolang.laws.question import of_text

    if law is not None or _is_file(loss):
        if any((data, aggregate, param, score, let)):
            raise typer.BadParameter("a file says itself what its loss is made of")
        question = _of_file(loss, law, name)
    else:
        question = of_text(
            loss,
            name=name or "lifted",
            data=data,
            aggregate=aggregate,
            params=assignments(param, "--param"),
            scores=score or (),
            lets=let or (),
        )
    found = lifted(question, examples=examples, seed=seed)
    if output is None:
        sys.stdout.write(found.text)
    else:
        write_new(output, found.text)
    for left in found.left:
        say(f"`{left.text}` stays a penalty: {left.why}", sys.stderr)
    how = "proved" if found.verdict.outcome == "proved" else f"on {found.verdict.tried} batches, not proved"
    say(f"the coefficients are the gradient of the loss ({how})", sys.stderr)
    if not found.whole:
        say("nothing of the loss has the form credit · ω(α·(measure − anchor)) · υ(advantage)", sys.stderr)
        raise typer.Exit(1)


def _is_file(text: str) -> bool:
    return text.endswith(".gro") or text in library.built_in() or (len(text) < 255 and Path(text).is_file())


def _of_file(file: str, law: str | None, name: str | None) -> Question:
    from dataclasses import replace

    from grolang.compiler.method import load
    from grolang.laws.question import of_method

    method = load(file)
    losses = [row.name for row in method.ir.laws.values() if row.claim == "loss"]
    if not losses:
        help = "write one: `law gradient: loss …`"
        raise GroError.plain(f"`{method.name}` has no law of a loss", help=help)
    if law is not None and law not in losses:
        message = f"the losses of `{method.name}` are the laws {listed(losses, last='and')}"
        raise GroError.plain(message, help="name one with `--law`")
    question = of_method(method.ir, method.ir.laws[law or losses[0]], method.sources)
    return question if name is None else replace(question, name=name, title="")
