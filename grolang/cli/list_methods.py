"""`grolang list`: the built-in methods."""

from __future__ import annotations

import json
from importlib.resources import files

from grolang.cli.paint import say, table


def list_methods() -> None:
    """List the built-in methods: name, data, what they need, title."""
    index = json.loads((files("grolang.methods") / "index.json").read_text(encoding="utf-8"))
    rows = [("NAME", "DATA", "NEEDS", "TITLE")]
    for name, row in index.items():
        rows.append((name, " + ".join(row["data"]), ", ".join(row["needs"]) or "-", row["title"]))
    say(table(rows))
