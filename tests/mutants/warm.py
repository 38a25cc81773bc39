"""Runs pytest again and again without waiting for torch to be imported: each time in a fork of this process.

A line of JSON on stdin holds pytest's arguments and the file for its output; the answers on stdout are the fork's
process id, and once it has ended its exit code. Nothing of grolang is imported before a fork.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path

HEAVY = ("torch", "numpy", "hypothesis.strategies", "sympy", "pydantic", "lark", "typer", "rich.console", "pytest")
HEAVY += ("transformers", "accelerate", "datasets", "safetensors.torch")


def main() -> None:
    sys.path[0] = str(Path.cwd())  # as `python -m pytest` has it
    for name in HEAVY:
        import_module(name)
    assert not any(name.split(".")[0] == "grolang" for name in sys.modules)
    for line in sys.stdin:
        asked = json.loads(line)
        process = os.fork()
        if process == 0:
            run(asked["words"], asked["output"])
        say(process)
        _, status = os.waitpid(process, 0)
        say(os.waitstatus_to_exitcode(status))


def say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def run(words: list[str], output: str) -> None:
    """Pytest in a session of its own; never returns."""
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream, place in ((os.open(os.devnull, os.O_RDONLY), 0), (file, 1), (file, 2)):
        os.dup2(stream, place)
    import pytest

    code = 3
    try:
        code = int(pytest.main(words))
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
