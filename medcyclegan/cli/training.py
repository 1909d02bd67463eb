"""The verb train: a new run, or one that goes on."""

from __future__ import annotations

import os
import warnings
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from medcyclegan.cli.options import AsJson, Device, Given
from medcyclegan.cli.printing import NOTICES, left_out_line, note, print_json, say, warn
from medcyclegan.errors import InputError


def train(
    given: Given,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A new folder for the run.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue a run; needs nothing else.")] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="With --resume: take new settings from a config or --set.")
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train both generators and discriminators into a run folder. Ctrl-C saves and says how to continue.

    Without an experiment, one is planned for the data, as `plan` does.
    """
    from medcyclegan import ranks

    first = ranks.env_rank()[0] == 0
    if not first:
        warnings.simplefilter("ignore")  # the first process says it
    if "LOCAL_RANK" in os.environ:
        # Read when torch is imported: it would warn in every process that no network left a weight unused.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if resume is not None:
        result = _resumed(given, resume, output, allow_changes, device)
    elif allow_changes:
        raise InputError("--allow-changes is for --resume; a new run has nothing to differ from.")
    elif output is None:
        raise InputError("train needs --output RUN, a new folder.")
    else:
        result = _trained(given, output, device)
    if as_json and first:
        print_json(asdict(result))
    if result.interrupted:
        if first:
            note(f"stopped at step {result.step} of {result.steps}; saved. Continue with:")
            note(f"  medcyclegan train --resume {result.run}")
        raise typer.Exit(130)
    if first and not as_json:
        early = " (stopped early)" if result.stopped_early else ""
        say(f"{result.checkpoint}: {result.step} steps{early} in {result.seconds:.0f} s ({result.precision})")
        say(left_out_line(result.left_out))
        if result.best is not None:
            chosen = f"{result.best['name']} {result.best['score']:.4g} at step {result.best['step']}"
            say(f"best validation: {chosen}; convert --checkpoint best takes it")


def _resumed(given: Given, run: Path, output: Path | None, allow_changes: bool, device: str) -> Any:
    if any(value is not None for value in (output, *given.data().values())):
        raise InputError("--resume continues a run where it is, on its own data; it takes no --output and no data.")
    from medcyclegan import factory
    from medcyclegan.progress import Terminal

    return factory.resume(
        run,
        new=factory.NewSettings(given.file, given.overrides or (), allow_changes),
        device=device,
        progress=Terminal(),
        handlers=(NOTICES,),
        allow=given.allow or (),
    )


def _trained(given: Given, run: Path, device: str) -> Any:
    experiment = given.experiment()
    from medcyclegan import factory
    from medcyclegan import plan as planning
    from medcyclegan.progress import Terminal

    with ExitStack() as held:
        if given.file is None and not factory.is_prepared(experiment):
            made, experiment = held.enter_context(
                planning.planned_run(
                    experiment, run, device=device, overrides=given.overrides or (), progress=Terminal()
                )
            )
            for line in made.warnings:
                warn(line)
            note(f"no config was given; planned {run / factory.PLAN_NAME}, which says why")
            note(f"expected time: {planning.expected_time(made)}")
        return factory.train(experiment, run, device=device, progress=Terminal(), handlers=(NOTICES,), workers=0)
