"""Ctrl-C with several processes: a terminal sends it to each of them, and each should end silently.

A process that is interrupted while it loads libraries or waits for work would print a traceback of its own. So a
process starts with the signal held back, and afterwards heeds it within a task only, where what is half done is
cleaned up.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_HOLDS = hasattr(signal, "pthread_sigmask")  # not on every system
_working = False
_came = False


@contextmanager
def held_back() -> Iterator[None]:
    """Processes started in the block ignore Ctrl-C until `heed_in_tasks`; this one gets it afterwards."""
    if not _HOLDS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heed_in_tasks() -> None:
    """For the start of such a process: from now on, Ctrl-C ends the task that runs and those that follow."""
    signal.signal(signal.SIGINT, _interrupt)
    if _HOLDS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def task(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function where Ctrl-C raises KeyboardInterrupt."""
    global _working
    if _came:
        raise KeyboardInterrupt
    _working = True
    try:
        return function(*arguments)
    finally:
        _working = False


def _interrupt(_number: int, _frame: object) -> None:
    global _came
    _came = True
    if _working:
        raise KeyboardInterrupt
