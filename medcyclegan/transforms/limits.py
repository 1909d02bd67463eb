"""Limits of size and intensities within which a volume can be prepared."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai.data import MetaTensor

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.plausible import refuse_impossible_hu
from medcyclegan.transforms.geometry import working_grid

MODALITIES = ("MR", "CT")
# Networks that halve their input twice need this much.
FEWEST_VOXELS = 4
# More voxels mean a wrong voxel size, for example micrometers taken as millimeters.
MOST_VOXELS = 2**31


def file_name(volume: MetaTensor) -> str:
    """Of the file that a volume was read from, for messages."""
    return str(volume.meta.get("filename_or_obj") or "the volume")


def require_modality(volume: MetaTensor, modality: str) -> None:
    """Refuse a volume whose header or values say that it is of another modality, or a picture as CT.

    Args:
        volume: (1, X, Y, Z).
        modality: one of `MODALITIES`.

    Raises:
        InputError: saying so.
    """
    name = file_name(volume)
    in_header = str(volume.meta.get("modality", modality))
    if in_header != modality and in_header in MODALITIES:
        raise InputError(
            f"{name}: its header says that it is {in_header}, and {modality} is needed here.",
            "Were two folders exchanged?",
        )
    if modality != "CT":
        return
    if volume.meta.get("unit") == "gray levels":
        raise InputError(
            f"{name}: a picture of {volume.meta['picture']} gray levels says nothing of Hounsfield units.",
            "Say which HU were black and white (data.picture_window), give both domains the modality MR, or give the "
            "volumes that the pictures were made of.",
        )
    refuse_impossible_hu(float(volume.min()), float(volume.max()), name)


def require_size(source: Grid, spacing: Sequence[float], name: str, picture: bool = False) -> None:
    """Refuse a volume that has too few or too many voxels on the working grid.

    Args:
        source: grid of the volume.
        spacing: of the working grid along right, anterior, superior, mm.
        name: of the volume, for the message.
        picture: whether it is one, which has a single slice.

    Raises:
        InputError: saying how many voxels it would have.
    """
    shape = working_grid(source, spacing).shape
    if math.prod(shape) > MOST_VOXELS:
        raise InputError(
            f"{name}: {' x '.join(map(str, source.shape))} voxels of {' x '.join(f'{s:.3g}' for s in source.spacing)} "
            f"mm become {' x '.join(map(str, shape))} voxels of {' x '.join(f'{s:g}' for s in spacing)} mm.",
            "Correct the voxel size in its header.",
        )
    if picture and shape[2] != 1:
        raise InputError(
            f"{name}: a picture is one slice of 1 mm, and {spacing[2]:g} mm slices would make {shape[2]} of it.",
            "Leave preparation.spacing out, or give a third number of 1 mm or more.",
        )
    if min(shape[: 2 if picture else 3]) < FEWEST_VOXELS:
        raise InputError(
            f"{name}: {' x '.join(map(str, source.shape))} voxels of {' x '.join(f'{s:.3g}' for s in source.spacing)} "
            f"mm become {' x '.join(map(str, shape))} voxels of {' x '.join(f'{s:g}' for s in spacing)} mm; at least "
            f"{FEWEST_VOXELS} along each axis are needed.",
            "Choose a finer spacing or leave this volume out.",
        )
