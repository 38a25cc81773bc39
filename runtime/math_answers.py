"""The score `math_answer`: whether two mathematical expressions are equal, decided in processes that can be killed.

math-verify reads and sympy compares, and sympy on what a model may write (`9**9**9**9`) neither ends nor lets itself be
interrupted. So each comparison runs in a child process, which is killed when it takes too long.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any

from grolang.language.diagnostics import GroError
from grolang.runtime.forms import text_of

SECONDS = 5.0  # for one comparison
START = 120.0  # for a child to import sympy on a busy machine
CHILDREN = max(1, min(4, (os.cpu_count() or 1) - 1))


class MathAnswer:
    """1 where the completion's final answer equals the row's `answer` as mathematics, else 0: 1/2 is 0.5.

    An answer that takes longer than `seconds` to compare is not equal. A row whose own answer is no mathematics is an
    error.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        if find_spec("math_verify") is None:
            raise GroError.plain("the score math_answer needs math-verify", help="pip install 'grolang[math]'")
        self.free: SimpleQueue[_Child] = SimpleQueue()
        for _ in range(CHILDREN):
            self.free.put(_Child(seconds))

    def __call__(self, completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float]:
        with ThreadPoolExecutor(CHILDREN) as threads:
            return list(threads.map(self._compare, answer, map(text_of, completions)))

    def _compare(self, answer: object, text: str) -> float:
        child = self.free.get()
        try:
            found = child.ask([str(answer), text])
        finally:
            self.free.put(child)
        if found is None:
            return 0.0
        if "error" in found:
            raise ValueError(found["error"])
        return float(found["value"])


class _Child:
    """One process, started when it is first needed and again after it had to be killed."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, question: object) -> dict[str, Any] | None:
        """The child's answer; None where it gave none in time or died of the question."""
        if self.process is None:
            self.process = _start()
            if self._read(START) is None:
                raise GroError.plain(
                    "the score math_answer cannot start its process", help="import math_verify to see why"
                )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._end()
            return None
        return self._read(self.seconds)

    def _read(self, seconds: float) -> dict[str, Any] | None:
        assert self.process is not None and self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(seconds) else b""
        if not line:
            self._end()
            return None
        found: dict[str, Any] = json.loads(line)
        return found

    def _end(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()
        self.process = None


def _start() -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "grolang.runtime.math_child"]
    return subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
