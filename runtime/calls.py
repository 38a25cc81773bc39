"""Calls into a user's function that can be given up: each function runs in a thread of its own, with a time limit.

What a thread can and cannot do. A call that sleeps, waits for a network or loops in Python is abandoned: the run goes
on, the thread is asked to end and may linger. A call into C code that never lets Python run again (a regular
expression that backtracks for ever, `9**9**9`) stops every thread of the process; then a watchdog outside of Python
prints where each thread stands and ends the process, `GRACE` seconds after the limit. The last checkpoint is intact.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import faulthandler
import inspect
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Waited  # TimeoutError itself from Python 3.11 on
from queue import SimpleQueue
from typing import Any

import torch

GRACE = 30.0  # seconds between a limit and the end of a process that does not come back from C

Job = tuple[Callable[[], Any], "Future[Any]"]
Jobs = SimpleQueue["Job | None"]


class NoAnswer(Exception):
    """A call that was given up."""


class Caller:
    """One function and the thread that runs it, which stays: an async client keeps its event loop from call to call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.jobs: Jobs | None = None
        self.thread: threading.Thread | None = None

    @property
    def waits(self) -> bool:
        """Whether it is async: such calls are started together."""
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(type(self.function).__call__)

    def start(self, **words: Any) -> Future[Any]:
        """Begin a call; `result` waits for it."""
        if self.jobs is None:
            self.jobs = SimpleQueue()
            weakref.finalize(self, self.jobs.put, None).atexit = False  # the interpreter's end wakes nobody
            device = torch.cuda.current_device() if torch.cuda.is_available() else None
            self.thread = threading.Thread(target=_work, args=(self.jobs, device), daemon=True)
            self.thread.start()
        context = contextvars.copy_context()
        future: Future[Any] = Future()
        self.jobs.put((lambda: context.run(self.function, **words), future))
        return future

    def result(self, future: Future[Any], seconds: float) -> Any:
        """What the call gave, or what it raised; NoAnswer after `seconds` (0: no limit)."""
        if not seconds:
            return future.result()
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=sys.__stderr__ or sys.stderr)
        try:
            return future.result(seconds)
        except Waited:
            if future.done():  # it raised a TimeoutError of its own
                raise
            self._abandon()
            raise NoAnswer from None
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _abandon(self) -> None:
        """Leave the thread behind, with an exception that reaches it where it runs Python next."""
        assert self.thread is not None and self.thread.ident is not None and self.jobs is not None
        self.jobs.put(None)
        number = ctypes.c_ulong(self.thread.ident)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(SystemExit))
        self.thread = self.jobs = None


def _work(jobs: Jobs, device: int | None) -> None:
    """The thread: one call after another, until there is None."""
    if device is not None:  # which is the thread's own, and would be the first one
        torch.cuda.set_device(device)
    loop = asyncio.new_event_loop()
    while (job := jobs.get()) is not None:
        _answer(*job, loop)
        del job  # with what the function holds: a thread that waits must not be the last to let a model go
    loop.close()


def _answer(call: Callable[[], Any], future: Future[Any], loop: asyncio.AbstractEventLoop) -> None:
    try:
        found = call()
        future.set_result(loop.run_until_complete(found) if inspect.isawaitable(found) else found)
    except SystemExit as error:
        future.set_exception(RuntimeError(f"it exits: {error}").with_traceback(error.__traceback__))
    except BaseException as error:
        future.set_exception(error)
