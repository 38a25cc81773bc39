"""`grolang check`: every finding of every file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Literal

import typer

from grolang.cli.files import named
from grolang.cli.options import Files
from grolang.cli.paint import say
from grolang.language.checker import Checked, check_file
from grolang.language.diagnostics import Diagnostic, as_json, render


def check(
    files: Files,
    format: Annotated[Literal["text", "json", "sarif"], typer.Option(help="How findings are printed.")] = "text",
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail too.")] = False,
) -> None:
    """Say everything that is wrong with a method, and how to mend it."""
    names = named(files)
    results = once(check_file(name) for name in names)
    findings = [finding for _, found in results for finding in found]
    if format == "text":
        for result, found in results:
            if found:
                say(render(found, result.sources) + "\n")
        say(_summary(findings, len(names)))
    elif format == "json":
        rows = [row for result, found in results for row in json.loads(as_json(found, result.sources))]
        say(json.dumps(rows, ensure_ascii=False, indent=2))
    else:
        from grolang.cli.sarif import as_sarif

        say(as_sarif(results))
    if any(finding.code == "E602" for finding in findings):
        raise typer.Exit(2)
    if any(strict or finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


def once(results: Iterable[Checked]) -> list[tuple[Checked, list[Diagnostic]]]:
    """Each result with its findings, without those that an earlier result had: two files may extend the same."""
    seen: set[Diagnostic] = set()
    pairs = []
    for result in results:
        found = [finding for finding in result.findings if _bare(finding) not in seen]
        seen.update(_bare(finding) for finding in found)
        pairs.append((result, found))
    return pairs


def _bare(finding: Diagnostic) -> Diagnostic:
    """Without its notes, which say from where a file is extended."""
    return finding.model_copy(update={"notes": ()})


def _summary(findings: list[Diagnostic], files: int) -> str:
    errors = sum(finding.severity == "error" for finding in findings)
    counts = [(errors, "error"), (len(findings) - errors, "warning")]
    shown = " and ".join(_counted(count, word) for count, word in counts if count)
    return f"{shown or 'no findings'} in {_counted(files, 'file')}"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
