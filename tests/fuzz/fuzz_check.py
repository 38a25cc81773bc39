"""Coverage-guided fuzzing of the front end: any bytes give a result or findings, never a traceback.

    pip install atheris
    python tests/fuzz/fuzz_check.py [-max_total_time=600] [CORPUS …]

Without a corpus it starts from the built-in methods and the bad programs of tests/golden. What a text gives is
rendered both ways; a method that checks is lowered to its program, printed as Python, formatted, and its formatted
text must check to the same IR apart from places. A crash is written to a file `crash-…` that repeats it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["grolang", "lark"]):
    from grolang.compiler.emit import emit
    from grolang.compiler.lowering import lower
    from grolang.language.checker import check
    from grolang.language.diagnostics import as_json, render
    from grolang.language.formatter import format_text
    from grolang.language.source import Source

ROOT = Path(__file__).resolve().parents[2]


def one_input(data: bytes) -> None:
    """Everything that happens to a text before torch."""
    text = data.decode("utf-8", "replace")
    checked = check(Source("fuzz.gro", text))
    render(checked.findings, checked.sources)
    as_json(checked.findings, checked.sources)
    if checked.method is None:
        return
    program = lower(checked.method)
    compile(emit(checked.method), "fuzz", "exec")
    again = check(Source("fuzz.gro", format_text(text))).unwrap()
    assert lower(again).steps == program.steps, "formatting changed the program"


def seeds() -> str:
    """A folder with the programs that the project has."""
    folder = Path(tempfile.mkdtemp(prefix="grolang-corpus-"))
    for path in (*ROOT.glob("methods/*.gro"), *ROOT.glob("tests/golden/bad/*.gro")):
        (folder / path.name).write_bytes(path.read_bytes())
    return str(folder)


if __name__ == "__main__":
    words = sys.argv if any(not word.startswith("-") for word in sys.argv[1:]) else [*sys.argv, seeds()]
    atheris.Setup([*words, "-max_len=4096", "-timeout=60"], one_input)
    atheris.Fuzz()
