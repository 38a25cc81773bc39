"""The score `code`: the share of a row's tests that the completion's program passes, run in a process with limits.

A fence against accidents and clumsy cheating, no prison: a program that means harm belongs into a virtual machine.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from grolang.language.diagnostics import GroError
from grolang.runtime.forms import text_of

SECONDS = 10.0  # of a program with its tests, on the clock and of computing
START = 5.0  # more on the clock, for Python to start on a busy machine
MEMORY, FILE, PROCESSES, OPEN = 2 << 30, 16 << 20, 64, 64  # bytes, bytes, threads and processes, open files
JAIL = ("unshare", "--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child")
"""Namespaces of its own: no network, no other process to be seen, and all that it started dies with it."""

COUNTING = threading.Lock()  # psutil keeps the processes that it has seen in a table that threads share
FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)```", re.DOTALL)


class Code:
    """The share in [0, 1] of the row's `tests` that the program in the completion passes.

    The program is the last fenced block of the completion, else all of it. A test is Python that raises nothing when
    it runs after the program (`assert f(2) == 4`), or an object with `input` and `output` of a program that reads and
    prints. `tests` is one of them or a list.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        if sys.platform != "linux":
            raise GroError.plain("the score code runs on Linux only: elsewhere its limits do not hold")
        self.seconds = seconds
        if not jail():
            warnings.warn(
                "no namespaces here (unshare fails): programs of the score `code` reach the network", stacklevel=2
            )

    def __call__(self, completions: Sequence[Any], tests: Sequence[Any], **_: Any) -> list[float]:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return list(threads.map(self._share, map(text_of, completions), tests))

    def _share(self, text: str, tests: object) -> float:
        every = list(tests) if isinstance(tests, Sequence) and not isinstance(tests, str) else [tests]
        if not every or not all(isinstance(test, str) or _prints(test) for test in every):
            raise ValueError("`tests` must be a text of Python, or an object with input and output, or a list of them")
        program = program_of(text)
        asserts = [test for test in every if isinstance(test, str)]
        passed = len(run(program, asserts, self.seconds)) if asserts else 0
        passed += sum(self._printed(program, test) for test in every if isinstance(test, Mapping))
        return passed / len(every)

    def _printed(self, program: str, test: Mapping[str, str]) -> bool:
        return run(program, [], self.seconds, str(test["input"]), str(test["output"])) == {0}


def _prints(test: object) -> bool:
    return isinstance(test, Mapping) and {"input", "output"} <= test.keys()


def program_of(text: str) -> str:
    """The last fenced block, else the text."""
    blocks = FENCE.findall(text)
    return str(blocks[-1]) if blocks else text


@cache
def jail() -> tuple[str, ...]:
    """The words before the command that give it namespaces of its own; none where the system does not allow it."""
    try:
        done = subprocess.run([*JAIL, "true"], capture_output=True, timeout=60)  # it is asked once
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return JAIL if done.returncode == 0 else ()


def run(program: str, tests: Sequence[str], seconds: float, given: str = "", wanted: str | None = None) -> set[int]:
    """The numbers of the tests that pass; 0 stands for a program that ends well and prints what is wanted."""
    word = secrets.token_hex(16)
    limits = {
        "RLIMIT_CPU": max(1, round(seconds)),
        "RLIMIT_AS": MEMORY,
        "RLIMIT_FSIZE": FILE,
        "RLIMIT_NOFILE": OPEN,
        "RLIMIT_NPROC": PROCESSES + (0 if jail() else _threads()),
        "RLIMIT_CORE": 0,
    }
    name = "program" if tests else "__main__"
    job = json.dumps({"program": program, "tests": list(tests), "name": name, "word": word, "limits": limits})
    with tempfile.TemporaryDirectory(prefix="grolang-", ignore_cleanup_errors=True) as folder:
        said = _process(job, given, Path(folder), seconds)
        printed = Path(folder, "printed").read_bytes().decode(errors="replace")
    passed = {int(line.split()[1]) for line in said.splitlines() if line.startswith(word)}
    return passed if wanted is None or printed.split() == wanted.split() else set()


def _process(job: str, given: str, folder: Path, seconds: float) -> str:
    """What the child wrote of tests that passed, before it ended or was killed with all that it started."""
    told, tell = os.pipe()
    hear, heard = os.pipe()
    Path(folder, "given").write_text(given, encoding="utf-8")
    child = str(Path(__file__).with_name("sandbox_child.py"))
    words = [*jail(), sys.executable, "-I", child, str(told), str(heard)]
    home = {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}
    with Path(folder, "given").open("rb") as stdin, Path(folder, "printed").open("wb") as stdout:
        process = subprocess.Popen(
            words, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, cwd=folder, env=home,
            pass_fds=(told, heard), start_new_session=True,
        )  # fmt: skip
    os.close(told)
    os.close(heard)
    try:
        with os.fdopen(tell, "w", encoding="utf-8") as file:
            file.write(job)
        process.wait(seconds + START)
    except (subprocess.TimeoutExpired, BrokenPipeError):
        pass
    finally:
        with os.fdopen(hear, "rb") as answers:
            with suppress(ProcessLookupError):  # all of it has ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.set_blocking(hear, False)  # a process that fled the group may still hold the other end
            said = answers.read(1 << 16) or b""
    return said.decode(errors="replace")


def _threads() -> int:
    """Threads that the user runs already: without a namespace the limit counts them too."""
    with COUNTING:
        every = [one.info for one in psutil.process_iter(["uids", "num_threads"])]
    return sum(one["num_threads"] or 0 for one in every if one["uids"] and one["uids"].real == os.getuid())
