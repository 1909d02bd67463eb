"""The one exception for what a user gave and the program cannot use.

Its message says what was given, what is allowed and what to do. The command line prints it without a traceback and
exits with a code other than 0; everything else that is raised is a fault of this program.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """Something that the user gave cannot be used.

    Args:
        message: one sentence with what was given and what is allowed.
        remedy: what to do about it; appended to the message.
    """

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(f"{message} {remedy}" if remedy else message)


def raise_all(problems: Iterable[str], heading: str) -> None:
    """Raise one `InputError` that lists every problem, or return when there is none."""
    lines = list(problems)
    if lines:
        raise InputError("\n  - ".join([heading, *lines]))


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
