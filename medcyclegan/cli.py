"""The command line: one short function per verb, which calls the library and prints what it gives.

Standard output carries results, standard error carries progress, warnings and errors. A mistake of the user ends with
one message and exit code 2, cases that failed with exit code 1, an interruption with 130.
"""

from __future__ import annotations

import errno
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from medcyclegan import __version__
from medcyclegan.errors import InputError

app = typer.Typer(
    help="Translate medical volumes between modalities without paired data, above all MRI to CT. "
    "A research tool, not for clinical use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Output = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]
Device = Annotated[str, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:N or mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the experiment, e.g. seed=1.")
]
MaskFolder = Annotated[Path | None, typer.Option(help="Folder of body masks with the same case ids.")]


def _version(show: bool) -> None:
    if show:
        typer.echo(f"medcyclegan {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    output: Output = Path("medcyclegan-demo"), device: Device = "auto", seed: int = 0, as_json: AsJson = False
) -> None:
    """Make phantom patients, train on them unpaired, convert, evaluate, and write a report. A few minutes."""
    from medcyclegan.demo import run_demo
    from medcyclegan.progress import Terminal

    result = run_demo(output, device=device, seed=seed, progress=Terminal())
    if as_json:
        _print_json(result)
        return
    _say(f"in-mask MAE on the paired test phantoms: {result['mae']:.1f} HU")
    for name, value in result["baselines"].items():
        _say(f"  {name.replace('_', ' ')}: {value:.1f} HU")
    _say(f"report: {result['report']}  ({result['seconds']:.0f} s in all)")


@app.command()
def prepare(
    output: Output,
    a: Annotated[Path | None, typer.Option(help="Folder of volumes of the source domain, MR.")] = None,
    b: Annotated[Path | None, typer.Option(help="Folder of volumes of the target domain, CT.")] = None,
    masks_a: MaskFolder = None,
    masks_b: MaskFolder = None,
    pairs: Annotated[Path | None, typer.Option(help="CSV: case, a, b and optionally mask, for validation.")] = None,
    datalist: Annotated[Path | None, typer.Option(help="JSON with the lists a, b and optionally pairs.")] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG.yaml", help="Prepare as this experiment wants it.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Bring two folders of volumes onto a common working grid, once, for training."""
    from medcyclegan import config

    data = {"a": a, "b": b, "masks_a": masks_a, "masks_b": masks_b, "pairs": pairs, "datalist": datalist}
    experiment = config.with_data(config.load(config_file, overrides or ()), data)
    from medcyclegan import build
    from medcyclegan.progress import Terminal

    prepared = build.prepare(experiment, output, Terminal())
    for line in prepared.warnings:
        _warn(line)
    counts = {group: len(cases) for group, cases in prepared.cases.items()}
    if as_json:
        _print_json({"output": str(output), "cases": counts, "failed": prepared.failed, "warnings": prepared.warnings})
    else:
        sizes = " x ".join(f"{s:g}" for s in prepared.preparations["a"].spacing)
        pairs_done = f", {counts['pairs_a']} validation pairs" if counts["pairs_a"] else ""
        _say(f"{output}: {counts['a']} volumes of a, {counts['b']} of b{pairs_done}, spacing {sizes} mm")
    _end_with_failures(prepared.failed)


@app.command()
def train(
    config_file: Annotated[Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="The experiment.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A new folder for the run.")] = None,
    a: Annotated[Path | None, typer.Option(help="Folder of MR volumes, instead of data in a config.")] = None,
    b: Annotated[Path | None, typer.Option(help="Folder of CT volumes, instead of data in a config.")] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue a run; needs nothing else.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train both generators and discriminators into a run folder. Ctrl-C saves and says how to continue."""
    from medcyclegan import config
    from medcyclegan.progress import Terminal

    if resume is not None:
        if any(given is not None for given in (config_file, output, a, b, overrides)):
            raise InputError("--resume continues a run as it was; it takes no config, data, output or --set.")
        from medcyclegan import build

        result = build.resume(resume, device=device)
    else:
        if output is None:
            raise InputError("train needs --output RUN, a new folder.")
        experiment = config.load(config_file, overrides or ())
        if a is not None or b is not None:
            experiment = config.with_data(experiment, {"a": a, "b": b})
        from medcyclegan import build

        result = build.train(experiment, output, device=device, progress=Terminal())
    if as_json:
        _print_json(
            {
                "run": str(result.run),
                "checkpoint": str(result.checkpoint),
                "step": result.step,
                "steps": result.steps,
                "seconds": result.seconds,
                "precision": result.precision,
                "interrupted": result.interrupted,
            }
        )
    if result.interrupted:
        _note(f"stopped at step {result.step} of {result.steps}; saved. Continue with:")
        _note(f"  medcyclegan train --resume {result.run}")
        raise typer.Exit(130)
    if not as_json:
        _say(f"{result.checkpoint}: {result.step} steps in {result.seconds:.0f} s ({result.precision})")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Volumes, or folders of volumes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder, or a file for a single volume.")],
    direction: Annotated[str, typer.Option(help="ab: source to target; ba: back.")] = "ab",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out cases that are finished.")] = False,
    file_format: Annotated[str, typer.Option("--format", help="nifti, mha or nrrd.")] = "nifti",
    trust: Annotated[bool, typer.Option("--trust", help="Write trust maps too.")] = False,
    planes: Annotated[
        str | None, typer.Option(metavar="PLANE,...", help="Fuse slices along these: axial,coronal,sagittal.")
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="Fuse with the mirrored volume.")] = False,
    fuse: Annotated[str, typer.Option(help="mean or median.")] = "mean",
    others: Annotated[
        list[Path] | None, typer.Option("--with", metavar="RUN", help="Fuse with a further run or checkpoint.")
    ] = None,
    statistics: Annotated[str, typer.Option(help="Of instance norms: window, neighbors or volume.")] = "window",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Translate volumes; each result lies on its source's own grid, CT in Hounsfield units."""
    from medcyclegan.convert import convert as run_conversion
    from medcyclegan.convert import options as conversion_options
    from medcyclegan.progress import Terminal

    chosen = conversion_options(planes=planes, flips=flips, fuse=fuse, statistics=statistics)
    result = run_conversion(
        checkpoint,
        inputs,
        output,
        direction=direction,
        overwrite=overwrite,
        resume=resume,
        file_format=file_format,
        trust=trust,
        others=others or (),
        device=device,
        progress=Terminal(),
        **chosen,
    )
    for case, record in result.quality.items():
        for flag in record["flags"]:
            _warn(f"{case}: {flag}")
        if record["cohort"] != "known":
            _warn(f"{case}: whether it is like the training volumes is {record['cohort']}")
        if record.get("flagged_slices"):
            _warn(f"{case}: brightness jumps at slices {', '.join(map(str, record['flagged_slices']))}")
    if as_json:
        _print_json(
            {
                "written": {c: str(file) for c, file in result.written.items()},
                "skipped": {c: str(file) for c, file in result.skipped.items()},
                "failed": result.failed,
                "quality": result.quality,
            }
        )
    else:
        for case, file in result.written.items():
            share = result.quality[case].get("share_above_threshold")
            _say(str(file) if share is None else f"{file}: {100 * share:.1f} % of the body is uncertain (--trust)")
        for file in result.skipped.values():
            _say(f"{file} (finished before)")
    _end_with_failures(result.failed)


@app.command()
def evaluate(
    pred: Annotated[Path, typer.Argument(metavar="PRED", help="Synthetic volumes: a folder or a file.")],
    ref: Annotated[Path, typer.Argument(metavar="REF", help="Reference volumes: a folder or a file.")],
    output: Output,
    mask: Annotated[Path | None, typer.Option(help="Masks to score in; by default the reference's body.")] = None,
    protocol: Annotated[str, typer.Option(help="synthrad2023, synthrad2025 or native.")] = "native",
    as_json: AsJson = False,
) -> None:
    """Grade synthetic volumes against references, paired by case id, in Hounsfield units."""
    from medcyclegan.evaluation.evaluate import evaluate as run_evaluation
    from medcyclegan.progress import Terminal

    result = run_evaluation(pred, ref, output, masks=mask, protocol=protocol, progress=Terminal())
    if as_json:
        _print_json(result.summary)
    else:
        for name, values in result.summary["metrics"].items():
            if values["mean"] is not None:
                spread = "" if values["sd"] is None else f"sd {values['sd']:.2g}, "
                _say(f"{name}: {values['mean']:.4g} ({spread}n {values['n']})")
        _say(f"{output / 'cases.csv'}")
    _end_with_failures(dict(result.failed))


def main() -> None:
    """Run the command line and turn what went wrong into a message and an exit code."""
    warnings.showwarning = lambda message, *_, **__: _warn(str(message))
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # its errors are raised too, and told below
    try:
        app(standalone_mode=True)
    except InputError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted.", 130)
    except OSError as error:
        if error.errno == errno.ENOSPC or "No space left" in str(error):
            _fail(f"no space is left on the disk: {error}. Free some and try again.", 1)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            _fail(f"no permission: {error}. Choose a folder that you may write to.", 1)
        _fail(f"a file or folder could not be read or written: {error}.", 1)


def _say(text: str) -> None:
    typer.echo(text)


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _warn(text: str) -> None:
    _note(f"warning: {text}")


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, allow_nan=False))


def _fail(text: str, code: int) -> None:
    _note(f"error: {text}")
    sys.exit(code)


def _end_with_failures(failed: dict[str, str]) -> None:
    if failed:
        _note(f"{len(failed)} failed:")
        for case, reason in failed.items():
            _note(f"  {case}: {reason}")
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
