"""The same work for many cases, side by side, where a case that fails leaves the others alone."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from medcyclegan import interruption
from medcyclegan.errors import InputError
from medcyclegan.machine import cores
from medcyclegan.progress import Progress

WORTH_A_PROCESS = 6  # tasks that take as long as a process takes to load its libraries
_MORE_MEMORY = "Give more memory, use fewer --workers, or leave it out."
Outcome = tuple[Any, list[tuple[str, type[Warning]]]]


class ProcessPool:
    """Processes that work on cases side by side; use it in a `with`.

    They are started when there is work for more than one, and stay for the next call, since each takes seconds to load
    its libraries.

    Args:
        workers: processes; 1 works here and in order, more give results as they come; 0 takes as many as there are
            cores, and fewer where they would have too little to do.
        progress: watches.
    """

    def __init__(self, workers: int, progress: Progress) -> None:
        if workers < 0:
            raise InputError(f"workers is {workers}; 0 (as many as there are cores) or more are needed.")
        self.workers = workers
        self.progress = progress
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
            self._pool = None

    def each(
        self, function: Callable[..., Any], tasks: Mapping[str, tuple[Any, ...]], description: str
    ) -> Iterator[tuple[str, Any | InputError]]:
        """Call `function(*arguments)` for every task and give the name with the result, or with the `InputError`.

        Args:
            function: of a module, and its arguments and results picklable, since other processes run it.
            tasks: name -> arguments.
            description: of the work, for the progress.

        Yields:
            (name, result), every name once. A task whose process was killed, most often because memory ran out, gives
            an `InputError` that says so, as does one that needs more memory than there is; the others are done again
            on their own. Any other exception ends everything.
        """
        alone = len(tasks) < 2 or (self.workers or min(cores(), len(tasks) // WORTH_A_PROCESS)) < 2
        outcomes = _here(function, tasks) if alone else self._side_by_side(function, tasks)
        for name, (result, told) in self.progress.track(outcomes, len(tasks), description):
            for text, category in told:
                warnings.warn(text, category, stacklevel=2)
            yield name, result

    def _side_by_side(
        self, function: Callable[..., Any], tasks: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[str, Outcome]]:
        left = dict(tasks)
        if self._pool is None:
            self._pool = _pool(self.workers or cores())
        try:
            with interruption.held_back():
                futures = {
                    self._pool.submit(interruption.task, _listened, function, arguments): name
                    for name, arguments in tasks.items()
                }
            for future in as_completed(futures):
                outcome = future.result()
                del left[futures[future]]
                yield futures[future], outcome
        except BrokenProcessPool:
            self._pool = None
            # Which of the running tasks was to blame shows when each runs alone.
            for name, arguments in left.items():
                yield name, _alone(function, arguments)


def _here(function: Callable[..., Any], tasks: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[str, Outcome]]:
    for name, arguments in tasks.items():
        yield name, (_outcome(function, arguments), [])


def _outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any | InputError:
    try:
        return function(*arguments)
    except InputError as error:
        return error
    except MemoryError:
        return InputError("it needs more memory than there is.", _MORE_MEMORY)


def _alone(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome:
    try:
        with _pool(1) as pool:
            with interruption.held_back():
                future = pool.submit(interruption.task, _listened, function, arguments)
            return future.result()
    except BrokenProcessPool:
        reason = "the process that worked on it was killed; most often that means that memory ran out."
        return InputError(reason, _MORE_MEMORY), []


def _pool(workers: int) -> ProcessPoolExecutor:
    # Forked processes would inherit the locks of libraries' threads and could wait for ever.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    """Processes that share the cores must not each start a thread per core, nor go on when nobody waits for them."""
    interruption.heed_in_tasks()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import SimpleITK as sitk
    import torch

    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _end_with_parent() -> None:
    """A parent that was killed tells nobody; its processes would write what they have begun, beside the next ones'."""
    if (parent := parent_process()) is not None:
        wait([parent.sentinel])
        os._exit(1)


def _listened(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome:
    """The result and the warnings, which would otherwise end in another process."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = _outcome(function, arguments)
    return result, [(str(w.message), w.category) for w in caught if issubclass(w.category, UserWarning)]
