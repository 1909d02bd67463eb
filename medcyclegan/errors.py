"""The one exception for unusable user input.

Its message says what was given, what is allowed and what to do. The command line prints it without a traceback and
exits with a code other than 0; everything else that is raised is a fault of this program. Whole tracebacks are shown
where the environment variable MEDCYCLEGAN_DEBUG is set, which the option `--debug` of every verb does.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Sequence

DEBUG = "MEDCYCLEGAN_DEBUG"


class InputError(ValueError):
    """Unusable user input.

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


def show_traceback(error: BaseException) -> None:
    """Print the traceback of an error, with its causes, on standard error, if requested."""
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
