"""The index of the built-in methods, `methods/index.json`, which `grolang list` prints without reading the files.

`python -m grolang.compiler.index` writes it anew from the files; a test fails where the two differ.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from grolang.compiler.needs import needs_of
from grolang.language import library
from grolang.language.checker import check


def index() -> str:
    """A line for each method: what it learns from, what it needs beyond the policy's own pass, its title."""
    lines = []
    for source in library.built_in().values():
        method = check(source).unwrap()
        row = {"data": list(method.data), "needs": needs_of(method).words, "title": method.title}
        lines.append(f"{json.dumps(method.name)}: {json.dumps(row, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    Path(str(files("grolang.methods") / "index.json")).write_text(index(), encoding="utf-8")
