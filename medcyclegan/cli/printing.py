"""What verbs print: results on standard output, progress, warnings and errors on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import typer

from medcyclegan.progress import Notices


def say(text: str) -> None:
    """Print a line of the result."""
    typer.echo(text)


def note(text: str) -> None:
    """Print a line that is no result."""
    typer.echo(text, err=True)


NOTICES = Notices(lambda text: note(f"warning: {text}"))


def warn(text: str) -> None:
    """Warn; similar warnings are printed together."""
    NOTICES.take(text)


def print_json(content: Any) -> None:
    """Print one JSON object; paths become text."""
    typer.echo(json.dumps(content, allow_nan=False, default=str))


def fail(text: str, code: int) -> NoReturn:
    """End with an error."""
    rank = os.environ.get("RANK", "0")
    note(f"error: {text}" if rank == "0" else f"error in process {rank}: {text}")
    sys.exit(code)


def end_with_failures(failed: Mapping[str, str]) -> None:
    """End with exit code 1 where cases failed, and list them."""
    if failed:
        NOTICES.release()
        note(f"{len(failed)} failed:")
        for case, reason in failed.items():
            note(f"  {case}: {reason}")
        raise typer.Exit(1)


def left_out_line(shares: Mapping[str, float]) -> str:
    """How much of the body is never in the middle of a patch."""
    parts = " and ".join(f"{100 * share:.0f} % of {domain}" for domain, share in shares.items())
    return f"slices of body never in the middle of a patch (too little body, no contrast, no partner): {parts}"
