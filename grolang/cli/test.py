"""`grolang test`: every law of every file."""

from __future__ import annotations

import typer

from grolang.cli.options import Examples, Files, Seed


def test(
    files: Files,
    examples: Examples = 100,
    seed: Seed = 0,
) -> None:
    """Prove or try each law; a failed one prints a small batch that breaks it."""
    from rich.console import Console

    from grolang.cli.files import named
    from grolang.compiler.method import load
    from grolang.laws.check import check_laws
    from grolang.laws.show import failure, table

    console = Console()
    rows, without = [], []
    with console.status("") as status:
        for name in named(files):
            method = load(name)
            without += [] if method.ir.laws else [method.name]
            for verdict in check_laws(method, examples=examples, seed=seed):
                rows.append((method.name, verdict))
                status.update(f"{method.name}: {verdict.law} {verdict.outcome}")
    if rows:
        console.print(table(rows))
    failed = [(name, verdict) for name, verdict in rows if not verdict.good]
    for name, verdict in failed:
        console.print()
        console.print(failure(name, verdict))
    if rows:
        console.print(f"\n{len(rows) - len(failed)} of {len(rows)} laws hold")
    if without:
        verb = "has" if len(without) == 1 else "have"
        console.print(f"{', '.join(without)} {verb} no law; `law gradient: loss EXPR` states the loss that it descends")
    if failed:
        raise typer.Exit(1)
