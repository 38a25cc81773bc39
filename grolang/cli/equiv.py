"""`grolang equiv`: are these two methods the same?"""

from __future__ import annotations

from typing import Annotated

import typer

from grolang.cli.options import Examples, Seed, numbers


def equiv(
    methods: Annotated[
        list[str], typer.Argument(metavar="A B", help="Two methods; with --all any number, or a folder.")
    ],
    with_: Annotated[list[str] | None, typer.Option("--with", metavar="P=V", help="A parameter, for both.")] = None,
    when: Annotated[
        list[str] | None, typer.Option("--when", metavar="X=EXPR", help="Replace an observable in both.")
    ] = None,
    proportional: Annotated[bool, typer.Option("--proportional", help="Up to one positive factor.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="The matrix of all pairs.")] = False,
    examples: Examples = 200,
    seed: Seed = 0,
) -> None:
    """Prove that two methods have the same coefficients, or show a batch that tells them apart.

    Exit code 0: equal, proved or on every batch tried; 1: different.
    """
    from rich.console import Console

    from grolang.cli.files import named
    from grolang.compiler.method import load
    from grolang.laws.equivalence import asked, equivalence, matrix
    from grolang.laws.show import counterexample, square

    console = Console()
    loaded = [load(name) for name in named(methods)]
    if everything:
        with console.status("comparing"):
            found = matrix(loaded, examples=examples, seed=seed)
        console.print(square([method.name for method in loaded], found))
        return
    if len(loaded) != 2:
        raise typer.BadParameter(f"two methods are compared, not {len(loaded)}; use --all for more")
    left, right = loaded
    pair = asked(
        left,
        right,
        settings=numbers(with_, "--with"),
        exchanges=when or (),
        proportional=proportional,
    )
    verdict = equivalence(pair, examples=examples, seed=seed)
    words = {
        "proved": "[green]equal[/] (proved)",
        "held": f"[green]equal on {verdict.tried} batches[/] (not proved)",
        "failed": "[red]different[/]",
    }
    console.print(f"{left.name} and {right.name}: {words[verdict.outcome]}")
    if verdict.counterexample is not None:
        console.print(f"left is {left.name}, right is {right.name}")
        console.print(counterexample(verdict.counterexample))
    if verdict.error:
        console.print(verdict.error)
    if not verdict.good:
        raise typer.Exit(1)
