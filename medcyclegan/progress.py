"""Progress of long work: a bar in a terminal, plain lines elsewhere, nothing in library calls.

Library functions take a `Progress` and call `track`; the command line decides which one. Of warnings about many volumes
it shows one line per kind. Two warnings are of a kind if they differ only in the volume and the numbers.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")
NAMED = 3  # volumes that a warning about several names
_NUMBERS = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?(?:(?:, | x | and )[-+]?\d+(?:[.,]\d+)*)*", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{2,}")


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


def by_kind(warnings: Iterable[str]) -> list[str]:
    """Warnings of a kind as one line, in the order in which the kinds came.

    Args:
        warnings: `NAME: text`, where NAME is a volume or a case; others are taken by their text.

    Returns:
        A single warning of its kind unchanged; several as the first one, with their number and the first
        `NAMED` names. The same warning given twice counts once.
    """
    kinds: dict[str, dict[str, None]] = {}
    for warning in warnings:
        name, colon, text = warning.partition(": ")
        kind = re.sub("#+", "#", _NUMBERS.sub("#", text.replace(name, "#"))) if colon and name else warning
        # Warnings of values only, such as a setting and its new value, have no kind.
        kinds.setdefault(kind if len(_WORD.findall(kind)) >= 3 else warning, {})[warning] = None
    return [_together(list(alike)) for alike in kinds.values()]


def _together(alike: list[str]) -> str:
    names = list(dict.fromkeys(warning.partition(": ")[0] for warning in alike))
    if len(names) == 1:
        more = f"; and {len(alike) - NAMED} more" if len(alike) > NAMED else ""
        return "; ".join([alike[0], *(warning.partition(": ")[2] for warning in alike[1:NAMED])]) + more
    texts = {warning.partition(": ")[2] for warning in alike}
    first = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    same = "" if len(texts) == 1 else f"; the numbers are those of {names[0]}"
    return f"{alike[0].partition(': ')[2]} ({len(names)} like this: {first}{same})"


class Notices:
    """Warnings that are held back, to be shown one line per kind.

    Args:
        show: takes a line.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self.show = show
        self.held: list[str] | None = []

    def take(self, warning: str) -> None:
        """Hold a warning back, or show it where nothing is held back any more."""
        if self.held is None:
            self.show(warning)
        else:
            self.held.append(warning)

    def release(self, *, hold: bool = True) -> None:
        """Show what is held back; with `hold` False all that comes later is shown at once."""
        lines, self.held = by_kind(self.held or ()), [] if hold else None
        for line in lines:
            self.show(line)

    def attach(self, engine: object) -> None:
        """As a handler of a training: from its first step on, which may be hours long, nothing is held back."""
        self.release(hold=False)


def duration(low: float, high: float | None = None) -> str:
    """Seconds in words, of one length or from `low` to `high`: "about 20 to 35 minutes"."""
    high = low if high is None else high
    size, unit = next(((n, u) for n, u in ((3600, "hour"), (60, "minute")) if high >= 1.5 * n), (1, "second"))
    # An estimate is not accurate to two digits.
    few, many = (
        f"{value:.0f}" if value >= 3 or unit == "second" else f"{value:.1f}" for value in (low / size, high / size)
    )
    return f"about {many if few == many else f'{few} to {many}'} {unit}{'' if few == many == '1' else 's'}"
