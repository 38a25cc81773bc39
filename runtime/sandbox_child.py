"""The process that runs a program of the score `code` against its tests, within limits that it sets itself first.

It reads one JSON object from the descriptor that its first argument names, and writes a line to the second one for
each test that passed: the number of the test after a word that only the parent and this file know.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import sys
from typing import Any

WRITES = sum(1 << bit for bit in (1, *range(4, 13)))  # write, remove, make …
"""Landlock's rights (linux/landlock.h) that a program has in its own folder only."""

CREATE, ADD, RESTRICT = 444, 445, 446  # syscall numbers, the same on every architecture
NO_NEW_PRIVILEGES = 38  # of prctl


def main() -> None:
    with open(int(sys.argv[1]), encoding="utf-8") as file:
        job: dict[str, Any] = json.load(file)
    passed, word = int(sys.argv[2]), job["word"]
    for name, most in job["limits"].items():
        kind = getattr(resource, name, None)
        if kind is not None:
            resource.setrlimit(kind, (most, most))
    wall_in(".")
    sys.argv[:] = ["program.py"]
    names: dict[str, object] = {"__name__": job["name"]}
    try:
        exec(compile(job["program"], "program.py", "exec"), names)
    except SystemExit as end:
        if end.code or job["tests"]:
            raise
    if not job["tests"]:  # it has only to run; the parent looks at what it printed
        sys.stdout.flush()
        os.write(passed, f"{word} 0\n".encode())
    for number, test in enumerate(job["tests"]):
        try:
            exec(compile(test, "test.py", "exec"), names)
        except BaseException:
            continue
        os.write(passed, f"{word} {number}\n".encode())


def wall_in(folder: str) -> bool:
    """Write nowhere but in `folder`, and open no TCP connection, as far as the kernel knows Landlock; False if not."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE, None, 0, 1)
    if version < 1:
        return False
    rights = WRITES | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    handled = struct.pack("QQ", rights, 0b11 if version >= 4 else 0)  # the second: bind and connect
    size = 16 if version >= 4 else 8
    rules = libc.syscall(CREATE, handled, size, 0)
    for path, allowed in ((folder, rights), ("/dev/null", 1 << 1)):
        below = os.open(path, os.O_PATH | os.O_CLOEXEC)
        done = libc.syscall(ADD, rules, 1, struct.pack("=Qi", allowed, below), 0)
        os.close(below)
        if done:
            return False
    return bool(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and libc.syscall(RESTRICT, rules, 0) == 0)


if __name__ == "__main__":
    main()
