"""The body mask: which voxels are patient and which are air, table or noise.

The mask is found on a copy of 2 to 3 mm voxels, in millimetres, and brought back: a head of 1 mm voxels takes about a
second. It is one piece, without holes, and what is enclosed within any slice (sinuses, ear canals, airways) is inside.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage
from skimage.filters import threshold_li

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import grid_of
from medcyclegan.transforms.geometry import resample

Mask = npt.NDArray[np.bool_]

# Voxel size of the copy on which the mask is found (mm); coarser volumes stay as they are.
_COARSE_MM = 2.5
# Between air (-1000 HU) and fat (-100 HU), nearer to fat so that the blurred rim of the skin is left out.
_CT_THRESHOLD_HU = -300.0
# Tables, tubes and frames are shells thinner than twice this; heads, limbs and necks are thicker (mm).
_CT_OPENING_MM = 4.0
_MR_OPENING_MM = 4.0
# Bridges the dark skull between scalp and brain (mm).
_MR_CLOSING_MM = 6.0
# Against noise: neighbors farther than this are not used (mm).
_MEDIAN_MM = 4.0
# Of the surface (mm).
_SMOOTHING_MM = 2.0
# Part of the robust maximum below which nothing is taken for tissue, as in FSL's brain extraction (Smith 2002: 10 %).
_MR_FLOOR = 0.1
# What is inside is at least this much brighter than what is outside.
_MR_CONTRAST = 2.0
# A body fills at least this part of the volume.
_SMALLEST_PART = 0.005


def body_mask(volume: np.ndarray, spacing: Sequence[float], modality: str) -> Mask:
    """Find the body.

    CT: above -300 HU, opened, largest piece, filled. MR: above a threshold between background and tissue (minimum
    cross entropy, Li and Tam 1998) of the smoothed volume, closed, filled, opened, largest piece, filled.

    Args:
        volume: (X, Y, Z), HU for CT; any unit for MR, tissue brighter than background.
        spacing: (3,) mm.
        modality: "MR" or "CT".

    Returns:
        (X, Y, Z) bool, one piece (face-connected).

    Raises:
        InputError: there is no body: noise only, no air in a CT, or less than 0.5 % of the volume.
    """
    if volume.ndim != 3 or len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"a volume (X, Y, Z) and three spacings above 0 are needed, got {volume.shape}, {spacing}")
    factors = [max(1, min(int(_COARSE_MM / s), n // 2)) for s, n in zip(spacing, volume.shape, strict=True)]
    steps = np.array(factors) * np.array(spacing, dtype=np.float64)
    if modality == "CT":
        coarse_mask = _ct_body(_block_mean(volume, factors, clip=(-1024.0, 200.0)), steps)
    elif modality == "MR":
        coarse_mask = _mr_body(_block_mean(volume, factors), steps)
    else:
        raise ValueError(f"modality is 'MR' or 'CT', got {modality!r}")
    occupancy = ndimage.gaussian_filter(coarse_mask.astype(np.float32), _SMOOTHING_MM / steps, mode="nearest")
    mask = _largest_piece(_refine(occupancy, factors, volume.shape))
    if mask.mean() < _SMALLEST_PART:
        raise InputError(
            f"no body was found: the largest piece fills {100 * mask.mean():.2g} % of the volume.",
            "Check the volume and its modality, or give a body mask.",
        )
    return mask


class BodyMaskd(MapTransform):
    """Find the body of the volume at `keys` (one key) and store its mask (1, X, Y, Z), uint8, at `body_key`.

    Args:
        keys: one key of a MetaTensor (1, X, Y, Z).
        body_key: where the mask goes.
        modality: "MR" or "CT".
    """

    def __init__(self, keys: KeysCollection = "image", body_key: Hashable = "body", *, modality: str) -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise ValueError(f"one key is needed, got {self.keys}")
        if modality not in ("MR", "CT"):
            raise ValueError(f"modality is 'MR' or 'CT', got {modality!r}")
        self.body_key = body_key
        self.modality = modality

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        volume = result[self.keys[0]]
        grid = grid_of(volume)
        mask = body_mask(volume.as_tensor().detach().cpu().numpy()[0], grid.spacing.tolist(), self.modality)
        affine = torch.from_numpy(grid.affine.copy())
        result[self.body_key] = MetaTensor(torch.from_numpy(mask.view(np.uint8)[None]), affine=affine)
        return result


class OutsideBodyd(MapTransform):
    """Set what lies outside the body to `value`.

    Args:
        keys: keys of tensors (C, X, Y, Z).
        body_key: key of the mask (1, X, Y, Z), above 0 inside.
        value: in the unit of the tensors.
    """

    def __init__(self, keys: KeysCollection, body_key: Hashable = "body", value: float = -1.0) -> None:
        super().__init__(keys)
        self.body_key = body_key
        self.value = value

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        outside = torch.as_tensor(result[self.body_key]) == 0
        if isinstance(outside, MetaTensor):
            outside = outside.as_tensor()
        for key in self.key_iterator(result):
            result[key] = result[key].masked_fill(outside, self.value)
        return result


def _ct_body(volume: np.ndarray, steps: npt.NDArray[np.float64]) -> Mask:
    tissue = volume > _CT_THRESHOLD_HU
    if tissue.all():
        raise InputError(
            f"no air was found: nothing lies below {_CT_THRESHOLD_HU:g} HU (minimum {volume.min():g}).",
            "Is this CT in HU? Files without their offset of -1024 are not.",
        )
    if not tissue.any():
        raise InputError(f"no body was found: nothing lies above {_CT_THRESHOLD_HU:g} HU.", "Is this CT in HU?")
    core = _largest_piece(_open(tissue, steps, _CT_OPENING_MM))
    # Ears and noses are thinner than the opening: nearby voxels connected to the body belong to it.
    near = _dilate(core, steps, 2 * _CT_OPENING_MM) & tissue
    return _fill(_largest_piece(near | core))


def _mr_body(volume: np.ndarray, steps: npt.NDArray[np.float64]) -> Mask:
    low, high = np.percentile(volume, (0.1, 99.0))
    smooth = np.clip(volume, low, high) - low
    # A median leaves edges where they are; a Gaussian would push the threshold, which is low, out into the air.
    size = [3 if step < _MEDIAN_MM else 1 for step in steps]
    smooth = ndimage.median_filter(smooth, size=size, mode="nearest")
    tissue = smooth > _mr_threshold(smooth)
    # Scalp and brain are two pieces until the skull between them is bridged, so that filling comes before opening.
    closed = _fill(_close(_fill(tissue), steps, _MR_CLOSING_MM))
    return _fill(_largest_piece(_open(closed, steps, _MR_OPENING_MM)))


def _mr_threshold(smooth: np.ndarray) -> float:
    """The threshold between background and tissue, dim tissue included.

    The first split may fall between bright and dim tissue (cerebrospinal fluid and scalp in T2); what lies below is
    split again until its two parts are alike, which they are in noise.
    """
    floor = _MR_FLOOR * float(smooth.max())
    below = smooth.ravel()
    threshold = np.inf
    while below.size and below.max() > below.min():
        split = float(threshold_li(below))
        bright, dark = float(below[below > split].mean()), float(below[below <= split].mean())
        if bright < _MR_CONTRAST * dark:
            break
        threshold = max(split, floor)
        below = below[below <= split]
        if split <= floor:
            break
    if not np.isfinite(threshold):
        raise InputError(
            "no body was found: no part of the volume is clearly brighter than the rest.",
            "Check that the volume is an MR of a patient, or give a body mask.",
        )
    return threshold


def _block_mean(
    volume: np.ndarray, factors: Sequence[int], clip: tuple[float, float] | None = None
) -> npt.NDArray[np.float32]:
    """Means over blocks of `factors` voxels, float32; the last block of an axis may be smaller.

    Slab by slab, so that a large volume is never copied whole.
    """
    first = range(0, volume.shape[0], factors[0])
    slabs = []
    for start in first:
        slab = volume[start : start + factors[0]].astype(np.float32)
        if clip is not None:
            np.clip(slab, *clip, out=slab)
        mean = slab.mean(axis=0)
        for axis in (0, 1):
            starts = np.arange(0, mean.shape[axis], factors[axis + 1])
            counts = np.diff([*starts, mean.shape[axis]]).astype(np.float32)
            mean = np.add.reduceat(mean, starts, axis=axis) / (counts[:, None] if axis == 0 else counts)
        slabs.append(mean)
    return np.stack(slabs).astype(np.float32)


def _refine(occupancy: npt.NDArray[np.float32], factors: Sequence[int], shape: tuple[int, ...]) -> Mask:
    """The coarse occupancy at the voxels of the full volume, above one half."""
    if all(factor == 1 for factor in factors):
        return np.asarray(occupancy > 0.5)
    # In the index space of the full volume, a block of f voxels has its center at (f - 1) / 2.
    affine = np.diag([*map(float, factors), 1.0])
    affine[:3, 3] = (np.array(factors) - 1) / 2
    x, y, z = occupancy.shape
    coarse = Grid((x, y, z), affine)
    mask = np.empty(shape, dtype=np.bool_)
    # Slab by slab, because the interpolated occupancy would be as large as the volume.
    thick = 64
    for start in range(0, shape[0], thick):
        stop = min(start + thick, shape[0])
        shifted = np.eye(4)
        shifted[0, 3] = start
        fine = resample(occupancy, coarse, Grid((stop - start, shape[1], shape[2]), shifted), fill=0.0)
        mask[start:stop] = fine > 0.5
    return mask


def _distance_to(mask: Mask, steps: npt.NDArray[np.float64]) -> np.ndarray:
    """Distance of every voxel to the nearest voxel of `mask`, mm; infinite where there is none."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(steps[::-1].tolist())  # ITK counts axes in the reverse order
    # Five times as fast as SciPy's, and without its index arrays. Negative inside.
    signed = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    return np.maximum(sitk.GetArrayViewFromImage(signed), 0)


