"""Calls of a network side by side on the cores of a processor.

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
LANES = 2  # threads; more hold more windows in memory, and two already keep two cores busy


def side_by_side(call: Callable[[T], R], items: Iterable[T], device: torch.device) -> Iterator[tuple[T, R]]:
    """Each item and what `call` gives for it, in order, computed in two threads where there are two cores or more.

    Args:
        call: runs a network and keeps nothing; without gradients here.
        items: are taken one by one, at most `LANES` ahead of what has been given.
        device: where the network is; on any but a processor the calls come one after the other.
    """
    if not pays(device):
        for item in items:
            yield item, call(item)
        return

    def quietly(item: T) -> R:
        with torch.inference_mode():  # which belongs to a thread
            return call(item)

    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(LANES, "lane", torch.set_num_threads, (max(1, cores // LANES),)) as threads:
            waiting: deque[tuple[T, Future[R]]] = deque()
            for item in items:
                if len(waiting) == LANES:
                    first, future = waiting.popleft()
                    yield first, future.result()
                waiting.append((item, threads.submit(quietly, item)))
            for first, future in waiting:
                yield first, future.result()
    finally:
        torch.set_num_threads(cores)  # what threads begin with that are made later


def pays(device: torch.device) -> bool:
    """Whether calls run side by side on this device."""
    return device.type == "cpu" and torch.get_num_threads() > 1
