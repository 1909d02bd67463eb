"""What the header of a volume tells, without reading its voxels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medcyclegan.errors import InputError
from medcyclegan.io.dicom.files import LIBRARY_ERRORS, holds_dicom, split_choice
from medcyclegan.io.dicom.series import source_series
from medcyclegan.io.formats import suffix_of
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import checked_grid, described_volume
from medcyclegan.io.tree import VOLUME_SUFFIXES


@dataclass(frozen=True)
class Header:
    """A header.

    Attributes:
        grid: shape and affine.
        stored: type of the values on disk, such as "int16".
        modality: "MR", "CT", ... of DICOM; None elsewhere.
        contrast_agent: whether DICOM names a contrast agent; None elsewhere.
    """

    grid: Grid
    stored: str
    modality: str | None = None
    contrast_agent: bool | None = None


def read_header(path: Path) -> Header:
    """The header of one volume, as `read_volume` reads it; its voxels may still be damaged.

    Raises:
        InputError: there is none, or it does not describe one 3D volume.

    Warns:
        UserWarning: what is doubtful about it.
    """
    if path.is_dir() or not suffix_of(path.name):
        if not holds_dicom(path):
            raise InputError(
                f"{path}: no volume that can be read.", f"Give one of {', '.join(VOLUME_SUFFIXES)}, DICOM."
            )
        return _dicom(path)
    stored = described_volume(path)
    return Header(checked_grid(stored.shape, stored.affine, str(path)), stored.kind)


def _dicom(path: Path) -> Header:
    series = source_series(split_choice(path)[0] if path.exists() else path)
    header = series.header
    try:
        signed = "int" if header.get("PixelRepresentation") else "uint"
        agent = str(header.get("ContrastBolusAgent") or "").strip().upper()
        stored, modality = f"{signed}{header.get('BitsAllocated', '?')}", str(header.get("Modality") or "?")
    except LIBRARY_ERRORS as error:  # elements are taken apart when they are asked for
        raise InputError(f"{path}: the header of the series is damaged ({error}).") from error
    return Header(series.grid, stored, modality, agent not in ("", "NONE", "NO"))
