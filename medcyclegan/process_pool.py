"""The same work for many cases in parallel; a case that fails does not stop the others."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from types import TracebackType
from typing import Any, TypeVar

from medcyclegan import interruption
from medcyclegan.errors import InputError, show_traceback
from medcyclegan.machine import cores
from medcyclegan.progress import Progress

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")
WORTH_A_PROCESS = 6  # tasks that take as long as a process takes to load its libraries
_WAITING = 2  # tasks per process that are handed over; of thousands, the rest stays here
_MORE_MEMORY = "Give more memory, use fewer --workers, or leave it out."
Warned = list[tuple[str, type[Warning]]]


class ProcessPool:
    """Worker processes for many cases; use it in a `with`.

    They are started when there is work for more than one, and stay for the next call, since each takes seconds to load
    its libraries. They share the cores: each computes with as many threads as there are cores for it. Ctrl-C ends them
    without a word, and they end with this process when it is killed.

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
        self._end(wait=kind is None)

    def each(
        self, function: Callable[..., R], tasks: Mapping[K, tuple[Any, ...]], description: str
    ) -> Iterator[tuple[K, R | InputError]]:
        """Call `function(*arguments)` for every task and give the name with the result, or with the `InputError`.

        Args:
            function: of a module, and its arguments and results picklable, since other processes run it.
            tasks: name -> arguments.
            description: of the work, for the progress.

        Yields:
            (name, result), every name once. A task whose process was killed, most often because memory ran out, gives
            an `InputError` that says so, as does one that needs more memory than there is; what other processes were
            doing is done again. Any other exception ends everything.
        """
        processes = min(self.workers, len(tasks)) or min(cores(), len(tasks) // WORTH_A_PROCESS)
        outcomes = _here(function, tasks) if processes < 2 else self._side_by_side(function, tasks, processes)
        for name, (result, warned) in self.progress.track(outcomes, len(tasks), description):
            for text, category in warned:
                warnings.warn(text, category, stacklevel=2)
            yield name, result

    def _side_by_side(
        self, function: Callable[..., R], tasks: Mapping[K, tuple[Any, ...]], processes: int
    ) -> Iterator[tuple[K, tuple[R | InputError, Warned]]]:
        left = iter(tasks)
        running: dict[Future[tuple[R | InputError, Warned]], K] = {}
        while True:
            suspects: list[K] = []
            try:
                while len(running) < _WAITING * processes and (name := next(left, None)) is not None:
                    suspects = [name]
                    running[self._submit(function, tasks[name], processes)] = name
                    suspects = []
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    outcome = future.result()
                    yield running.pop(future), outcome
            except BrokenProcessPool:
                # Run each task alone to find the one that was to blame.
                suspects += running.values()
                running.clear()
                self._end()
                for name in suspects:
                    try:
                        outcome = self._submit(function, tasks[name], 1).result()
                    except BrokenProcessPool:
                        self._end()
                        reason = "the process that worked on it was killed; most often that means that memory ran out."
                        outcome = InputError(reason, _MORE_MEMORY), []
                    yield name, outcome
                self._end()

    def _submit(
        self, function: Callable[..., R], arguments: tuple[Any, ...], processes: int
    ) -> Future[tuple[R | InputError, Warned]]:
        if self._pool is None:
            threads = max(1, cores() // processes)
            # Forked processes would inherit the locks of libraries' threads and could wait for ever.
            self._pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, (threads,))
        with interruption.held_back():  # it may start a process
            return self._pool.submit(interruption.task, _with_warnings, function, arguments)

    def _end(self, *, wait: bool = True) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=True)
            self._pool = None


def _here(
    function: Callable[..., R], tasks: Mapping[K, tuple[Any, ...]]
) -> Iterator[tuple[K, tuple[R | InputError, Warned]]]:
    for name, arguments in tasks.items():
        yield name, (_outcome(function, arguments), [])


def _outcome(function: Callable[..., R], arguments: tuple[Any, ...]) -> R | InputError:
    try:
        return function(*arguments)
    except InputError as error:
        show_traceback(error)
        return error
    except MemoryError:
        return InputError("it needs more memory than there is.", _MORE_MEMORY)


def _with_warnings(function: Callable[..., R], arguments: tuple[Any, ...]) -> tuple[R | InputError, Warned]:
    """The result and the warnings, which would otherwise stay in the worker."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = _outcome(function, arguments)
    return result, [(str(w.message), w.category) for w in caught if issubclass(w.category, UserWarning)]


def _start_worker(threads: int) -> None:
    """Limit the threads of a worker that shares the cores, and end it with its parent."""
    interruption.heed_in_tasks()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import SimpleITK as sitk
    import torch

    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _end_with_parent() -> None:
    """End with a killed parent, or this process would go on writing beside those of the next run."""
    if (parent := parent_process()) is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
