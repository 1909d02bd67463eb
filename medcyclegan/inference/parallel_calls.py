"""Calls of a network in several CPU threads.

Splitting single convolutions over cores gains less than giving each core calls of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
THREADS = 2  # more hold more windows in memory, and two already keep two cores busy


def runs_in_threads(device: torch.device) -> bool:
    """Whether threads speed calls up on this device: on a CPU with two cores or more."""
    return device.type == "cpu" and torch.get_num_threads() > 1


def in_threads(call: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Each item and what `call` returns for it, in order.

    Args:
        call: runs a network on the processor, without gradients, and changes nothing.
        items: are taken one by one, at most `THREADS` ahead of what has been yielded.
    """

    def without_gradients(item: T) -> R:
        with torch.inference_mode():  # which is per thread
            return call(item)

    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(THREADS, "window", torch.set_num_threads, (max(1, cores // THREADS),)) as threads:
            waiting: deque[tuple[T, Future[R]]] = deque()
            for item in items:
                if len(waiting) == THREADS:
                    first, future = waiting.popleft()
                    yield first, future.result()
                waiting.append((item, threads.submit(without_gradients, item)))
            for first, future in waiting:
                yield first, future.result()
    finally:
        torch.set_num_threads(cores)  # the default for threads started later