def _erode(mask: Mask, steps: npt.NDArray[np.float64], radius: float) -> Mask:
    """Voxels farther than `radius` from the outside; the edge of the volume does not count as outside."""
    return _distance_to(~mask, steps) > radius


def _dilate(mask: Mask, steps: npt.NDArray[np.float64], radius: float) -> Mask:
    return _distance_to(mask, steps) <= radius


def _open(mask: Mask, steps: npt.NDArray[np.float64], radius: float) -> Mask:
    return _dilate(_erode(mask, steps, radius), steps, radius)


def _close(mask: Mask, steps: npt.NDArray[np.float64], radius: float) -> Mask:
    # With room around it, or the gap between a round head and the edge of the volume would be closed as well.
    margin = [(int(np.ceil(radius / step)) + 1,) * 2 for step in steps]
    closed = _erode(_dilate(np.pad(mask, margin), steps, radius), steps, radius)
    return closed[tuple(slice(before, -after) for before, after in margin)]


def _fill(mask: Mask) -> Mask:
    """Without holes, in 3D and then in every slice along each axis, since an airway opens to the outside in 3D."""
    filled = np.asarray(ndimage.binary_fill_holes(mask))
    for axis in range(3):
        structure = np.expand_dims(ndimage.generate_binary_structure(2, 1), axis)
        filled = np.asarray(ndimage.binary_fill_holes(filled, structure=structure))
    return filled


def _largest_piece(mask: Mask) -> Mask:
    """The largest face-connected piece; an empty mask stays empty."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())
