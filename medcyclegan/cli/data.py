"""Verbs about data: inspect, datalist, prepare, plan."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medcyclegan.cli.options import AsJson, Device, Given, MaskFolder, Output, Workers
from medcyclegan.cli.printing import end_with_failures, left_out_line, note, print_json, say, warn
from medcyclegan.errors import InputError

if TYPE_CHECKING:
    from medcyclegan.config import Experiment


def inspect(
    given: Given,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="PAGE.html", help="A page to write.")] = None,
    fix: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New folder for repaired copies, where a repair is safe.")
    ] = None,
    headers: Annotated[bool, typer.Option("--headers", help="Read headers only; for thousands of files.")] = False,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Check every volume of a cohort; say what is suspicious and what to do. Exit code 1 if there are errors.

    Instead of DATA, volumes and folders of volumes can be given, without domains.
    """
    from medcyclegan import factory
    from medcyclegan.progress import Terminal
    from medcyclegan.qc import inspection

    experiment, folders, volumes = _to_inspect(given)
    cohort = None
    if (source := experiment.data.source) is not None:
        try:
            cohort = factory.cohort(experiment, Terminal())
        except InputError as error:
            if given.selects or not source.is_dir():
                raise
            # A folder that is no clear cohort, or has faults, is what one inspects: its volumes are looked at anyway.
            note(f"looked at as volumes of no domain: {str(error).splitlines()[0]}")
            volumes = [source]
    result = inspection.inspect_cohort(
        folders,
        volumes,
        modalities=(experiment.domains.a.modality, experiment.domains.b.modality),
        headers_only=headers,
        output=output,
        fix=fix,
        workers=workers,
        progress=Terminal(),
        cohort=cohort,
    )
    if fix is not None and not result.fixes:
        note("--fix: nothing can be mended safely; no copy was written")
    if as_json:
        print_json(result.to_dict() | {"page": output})
    else:
        for line in inspection.lines(result):
            say(line)
        if output is not None:
            say(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")
    if not result.sound:
        raise typer.Exit(1)


def _to_inspect(given: Given) -> tuple[Experiment, dict[str, Path], list[Path]]:
    """The experiment with the cohort that is given, if any; the folders of a and b; the volumes of no domain."""
    from medcyclegan.cohort.recognition import is_cohort

    one = given.sources[0] if len(given.sources) == 1 else None
    volumes = given.sources if one is None or not (given.selects or is_cohort(one)) else []
    experiment = replace(given, paths=[p for p in given.paths or () if p not in volumes], a=None, b=None).experiment()
    folders = {"a": given.a, "b": given.b}
    if not any((given.a, given.b, volumes)):
        folders = {"a": experiment.data.a, "b": experiment.data.b}
    return experiment, {name: folder for name, folder in folders.items() if folder is not None}, volumes


def datalist(
    given: Given,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="COHORT.json", help="The datalist to write.")],
    val: Annotated[float, typer.Option(help="Share of the patients for validation.")] = 0.0,
    test: Annotated[float, typer.Option(help="Share of the patients kept for testing.")] = 0.0,
    folds: Annotated[int | None, typer.Option(help="Number of folds for cross-validation, instead of --val.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Find the volumes of a cohort, split them by patient, and write a datalist for prepare, train and MONAI."""
    experiment = given.experiment()
    from medcyclegan import factory
    from medcyclegan.cohort.splits import SplitPlan
    from medcyclegan.progress import Terminal

    found = factory.assembled(experiment, Terminal(), SplitPlan(val, test, folds, seed))
    found.write(output)
    for line in found.notes:
        warn(line)
    counts = found.counts()
    failed = {str(image): reason for image, reason in found.failed.items()}
    if as_json:
        print_json({"output": output, "about": found.about, "lists": counts, "notes": found.notes, "failed": failed})
    else:
        lists = ", ".join(f"{count} in {name}" for name, count in counts.items())
        say(f"{output}: layout {found.about['layout']} ({found.about['reason']}); {lists}")
    end_with_failures(failed)


def prepare(
    given: Given,
    output: Output,
    masks_a: MaskFolder = None,
    masks_b: MaskFolder = None,
    pairs: Annotated[Path | None, typer.Option(help="CSV: case, a, b and optionally mask, for validation.")] = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Bring a cohort of volumes onto a common working grid, once, for training."""
    experiment = given.experiment(masks_a=masks_a, masks_b=masks_b, pairs=pairs)
    from medcyclegan import factory
    from medcyclegan.progress import Terminal

    prepared = factory.prepare(experiment, output, Terminal(), workers)
    for line in prepared.warnings:
        warn(line)
    counts = {group: len(cases) for group, cases in prepared.cases.items()}
    left_out: dict[str, float] = {}
    try:
        left_out = factory.left_out(experiment, prepared)
    except InputError as error:
        warn(f"a training on this would fail: {error}")
    if as_json:
        about = {"failed": prepared.failed, "warnings": prepared.warnings, "left_out": left_out}
        print_json({"output": output, "cases": counts, **about})
    else:
        sizes = " x ".join(f"{s:g}" for s in prepared.spacing)
        pairs_done = f", {counts['pairs_a']} validation pairs" if counts["pairs_a"] else ""
        say(f"{output}: {counts['a']} volumes of a, {counts['b']} of b{pairs_done}, spacing {sizes} mm")
        if left_out:
            say(left_out_line(left_out))
    end_with_failures(prepared.failed)


def plan(
    given: Given,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A YAML file; default: standard output.")
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="Plan for a GPU of this much memory, present or not.")
    ] = None,
    hours: Annotated[float, typer.Option(help="Longest time that a training on a CPU may take.")] = 12.0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Look at the volumes and at this machine, and write an experiment with a reason for every choice."""
    experiment = given.experiment()
    from medcyclegan import plan as planning
    from medcyclegan.progress import Terminal

    where = planning.this_machine(device) if gpu_memory is None else planning.hypothetical_gpu(gpu_memory)
    made = planning.make_plan(experiment, where, hours=hours, progress=Terminal())
    for line in made.warnings:
        warn(line)
    if output is not None:
        planning.save(made, output)
    if as_json:
        print_json(planning.to_dict(made))
    elif output is None:
        say(planning.to_yaml(made).rstrip())
    else:
        say(f"{output}: train with `medcyclegan train {shlex.quote(str(output))} -o RUN`")
        say(f"expected time: {planning.expected_time(made)}")
