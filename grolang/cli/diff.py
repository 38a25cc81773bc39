"""`grolang diff`: what changed between two methods, in the parts and in the coefficients."""

from __future__ import annotations

from typing import Annotated

import typer

from grolang.cli.options import Examples, Seed


def diff(
    left: Annotated[str, typer.Argument(metavar="A", help="A file or a built-in method.")],
    right: Annotated[str, typer.Argument(metavar="B", help="Another, or another version of the file.")],
    examples: Examples = 100,
    seed: Seed = 0,
) -> None:
    """Show which statements differ, then whether the coefficients do, where and by how much.

    Exit code 0: the same coefficients, proved or on every batch tried; 1: different.
    """
    from rich.console import Console
    from rich.markup import escape

    from grolang.compiler.method import load
    from grolang.language import library
    from grolang.language.difference import changes
    from grolang.laws.equivalence import asked, equivalence
    from grolang.laws.show import counterexample

    console = Console()
    found = changes(library.find(left), library.find(right))
    for change in found:
        console.print(f"[bold]{change.what}[/]")
        if change.left is not None:
            console.print(f"  [red]- {escape(change.left)}[/]")
        if change.right is not None:
            console.print(f"  [green]+ {escape(change.right)}[/]")
    if not found:
        console.print("every statement is the same")
    verdict = equivalence(asked(load(left), load(right)), examples=examples, seed=seed)
    if verdict.outcome == "proved":
        console.print("\nthe coefficients are the same (proved)")
    elif verdict.good:
        console.print(f"\nthe coefficients are the same on {verdict.tried} batches (not proved)")
    else:
        shown = verdict.counterexample
        gap = f" by up to {float((shown.left - shown.right).abs().max()):.3g} here" if shown else ""
        console.print(f"\nthe coefficients differ{gap}; left is {escape(left)}, right is {escape(right)}")
        console.print(counterexample(shown) if shown else verdict.error)
        raise typer.Exit(1)
