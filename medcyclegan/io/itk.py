"""SimpleITK and MONAI at the border: the geometry of ITK images, and a reader for MONAI's transforms."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from monai.data import ImageReader

from medcyclegan.errors import InputError
from medcyclegan.io.formats import describe, suffix_of
from medcyclegan.io.grid import RAS_FROM_LPS
from medcyclegan.io.stored import StoredVolume, read_voxels


def itk_affine(image: sitk.Image) -> npt.NDArray[np.float64]:
    """The 4 x 4 affine, voxel index to RAS+ mm, of an ITK image of two or more dimensions.

    ITK: x_LPS = origin + direction @ diag(spacing) @ index.
    """
    count = image.GetDimension()
    direction = np.array(image.GetDirection(), dtype=np.float64).reshape(count, count)
    used = min(count, 3)
    affine = np.eye(4)
    affine[:used, :used] = (direction * np.array(image.GetSpacing()))[:used, :used]
    affine[:used, 3] = np.array(image.GetOrigin())[:used]
    return np.asarray(RAS_FROM_LPS @ affine)


class SimpleITKReader(ImageReader):
    """Reads .mha, .mhd and .nrrd, SimpleITK's formats, for MONAI's `LoadImage` and `LoadImaged`, with a RAS+ affine.

    Arrays come as (X, Y, Z), or (X, Y, Z, C) for pixels of several components. Several files of one grid are stacked
    along a new first axis, as MONAI's readers do. SimpleITK's own readers take damaged data without an error; the
    files are read by `io.metaimage` and `io.nrrd`.
    """

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        return all(suffix_of(name).lower() in (".mha", ".mhd", ".nrrd") for name in _listed(filename))

    def read(
        self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **kwargs: Any
    ) -> list[tuple[StoredVolume, npt.NDArray[Any]]]:
        """Header and values, (X, Y, ...) or (components, X, Y, ...), of each file."""
        if kwargs:
            raise TypeError(f"no options are taken, got {', '.join(kwargs)}")
        return [_read(Path(name)) for name in _listed(data)]

    def get_data(self, img: list[tuple[StoredVolume, npt.NDArray[Any]]]) -> tuple[np.ndarray, dict[str, Any]]:
        first = img[0][0]
        for stored, array in img:
            if array.shape != img[0][1].shape or not np.allclose(stored.affine, first.affine):
                raise ValueError("only images of one grid can be stacked as channels")
        arrays = [np.moveaxis(array, 0, -1) if stored.components > 1 else array for stored, array in img]
        channel: float = 0 if len(arrays) > 1 else -1 if first.components > 1 else float("nan")
        meta = {
            "affine": first.affine,
            "original_affine": first.affine.copy(),
            "spatial_shape": np.array(first.shape[:3]),
            "space": "RAS",
            "original_channel_dim": channel,
        }
        return (np.stack(arrays) if len(arrays) > 1 else arrays[0]), meta


def _read(path: Path) -> tuple[StoredVolume, npt.NDArray[Any]]:
    stored = describe(path)
    with np.errstate(over="ignore"):
        flat = np.linalg.det(stored.affine) == 0
    if flat:
        raise InputError(f"{path}: the affine cannot be inverted, so that the voxels have no place in space.")
    values, remarks = read_voxels(stored)
    for remark in (*stored.remarks, *remarks):
        warnings.warn(f"{path}: {remark}.", stacklevel=3)
    return stored, np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def _listed(names: Any) -> list[str]:
    return [os.fspath(name) for name in ([names] if isinstance(names, str | os.PathLike) else names)]
