"""Verbs for other programs: export to them, import-weights from one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medcyclegan.cli.options import Allow, AsJson
from medcyclegan.cli.printing import print_json, say, warn


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or a checkpoint file.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder.")],
    file_format: Annotated[
        str, typer.Option("--format", help="bundle (MONAI), onnx, pt2 (torch.export) or slicer (3D Slicer).")
    ] = "bundle",
    direction: Annotated[str, typer.Option(help="ab (source to target), ba or both.")] = "ab",
    scores: Annotated[Path | None, typer.Option(help="Folder that evaluate wrote, for the model card.")] = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Export a trained run for other programs, with a model card."""
    from medcyclegan.export.formats import export_run

    written = export_run(
        run,
        output,
        file_format=file_format,
        direction=direction,
        scores=scores,
        allow=allow or (),
    )
    for made in written.values():
        if not made["finished"]:
            warn(f"{made['folder']}: the training is not finished, or unknown; its card says so")
        if "without_program" in made:
            warn(f"{made['folder']} has no exported program: {made['without_program']}")
    if as_json:
        print_json(written)
        return
    for made in written.values():
        differs = f", within {made['difference']:.1e} of torch" if "difference" in made else ""
        say(f"{made['folder']}: {file_format}{differs}")


def import_weights(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A *_net_G*.pth with instance norm.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="CHECKPOINT", help="A new file.")],
    architecture: Annotated[str, typer.Option(help="resnet_9blocks, resnet_6blocks, unet_256 or unet_128.")],
    modalities: Annotated[tuple[str, str], typer.Option(help="Source and target, for example MR CT.")],
    spacing: Annotated[
        tuple[float, float, float],
        typer.Option(help="Pixel size along right and anterior as the network saw it, and slice distance, mm."),
    ],
    orientation: Annotated[
        str,
        typer.Option(
            help="Directions of the pictures' rows and columns; PL: down to posterior, right to the patient's left."
        ),
    ],
    ct_window: Annotated[
        tuple[float, float] | None, typer.Option(help="HU that were black and white; needed with CT.")
    ] = None,
    mr_percentiles: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Percentiles inside the body that were black and white; needed to translate MR."),
    ] = None,
    mr_inverted: Annotated[bool, typer.Option("--mr-inverted", help="The MR pictures were negatives.")] = False,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Pixels along right and anterior; by default the reference's 256 256."),
    ] = None,
) -> None:
    """Make a checkpoint for convert from a generator of pytorch-CycleGAN-and-pix2pix."""
    from medcyclegan import reference_weights

    model = reference_weights.ReferenceModel(
        architecture=architecture,
        modalities=modalities,
        spacing=spacing,
        orientation=orientation,
        ct_window=ct_window,
        mr_percentiles=mr_percentiles,
        mr_inverted=mr_inverted,
        size=size,
    )
    reference_weights.import_weights(weights, output, model)
    say(f"{output}: {architecture} from {modalities[0]} to {modalities[1]}")
