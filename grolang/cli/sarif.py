"""Findings as SARIF 2.1.0, the form that code-scanning services read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

from grolang import __version__
from grolang.language.checker import Checked
from grolang.language.codes import CODES
from grolang.language.diagnostics import Diagnostic
from grolang.language.source import Source, Span

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def as_sarif(results: Iterable[tuple[Checked, list[Diagnostic]]]) -> str:
    """One run with a rule for each code that was found, and a result for each finding."""
    pairs = [(finding, result.sources) for result, found in results for finding in found]
    rules = sorted({finding.code for finding, _ in pairs})
    driver = {"name": "grolang", "version": __version__, "rules": [_rule(code) for code in rules]}
    rows = [_result(finding, sources, rules) for finding, sources in pairs]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": rows}
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, ensure_ascii=False, indent=2)


def _rule(code: str) -> dict[str, object]:
    level = "warning" if code.startswith("W") else "error"
    row: dict[str, object] = {"id": code, "defaultConfiguration": {"level": level}}
    if code in CODES:
        row["shortDescription"] = {"text": CODES[code].title}
        row["fullDescription"] = {"text": f"{CODES[code].what} {CODES[code].why}"}
    return row


def _result(finding: Diagnostic, sources: Mapping[str, Source], rules: list[str]) -> dict[str, object]:
    text = finding.message + (f"; {finding.help}" if finding.help else "")
    row: dict[str, object] = {
        "ruleId": finding.code,
        "ruleIndex": rules.index(finding.code),
        "level": finding.severity,
        "message": {"text": text},
    }
    if finding.span is not None:
        row["locations"] = [_location(finding.span, sources)]
    if finding.notes:
        notes = finding.notes
        row["relatedLocations"] = [_location(n.span, sources) | {"message": {"text": n.label}} for n in notes]
    return row


def _location(span: Span, sources: Mapping[str, Source]) -> dict[str, object]:
    place: dict[str, object] = {"artifactLocation": {"uri": quote(Path(span.file).as_posix())}}
    if span.file in sources:
        (line, column), (end_line, end) = (sources[span.file].place(at) for at in (span.start, span.end))
        place["region"] = {"startLine": line, "startColumn": column, "endLine": end_line, "endColumn": end}
    return {"physicalLocation": place}
