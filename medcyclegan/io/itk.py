"""Images of SimpleITK: from files for MONAI, their geometry, and the reasons that ITK gives.

ITK's world is LPS: its first two axes point the other way.
"""

from __future__ import annotations

import os
import re
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
from medcyclegan.io.stored import read_voxels, scaled

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def itk_affine(image: sitk.Image | sitk.ImageFileReader) -> npt.NDArray[np.float64]:
    """The 4 x 4 affine, voxel index to RAS+ mm, of an ITK image of two or more dimensions.

    ITK: x_LPS = origin + direction @ diag(spacing) @ index; RAS+ has the first two world axes reversed.
    """
    count = image.GetDimension()
    direction = np.array(image.GetDirection(), dtype=np.float64).reshape(count, count)
    used = min(count, 3)
    affine = np.eye(4)
    affine[:used, :used] = (direction * np.array(image.GetSpacing()))[:used, :used]
    affine[:used, 3] = np.array(image.GetOrigin())[:used]
    return np.asarray(_LPS_TO_RAS @ affine)


def itk_reason(error: BaseException) -> str:
    """The sentence of SimpleITK's error that helps, on one line."""
    text = str(error)
    if "sitk::ERROR:" in text or "ITK ERROR:" in text:
        text = re.split(r"(?:sitk::|ITK )ERROR:", text)[-1]
        text = re.sub(r"\w+\(0x[0-9a-f]+\):", "", text)
        if "Unable to determine ImageIO reader" in text:
            return "its content is not of the format that its name says"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


class SimpleITKReader(ImageReader):
    """Reads .mha, .mhd and .nrrd for `monai.transforms.LoadImage` and `LoadImaged`, with a RAS+ affine.

    Arrays come as (X, Y, Z), or (X, Y, Z, C) for pixels of several components. Several files of one grid are stacked
    along a new first axis, as MONAI's readers do.
    """

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        return all(suffix_of(name).lower() in (".mha", ".mhd", ".nrrd") for name in _listed(filename))

    def read(
        self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **kwargs: Any
    ) -> sitk.Image | list[sitk.Image]:
        if kwargs:
            raise TypeError(f"no options are taken, got {', '.join(kwargs)}")
        images = [_itk_image(Path(name)) for name in _listed(data)]
        return images if len(images) > 1 else images[0]

    def get_data(self, img: sitk.Image | Sequence[sitk.Image]) -> tuple[np.ndarray, dict[str, Any]]:
        images = [img] if isinstance(img, sitk.Image) else list(img)
        affine = itk_affine(images[0])
        arrays = [sitk.GetArrayFromImage(image) for image in images]
        for image, array in zip(images, arrays, strict=True):
            if array.shape != arrays[0].shape or not np.allclose(itk_affine(image), affine):
                raise ValueError("only images of one grid can be stacked as channels")
        # ITK's arrays run (z, y, x) with the components last.
        components = images[0].GetNumberOfComponentsPerPixel()
        spatial = images[0].GetDimension()
        arrays = [array.transpose([*range(spatial)[::-1], *range(spatial, array.ndim)]) for array in arrays]
        channel: float = float("nan") if components == 1 else -1
        if len(arrays) > 1:
            channel = 0
        meta = {
            "affine": affine,
            "original_affine": affine.copy(),
            "spatial_shape": np.array(arrays[0].shape[: min(spatial, 3)]),
            "space": "RAS",
            "original_channel_dim": channel,
        }
        return (np.stack(arrays) if len(arrays) > 1 else arrays[0]), meta


def _itk_image(path: Path) -> sitk.Image:
    """The image in a file, read by this package: SimpleITK's own readers take damaged data without an error."""
    stored = describe(path)
    values, remarks = read_voxels(stored)
    for remark in (*stored.remarks, *remarks):
        warnings.warn(f"{path}: {remark}.", stacklevel=4)
    if (stored.slope, stored.intercept) != (1.0, 0.0):
        values = scaled(values, stored.slope, stored.intercept)
    count, used = len(stored.shape), min(len(stored.shape), 3)
    lps = (_LPS_TO_RAS @ stored.affine)[[*range(used), 3]][:, [*range(used), 3]]
    spacing = np.linalg.norm(lps[:-1, :-1], axis=0)
    direction = np.eye(count)
    direction[:used, :used] = lps[:-1, :-1] / np.where(spacing > 0, spacing, 1)
    try:
        native = np.ascontiguousarray(values.T, dtype=values.dtype.newbyteorder("="))
        image = sitk.GetImageFromArray(native, isVector=stored.components > 1)
        image.SetSpacing([*spacing.tolist(), *[1.0] * (count - used)])
        image.SetDirection(direction.ravel().tolist())
        image.SetOrigin([*lps[:-1, -1].tolist(), *[0.0] * (count - used)])
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} is no image that SimpleITK can hold: {itk_reason(error)}.") from error
    return image


def _listed(names: Any) -> list[str]:
    return [os.fspath(name) for name in ([names] if isinstance(names, str | os.PathLike) else names)]
