"""Programs of a model run in a process with limits: what they may do, what they may not, and what is left of them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from grolang.runtime import sandbox
from grolang.runtime.sandbox import Code, program_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for Python alone, and not for a numpy."""
    monkeypatch.setattr(sandbox, "MEMORY", 1 << 28)


def share(program: str, tests: Any, seconds: float = 600.0) -> float:
    return Code(seconds)([program], [tests])[0]


SQUARE = "def f(x):\n    return x * x"


def test_the_share_of_tests_that_pass() -> None:
    assert share(SQUARE, "assert f(2) == 4") == 1.0
    assert share(SQUARE, ["assert f(2) == 4", "assert f(3) == 1", "assert g(3)", "assert f(0) == 0"]) == 0.5
    assert share(f"Here it is:\n```python\n{SQUARE}\n```\nWell?", ["assert f(2) == 4"]) == 1.0


def test_a_program_that_reads_and_prints() -> None:
    tests = [{"input": "1\n", "output": "2"}, {"input": "2", "output": "3\n"}, {"input": "2", "output": "4"}]
    program = "import sys\nprint(int(sys.stdin.read()) + 1)\nif __name__ == '__main__':\n    sys.exit()"
    assert share(program, tests) == pytest.approx(2 / 3)


def test_the_last_fenced_block_is_the_program() -> None:
    assert program_of("```py\na\n```\n and\n```\nb\n```") == "b\n" and program_of("x = 1") == "x = 1"


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "def f(:",
        "raise SystemExit",
        "import os; os.close(4); os.close(5); os.close(3)",
        "x = [0] * 10**9",
        "open('big', 'wb').write(bytes(100 << 20))",
        "[open('/dev/null') for _ in range(1000)]",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); x = [0] * 10**9",
    ],
)
def test_programs_that_end_early_or_take_too_much_pass_nothing(program: str) -> None:
    assert share(program, "assert True") == 0.0


@pytest.mark.skipif(os.getuid() == 0, reason="root may start as many processes as it likes; the clock ends them")
def test_a_program_starts_so_many_processes() -> None:
    assert share("import os, time\nfor _ in range(200):\n    if not os.fork(): time.sleep(9)", "assert True") == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", ["while True: pass", "import time; time.sleep(1000)", "import os\nwhile True: os.fork()"]
)
def test_programs_without_end_are_killed(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "START", 1.0)
    assert share(program, "assert True", 1.0) == 0.0


def test_there_is_no_network() -> None:
    if not sandbox.jail():
        pytest.skip("no namespaces here")
    assert share("import socket", "assert not [name for _, name in socket.if_nameindex() if name != 'lo']") == 1.0


def test_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    probe = "import ctypes\nassert ctypes.CDLL(None).syscall(444, None, 0, 1) >= 1"
    if share(probe, "pass") == 0.0:
        pytest.skip("this kernel has no Landlock")
    target = tmp_path / "mine"
    target.write_text("still here")
    for program in (
        f"open({str(target)!r}, 'w')",
        f"import os; os.remove({str(target)!r})",
        "open('/tmp/x-grolang', 'w')",
    ):
        assert share(program, "pass") == 0.0
    assert target.read_text() == "still here"
    assert share("open('own', 'w').write('yes')", "assert open('own').read() == 'yes'") == 1.0


def test_a_secret_of_the_environment_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    assert share("import os", "assert 'MY_TOKEN' not in os.environ") == 1.0


def commands() -> Iterator[bytes]:
    """Of every process that is there; others come and go meanwhile."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_bytes()


def test_nothing_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not sandbox.jail():
        pytest.skip("no namespaces here: what takes a session of its own may stay")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mark = f"left-by-{os.getpid()}"
    words = f"[sys.executable, '-c', 'import time; time.sleep(99)', {mark!r}]"
    program = f"import subprocess, sys\nsubprocess.Popen({words}, start_new_session=True)"
    assert share(program, "pass") == 1.0
    assert not [one for one in commands() if mark.encode() in one and b"-c" in one]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tests", [[], None, 3, [None], [{"input": "x"}]])
def test_tests_that_are_none(tests: Any) -> None:
    with pytest.raises(ValueError, match="`tests` must be"):
        share(SQUARE, tests)
