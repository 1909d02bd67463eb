"""What the header of a volume tells, without reading its voxels."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from medcyclegan.errors import InputError
from medcyclegan.io.dicom.files import holds_dicom, split_choice
from medcyclegan.io.dicom.series import source_series
from medcyclegan.io.grid import Grid
from medcyclegan.io.plausible import refuse_impossible_geometry
from medcyclegan.io.reader import VOLUME_SUFFIXES, itk_affine

# The part of a compressed NIfTI in which its header lies, NIfTI-2 with small extensions included.
_START = 1024


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
    """The header of one volume; its voxels may still be damaged.

    Raises:
        InputError: there is none, or it does not describe one 3D volume.
    """
    name = path.name.lower()
    suffix = next((s for s in sorted(VOLUME_SUFFIXES, key=len, reverse=True) if name.endswith(s)), None)
    if path.is_dir() or suffix is None:
        if not holds_dicom(path):
            raise InputError(
                f"{path}: no volume that can be read.", f"Give one of {', '.join(VOLUME_SUFFIXES)}, DICOM."
            )
        return _dicom(path)
    try:
        return _nifti(path) if suffix in (".nii", ".nii.gz") else _itk(path)
    except InputError:
        raise
    except (OSError, EOFError, RuntimeError, ValueError, TypeError, nib.filebasedimages.ImageFileError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "its header makes no sense"
        raise InputError(f"{path} cannot be read: {reason}.", "Copy or export it again.") from error


def _nifti(path: Path) -> Header:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rb") as stream:
        start = stream.read(_START)
    kinds = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
    kind = next((k for n, k in kinds.items() if start[:4] in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), None)
    if kind is None:
        raise InputError(f"{path} cannot be read: its content is not NIfTI.", "Copy or export it again.")
    header = kind(start[: kind.sizeof_hdr], check=False)
    return Header(
        _grid(header.get_data_shape(), np.asarray(header.get_best_affine()), path), str(header.get_data_dtype())
    )


def _itk(path: Path) -> Header:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    # "16-bit signed integer", "32-bit float"
    bits, *words = sitk.GetPixelIDValueAsString(reader.GetPixelID()).split()
    kind = "float" if words[-1] == "float" else "uint" if "unsigned" in words else "int"
    stored = kind + bits.removesuffix("-bit")
    return Header(_grid(reader.GetSize(), itk_affine(reader), path), stored)


def _dicom(path: Path) -> Header:
    series = source_series(split_choice(path)[0] if path.exists() else path)
    header = series.header
    signed = "int" if header.get("PixelRepresentation") else "uint"
    agent = str(header.get("ContrastBolusAgent") or "").strip().upper()
    return Header(
        series.grid,
        f"{signed}{header.get('BitsAllocated', '?')}",
        str(header.get("Modality") or "?"),
        agent not in ("", "NONE", "NO"),
    )


def _grid(shape: tuple[int, ...], affine: np.ndarray, path: Path) -> Grid:
    shown = " x ".join(str(n) for n in shape)
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape[:3]) < 2:
        raise InputError(f"{path}: {shown} voxels are no 3D volume of one frame.", "Give one frame as a 3D volume.")
    refuse_impossible_geometry(shape, affine, str(path))
    try:
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
    except ValueError:
        raise InputError(f"{path}: the affine cannot be inverted.", "Export it again with its geometry.") from None
