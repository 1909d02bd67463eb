"""Progress of anything long: a bar in a terminal, plain lines elsewhere, silence in a library call.

Library functions take a `Progress` and call `track`; the command line decides which one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Anything that can watch an iteration."""

    def track(self, items: Iterable[T], total: int, description: str) -> Iterator[T]:
        """Yield `items` unchanged while showing how many of `total` are done."""
        ...


class Silent:
    """Shows nothing."""

    def track(self, items: Iterable[T], total: int, description: str) -> Iterator[T]:
        yield from items


class Terminal:
    """A rich bar on standard error if that is a terminal, else a plain line every `interval_s` seconds.

    Standard output stays free for results.
    """

    def __init__(self, interval_s: float = 10.0) -> None:
        self.interval_s = interval_s

    def track(self, items: Iterable[T], total: int, description: str) -> Iterator[T]:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import track

            yield from track(items, description=description, total=total, console=Console(stderr=True), transient=True)
            return
        started = last = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if done == total or now - last >= self.interval_s:
                last = now
                print(f"{description}: {done} of {total} ({now - started:.0f} s)", file=sys.stderr, flush=True)


def duration(low: float, high: float | None = None) -> str:
    """Seconds in words, of one length or from `low` to `high`: "about 20 to 35 minutes"."""
    high = low if high is None else high
    size, unit = next(((n, u) for n, u in ((3600, "hour"), (60, "minute")) if high >= 1.5 * n), (1, "second"))
    # Two digits are more than such a figure is good for.
    few, many = (
        f"{value:.0f}" if value >= 3 or unit == "second" else f"{value:.1f}" for value in (low / size, high / size)
    )
    return f"about {many if few == many else f'{few} to {many}'} {unit}{'' if few == many == '1' else 's'}"
