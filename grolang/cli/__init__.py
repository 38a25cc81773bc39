"""The command line: one file a command.

Exit codes: 0 clean, 1 findings, 2 wrong use, 70 a bug in grolang, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from grolang.language.diagnostics import GroError

#: findings that say that the command line itself names something that is not there
WRONG_USE = frozenset({"E602"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (by default the process's own) and give its exit code. It never raises."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without Greek shows escapes, it is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        with _terminable():
            code = _guarded(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: what it has open is closed, and what it keeps a record of says so."""
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):  # nobody may listen
            os.write(2, b"terminated\n")  # past Python's buffers, which may be in the midst of a print
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # none: it was set by C, and is not known


def _guarded(arguments: Sequence[str] | None) -> int:
    from grolang.cli.app import command
    from grolang.cli.paint import say

    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        command(*words[:1]).main(args=words, prog_name="grolang")
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            say(end.code, sys.stderr)
            return 1
        return end.code or 0
    except GroError as error:
        say(str(error), sys.stderr)
        return 2 if any(finding.code in WRONG_USE for finding in error.diagnostics) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        say(_bug(error), sys.stderr)
        return 70


def _bug(error: Exception) -> str:
    """What to say of an exception that no user can be blamed for: which stage failed, and what to send."""
    import traceback

    from grolang import __version__

    stage = "grolang"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".")[0] == "grolang":
            stage = f"{module}, `{frame.f_code.co_name}`"
    lines = [
        f"this is a bug in grolang {__version__}, not a mistake of yours",
        f"  stage: {stage}",
        f"  error: {type(error).__name__}: {error}",
        "  please report it, with the command and the .gro file that it read",
        "  (GROLANG_DEBUG=1 shows the traceback)",
    ]
    if os.environ.get("GROLANG_DEBUG") == "1":
        lines = ["".join(traceback.format_exception(error)).rstrip(), *lines[:-1]]
    return "\n".join(lines)
