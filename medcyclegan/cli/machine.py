"""Verbs that try and show what there is: demo, benchmark, list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medcyclegan.cli.options import Allow, AsJson, Device, Output, Overrides, Paths, split_paths
from medcyclegan.cli.printing import note, print_json, say
from medcyclegan.errors import InputError


def demo(
    output: Output = Path("medcyclegan-demo"),
    device: Device = "auto",
    seed: int = 0,
    minutes: Annotated[float, typer.Option(help="Time to take; more minutes, more training steps.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Make phantom patients, train on them unpaired, convert, evaluate, and write a report. About 5 minutes."""
    from medcyclegan.demo import run_demo
    from medcyclegan.progress import Terminal

    result = run_demo(output, device=device, seed=seed, minutes=minutes, progress=Terminal(), tell=note)
    if as_json:
        print_json(result)
        return
    say(f"in-mask MAE on the paired test phantoms: {result['mae']:.1f} HU")
    for name, value in result["baselines"].items():
        say(f"  {name.replace('_', ' ')}: {value:.1f} HU")
    say(f"report: {result['report']}  ({result['seconds']:.0f} s in all)")


BENCHMARKS = {
    "train": ((0,), "an experiment"),
    "convert": ((0, 2), "an experiment, or RUN and a volume, which bring their own"),
    "data": ((0, 1), "a prepared folder, an experiment or both"),
}


def benchmark(
    what: Annotated[str, typer.Argument(metavar="train|convert|data", help="What to measure.")],
    paths: Paths = None,
    overrides: Overrides = None,
    size: Annotated[str, typer.Option(help="Voxels of a patch or slice: 128, or 96,96,96.")] = "",
    batch: Annotated[int, typer.Option(help="Patches of each domain per step.")] = 1,
    steps: Annotated[int, typer.Option(help="Steps to time; medians are shown.")] = 10,
    slices: Annotated[int, typer.Option(help="Slices of the volume to convert.")] = 12,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time of a training step goes.")] = False,
    allow: Allow = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Time this machine against a plain reference, alternating within one run.

    `benchmark data` takes a prepared folder; `benchmark convert RUN MR_VOLUME` takes a model and a volume of yours.
    """
    from medcyclegan import benchmark as bench

    if what not in BENCHMARKS:
        raise InputError(f"benchmark measures {', '.join(BENCHMARKS)}, not '{what}'.")
    file, data = split_paths(paths)
    counts, taken = BENCHMARKS[what]
    own_model = what == "convert" and bool(data)
    if len(data) not in counts or (own_model and (file or overrides or size)):
        raise InputError(f"benchmark {what} takes {taken}; leave out the other paths, --set and --size.")
    if own_model:
        _show_benchmark(bench.benchmark_convert_run(*data, repeats=steps, device=device), as_json)
        return
    experiment = bench.experiment_for(file, overrides or (), allow or (), *data)
    voxels = bench.patch_size(size, experiment, 256 if what == "convert" else 128)
    if what == "train":
        result = bench.benchmark_train(
            experiment, size=voxels, batch=batch, steps=steps, device=device, profile=profile
        )
    elif what == "convert":
        result = bench.benchmark_convert(experiment, size=voxels, slices=slices, repeats=steps, device=device)
    else:
        result = bench.benchmark_data(experiment, size=voxels, batch=batch, steps=steps, device=device)
    _show_benchmark(result, as_json)


def _show_benchmark(result: dict[str, Any], as_json: bool) -> None:
    from medcyclegan.benchmark import described

    if table := result.pop("profile", None):
        note(table)
    if as_json:
        print_json(result)
    else:
        for line in described(result):
            say(line)


def list_parts(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="generators, discriminators, losses or objectives.")],
    as_json: AsJson = False,
) -> None:
    """Show what a config can name: every part with its paper, its arguments and their defaults."""
    from medcyclegan.registry import listing

    parts = listing(kind)
    if as_json:
        print_json({kind: parts})
        return
    for part in parts:
        say(f"{part['name']} ({part['kind']}): {part['summary']}")
        say(f"    paper: {part['paper']}")
        shown = [a["name"] if a["required"] else f"{a['name']}={a.get('default')!r}" for a in part["arguments"]]
        say(f"    arguments: {', '.join(shown) or 'none'}")
