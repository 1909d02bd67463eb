"""The verb convert."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from medcyclegan.cli.options import Allow, AsJson, Device, MaskFolder
from medcyclegan.cli.printing import end_with_failures, note, print_json, say, warn


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="Volumes, DICOM series, or folders of them; for a model of several contrasts one of each, in order.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder, or a file for a single volume.")],
    direction: Annotated[str, typer.Option(help="ab: source to target; ba: back.")] = "ab",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Skip cases that are finished.")] = False,
    file_format: Annotated[
        str, typer.Option("--format", help="nifti, mha, nrrd, or dicom: a CT series in a folder of its own.")
    ] = "nifti",
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="Write uncertainty maps too.")] = False,
    masks: MaskFolder = None,
    planes: Annotated[
        str | None,
        typer.Option(metavar="PLANE,...", help="Fuse translations along these planes: axial,coronal,sagittal."),
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="Fuse with the left-right mirrored volume.")] = False,
    fuse: Annotated[str, typer.Option(help="mean or median.")] = "mean",
    ensemble: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Fuse with this other run or checkpoint; repeatable.")
    ] = None,
    norm_statistics: Annotated[str, typer.Option(help="For instance norms: window, neighbors or volume.")] = "window",
    which: Annotated[str, typer.Option("--checkpoint", help="Of a run: last, or best (by validation).")] = "last",
    device: Device = "auto",
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Translate volumes and DICOM series; each result lies on its source's own grid, CT in Hounsfield units."""
    from medcyclegan.convert import Options
    from medcyclegan.convert import convert as run_conversion
    from medcyclegan.inference.ensemble import Ensemble
    from medcyclegan.progress import Terminal

    named: Any = tuple(word.strip() for word in planes.split(",")) if planes else ()
    options = Options(
        direction=direction,
        which=which,
        ensemble=Ensemble(named, flips, fuse),  # type: ignore[arg-type]
        norm_statistics=norm_statistics,  # type: ignore[arg-type]
        masks=masks,
        uncertainty=uncertainty,
        file_format=file_format,
        overwrite=overwrite,
        resume=resume,
        device=device,
        allow=allow or (),
    )
    result = run_conversion([checkpoint, *(ensemble or ())], inputs, output, options, Terminal())
    note(f"model: {result.model}")
    for case, record in result.quality.items():
        for flag in record["flags"]:
            warn(f"{case}: {flag}")
        if record["cohort"] != "known":
            warn(f"{case}: whether it is like the training volumes is {record['cohort']}")
        if record.get("flagged_slices"):
            warn(f"{case}: brightness jumps at slice {', '.join(map(str, record['flagged_slices']))}")
    if as_json:
        print_json(asdict(result))
    else:
        for case, file in result.written.items():
            share = result.quality[case].get("share_above_threshold")
            say(str(file) if share is None else f"{file}: {100 * share:.1f} % of the body is uncertain (--uncertainty)")
        for file in result.skipped.values():
            say(f"{file} (finished before)")
    end_with_failures(result.failed)
