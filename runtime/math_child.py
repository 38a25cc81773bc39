"""The process of the score `math_answer`: a question (a line of JSON) in, an answer out, until its parent is gone.

It imports nothing of grolang, so that it starts soon.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from typing import Any

MEMORY = 4 << 30  # bytes


def _serve() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    from math_verify import parse, verify

    def say(found: dict[str, object]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    def read(text: str) -> list[Any]:
        found: list[Any] = parse(text, parsing_timeout=None)
        return found

    say({})
    for line in sys.stdin:
        right, text = json.loads(line)
        try:
            gold = read(right) or read(f"${right}$")
            if not gold:
                say({"error": f"the row's answer {right!r} is no mathematical expression"})
                continue
            say({"value": float(verify(gold, read(text), timeout_seconds=None))})
        except Exception:  # sympy raises whatever it raises on what a model writes
            say({"value": 0.0})


if __name__ == "__main__":
    _serve()
