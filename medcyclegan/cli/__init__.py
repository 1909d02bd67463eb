"""The command line: one short function per verb, which calls the library and prints what it gives.

Standard output carries results, standard error carries progress, warnings and errors. A mistake of the user ends with
one message and exit code 2, cases that failed with exit code 1, an interruption with 130.
"""

from __future__ import annotations

import errno
import logging
import os
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from medcyclegan import __version__
from medcyclegan.cli import conversion, data, evaluation, machine, sharing, training
from medcyclegan.cli.options import Debug, with_options
from medcyclegan.cli.printing import NOTICES, fail, warn
from medcyclegan.errors import DEBUG, InputError, show_traceback

VERBS: dict[str, Callable[..., None]] = {
    "demo": machine.demo,
    "inspect": data.inspect,
    "datalist": data.datalist,
    "prepare": data.prepare,
    "plan": data.plan,
    "train": training.train,
    "convert": conversion.convert,
    "evaluate": evaluation.evaluate,
    "report": evaluation.report,
    "compare": evaluation.compare,
    "export": sharing.export,
    "import-weights": sharing.import_weights,
    "benchmark": machine.benchmark,
    "list": machine.list_parts,
}


class _Verbs(typer.core.TyperGroup):
    """Typer would end an interrupted verb without a word. Warnings come before its errors, one line per kind."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            NOTICES.release()
            fail("interrupted.", 130)
        finally:
            NOTICES.release()


app = typer.Typer(
    cls=_Verbs,
    help="Translate medical volumes between modalities without paired data, above all MRI to CT. "
    "A research tool, not for clinical use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _name, _verb in VERBS.items():
    app.command(name=_name)(with_options(_verb))


def _version(show: bool) -> None:
    if show:
        typer.echo(f"medcyclegan {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    if debug:
        os.environ[DEBUG] = "1"


def main() -> None:
    """Run the command line and turn what went wrong into a message and an exit code."""
    warnings.showwarning = lambda message, *_, **__: warn(str(message))
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # its errors are raised too, and reported below
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        fail("interrupted.", 130)
    except InputError as error:
        show_traceback(error)
        fail(str(error), 2)
    except OSError as error:
        show_traceback(error)
        fail(_reason(error), 1)


def _reason(error: OSError) -> str:
    if isinstance(error, ConnectionError):
        return str(error)
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return f"no space is left on the disk: {error}. Free some and try again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission: {error}. Choose a folder that you may write to."
    return f"a file or folder could not be read or written: {error}."
