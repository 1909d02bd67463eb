"""Weights trained with pytorch-CycleGAN-and-pix2pix as a checkpoint that converts volumes.

Such weights do not describe their pictures. The user states the values of black and white, the pixel size and the
orientation of the slices; the checkpoint then contains it.
"""

from __future__ import annotations

import zipfile
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class ReferenceModel:
    """The description that a generator needs beside its weights: architecture and pictures.

    Attributes:
        architecture: resnet_9blocks, resnet_6blocks, unet_256 or unet_128.
        modalities: of the pictures that the generator takes and gives, "MR" or "CT".
        spacing: along right, anterior, superior, mm: pixel sizes as the network saw them, after the reference's
            resizing, and the distance of the slices.
        orientation: where rows and columns of the pictures ran, see `ImportedGenerator`.
        ct_window: HU that were black (0) and white (255); needed with CT.
        mr_percentiles: percentiles inside the body that were black and white; needed where MR is translated. MR results
            are in grey values, 0 to 255.
        mr_inverted: the MR pictures were negatives: dark tissue white.
        size: pixels of the pictures, along right and anterior, as the network saw them; by default the reference's
            256 x 256, and 128 x 128 for unet_128.
    """

    architecture: str
    modalities: tuple[str, str]
    spacing: tuple[float, float, float]
    orientation: str
    ct_window: tuple[float, float] | None = None
    mr_percentiles: tuple[float, float] | None = None
    mr_inverted: bool = False
    size: tuple[int, int] | None = None

    def problems(self) -> list[str]:
        """Values that are missing or impossible."""
        found = []
        if self.architecture not in ARCHITECTURES:
            found.append(f"architecture '{self.architecture}': one of {', '.join(ARCHITECTURES)} is needed")
        if self.orientation not in ORIENTATIONS:
            found.append(f"orientation '{self.orientation}': one of {', '.join(ORIENTATIONS)} is needed")
        if set(self.modalities) - {"MR", "CT"}:
            found.append(f"modalities {' '.join(self.modalities)}: two of MR and CT are needed")
        if ("CT" in self.modalities) != (self.ct_window is not None):
            found.append("--ct-window, the HU of black and white, is needed with CT and not without")
        if (self.modalities[0] == "MR") != (self.mr_percentiles is not None):
            found.append(
                "--mr-percentiles, those of black and white in the body, is needed to translate MR, for nothing else"
            )
        if self.mr_inverted and "MR" not in self.modalities:
            found.append("--mr-inverted is for MR")
        return found


def import_weights(weights: Path, output: Path, model: ReferenceModel) -> None:
    """Write a checkpoint that translates from the first modality to the second.

    Args:
        weights: `latest_net_G_A.pth` or the like: a generator with instance norm, of one or three channels.
        output: the checkpoint; it must not exist.
        model: its description.

    Raises:
        InputError: if something given is missing or impossible, or the file holds something else.
    """
    problems = [*model.problems(), *([f"{output} exists already; give a new name"] if output.exists() else [])]
    raise_all(problems, "the weights cannot be imported as asked:")
    try:
        state, settings = translate_state(_read(weights), model.architecture)
    except ValueError as error:
        raise InputError(f"{weights} {error}.", "Give the --architecture that it was trained with.") from error
    side = 128 if model.architecture == "unet_128" else 256
    generator = {
        "_target_": "medcyclegan.networks.imported.ImportedGenerator",
        "architecture": model.architecture,
        "orientation": model.orientation,
        **settings,
    }
    given = {"ct_window": model.ct_window, "mr_percentiles": model.mr_percentiles, "mr_inverted": model.mr_inverted}
    intensities: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    sides = dict(zip(("a", "b"), model.modalities, strict=True))
    experiment = config.parse(
        {
            "domains": {side: {"name": modality, "modality": modality} for side, modality in sides.items()},
            "preparation": {"spacing": model.spacing, **intensities},
            "patches": {"size": model.size or (side, side)},
            "model": {"generator": generator},
        },
        "the import",
    )
    domains = {}
    for name, modality in sides.items():
        preparation = Preparation(modality=modality, spacing=model.spacing, **intensities)
        made = Scaler(*GREY_VALUES, inverted=model.mr_inverted)
        scaler = Scaler(*preparation.ct_window) if modality == "CT" else made
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
