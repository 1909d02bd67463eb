"""Weights trained with pytorch-CycleGAN-and-pix2pix as a checkpoint that converts volumes.

Such weights say nothing of what their pictures showed. So whoever imports them says what black and white meant, how
large a pixel was, and how the slices lay in the pictures; from then on the checkpoint knows.
"""

from __future__ import annotations

import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medcyclegan import __version__, config
from medcyclegan.errors import InputError, raise_all
from medcyclegan.networks.imported import ARCHITECTURES, ORIENTATIONS, translate_state
from medcyclegan.training.checkpoint import save_checkpoint
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.pipeline import Preparation

GREY_VALUES = (0.0, 255.0)  # of the reference's pictures


def import_weights(
    weights: Path,
    output: Path,
    *,
    architecture: str,
    modalities: tuple[str, str],
    spacing: tuple[float, float, float],
    orientation: str,
    ct_window: tuple[float, float] | None = None,
    mr_percentiles: tuple[float, float] | None = None,
    mr_inverted: bool = False,
    size: tuple[int, int] | None = None,
) -> None:
    """Write a checkpoint that translates from the first modality to the second.

    Args:
        weights: `latest_net_G_A.pth` or the like: a generator with instance norm, of one or three channels.
        output: the checkpoint; it must not exist.
        architecture: resnet_9blocks, resnet_6blocks, unet_256 or unet_128.
        modalities: of the pictures that the generator takes and gives, "MR" or "CT".
        spacing: along right, anterior, superior, mm: pixel sizes as the network saw them, after the reference's
            resizing, and the distance of the slices.
        orientation: where rows and columns of the pictures ran, see `ImportedGenerator`.
        ct_window: HU that were black (0) and white (255); needed with CT.
        mr_percentiles: percentiles inside the body that were black and white; needed where MR is translated. MR that is
            made comes in grey values, 0 to 255.
        mr_inverted: the MR pictures were negatives: dark tissue white.
        size: pixels of the pictures, along right and anterior, as the network saw them; by default the reference's
            256 x 256, and 128 x 128 for unet_128.

    Raises:
        InputError: if something given is missing or impossible, or the file holds something else.
    """
    problems = []
    if architecture not in ARCHITECTURES:
        problems.append(f"architecture '{architecture}': one of {', '.join(ARCHITECTURES)} is needed")
    if orientation not in ORIENTATIONS:
        problems.append(f"orientation '{orientation}': one of {', '.join(ORIENTATIONS)} is needed")
    if set(modalities) - {"MR", "CT"}:
        problems.append(f"modalities {' '.join(modalities)}: two of MR and CT are needed")
    if ("CT" in modalities) != (ct_window is not None):
        problems.append("--ct-window, the HU of black and white, is needed with CT and not without")
    if (modalities[0] == "MR") != (mr_percentiles is not None):
        problems.append(
            "--mr-percentiles, those of black and white inside the body, is needed where MR is translated and not else"
        )
    if mr_inverted and "MR" not in modalities:
        problems.append("--mr-inverted is for MR")
    if output.exists():
        problems.append(f"{output} exists already; give a new name")
    raise_all(problems, "the weights cannot be imported as asked:")

    try:
        state, settings = translate_state(_read(weights), architecture)
    except ValueError as error:
        raise InputError(f"{weights} {error}.", "Give the --architecture that it was trained with.") from error
    side = 128 if architecture == "unet_128" else 256
    generator = {
        "_target_": "medcyclegan.networks.imported.ImportedGenerator",
        "architecture": architecture,
        "orientation": orientation,
        **settings,
    }
    intensities: dict[str, Any] = {"mr_inverted": mr_inverted}
    if ct_window is not None:
        intensities["ct_window"] = ct_window
    if mr_percentiles is not None:
        intensities["mr_percentiles"] = mr_percentiles
    sides = dict(zip(("a", "b"), modalities, strict=True))
    experiment = config.parse(
        {
            "domains": {side: {"name": modality, "modality": modality} for side, modality in sides.items()},
            "preparation": {"spacing": spacing, **intensities},
            "patches": {"size": size or (side, side)},
            "model": {"generator": generator},
        },
        "the import",
    )
    domains = {}
    for name, modality in sides.items():
        preparation = Preparation(modality=modality, spacing=spacing, **intensities)
        scaler = Scaler(*preparation.ct_window) if modality == "CT" else Scaler(*GREY_VALUES, inverted=mr_inverted)
        channel = {"preparation": asdict(preparation), "scaler": scaler.to_dict()}
        domains[name] = {"name": modality, "channels": [channel]}
    save_checkpoint(
        {
            "program": {"medcyclegan": __version__, "torch": str(torch.__version__)},
            "experiment": experiment.to_dict(),
            "domains": domains,
            "step": 0,
            "ema": {"gen_ab": state},
        },
        output,
    )


def _read(path: Path) -> dict[str, Tensor]:
    remedy = "Give the *_net_G*.pth of the reference's checkpoints folder."
    if not path.is_file():
        raise InputError(f"there is no file {path}.", remedy)
    try:
        if zipfile.is_zipfile(path):  # its parts have checksums that torch does not look at
            with zipfile.ZipFile(path) as archive:
                if broken_part := archive.testzip():
                    raise zipfile.BadZipFile(f"{broken_part} in it does not have its checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever zipfile, zlib, torch and what torch calls make of bytes that are no weights
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{path} holds no weights (damaged, or not only tensors: {reason}).", remedy) from error
    if not (isinstance(content, dict) and content and all(isinstance(v, Tensor) for v in content.values())):
        raise InputError(f"{path} holds no weights, which are tensors by name.", remedy)
    broken = [key for key, value in content.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(
            f"{path} holds values that are not finite, for example in {broken[0]}.", "Its training failed."
        )
    return content
