"""The body in a volume: its size, where it is cut off, and whether it is a whole head.

Everything is measured on a *coarse copy*: axes nearest right, anterior, superior, blocks of voxels averaged to about
3 mm. Words used here. *Head*: a body whose upper part has the width and length of a head. *Core*: the inner part of
the upper half of a head, which can only be brain. *Signature*: a 16 x 16 x 16 picture of the body, for comparing
volumes with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medcyclegan.errors import InputError
from medcyclegan.transforms.body import body_mask

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_COARSE_MM = 3.3
# Widths and lengths of heads from infants to large adults with thick hair and ears (mm).
_HEAD_WIDTH = (90.0, 215.0)
_HEAD_LENGTH = (110.0, 260.0)
# Parts of a head's length (about 190 mm in adults), downward from the vertex and inward from the skin.
_UPPER = 0.45
_CORE_DEPTH = 0.13
_FOREHEAD = (0.27, 0.5)
_NOSE = (0.62, 0.88)
_MIDLINE_MM = 20.0
# Depths below the skin at which a head is looked at for its skull (mm).
_LAYER_MM = 3.0
_LAYERS = 10
# A head whose `Head.skull_dip` is lower has no skull: whole heads have 0.098 or more (four real ones and phantoms; one
# with slices of 6.5 mm has 0.011), brains 0.047 or less.
SKULL_DIP = 0.075
# Area in which a body that is cut meets the upper face of the volume.
CUT_TOP_CM2 = 30.0
# Of the cube of a signature.
SIGNATURE = 16
SIGNATURES = (6, SIGNATURE, SIGNATURE, SIGNATURE)
_SIGNATURE_MM = 13.0
# The table and what lies on it, HU and mm.
_TABLE_HU = -900.0
_TABLE_WIDE_MM = 80.0
_CLEAR_MM = 8.0
# HU of enhanced vessels, between clotted blood (90) and bone.
_ENHANCED_HU = (110.0, 500.0)
# How much brighter than the white matter around it an enhanced voxel is; fat does not reach the core.
_ENHANCED_MR = 1.4


@dataclass(frozen=True)
class Coarse:
    """A coarse copy.

    Attributes:
        values: (X, Y, Z) float32, axes nearest RAS+.
        spacing: (3,) mm.
    """

    values: Floats
    spacing: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """Measurements of a head; None where they cannot be made.

    Attributes:
        width_mm, length_mm: across and front to back, of the part above the ears.
        recession_mm: how far the nose lies behind the forehead; negative in whole faces. None if the volume ends above
            the upper lip.
        skull_dip: MR: how much darker the layer under the scalp is than the layers on both its sides, as a part of the
            brightness of the head.
        skull_share: CT: part of the densest layer under the scalp that is above 250 HU.
        t1_score: MR: where the median of the core lies between its 2nd and 95th percentile. Fluid is the minority: it
            is dark in T1, which brings the score above one half, and bright in T2.
        enhanced_share: part of the core that is brighter than brain can be without a contrast agent.
    """

    width_mm: float
    length_mm: float
    recession_mm: float | None
    skull_dip: float | None
    skull_share: float | None
    t1_score: float | None
    enhanced_share: float | None


@dataclass(frozen=True)
class Anatomy:
    """Measurements of a body.

    Attributes:
        extent_mm: of the body along right, anterior, superior.
        liters: of the body.
        contact_cm2: area in which the body is cut by the volume's left, right, back, front, lower and upper face.
        outside: most frequent value outside the body, and the part of the voxels there that have exactly this value.
        air: CT: peak of the histogram outside the body, in bins of 50 HU from -1075 on; what is below is padding.
        table: CT: whether something as wide as a table lies outside the body.
        head: None if the body is no head.
        areas_cm2: of the body in the axial slices of the coarse copy, upward.
        slice_mm: thickness of these slices.
        signatures: six of int8, (6, 16, 16, 16), for the six ways in which an axis of the volume may be "up": x, y, z
            as they are, then reversed. The third is the one of the volume as its header says.
    """

    extent_mm: tuple[float, float, float]
    liters: float
    contact_cm2: tuple[float, float, float, float, float, float]
    outside: tuple[float, float]
    air: float | None
    table: bool
    head: Head | None
    areas_cm2: tuple[float, ...]
    slice_mm: float
    signatures: npt.NDArray[np.int8]

    @property
    def cut_at_top(self) -> bool:
        """Whether the body meets the upper face of the volume: with so much, 6 mm of a head's vertex are missing."""
        return self.contact_cm2[5] >= CUT_TOP_CM2

    @property
    def head_sized(self) -> bool:
        """Whether all of it is as wide and long as a head.

        True of a slab of a head too, in which nothing is measured of a head; not of a head with shoulders.
        """
        width, length, _ = self.extent_mm
        return _HEAD_WIDTH[0] <= width <= _HEAD_WIDTH[1] and _HEAD_LENGTH[0] <= length <= _HEAD_LENGTH[1]


def coarse_copy(volume: npt.NDArray[np.floating], affine: npt.NDArray[np.float64]) -> Coarse:
    """Axes nearest RAS+, means over blocks of about 3 mm (2 to 4.4; larger voxels stay as they are).

    Args:
        volume: (X, Y, Z), finite.
        affine: voxel index to world, RAS+ mm.
    """
    orientation = nib.orientations.io_orientation(affine)
    order = np.argsort(orientation[:, 0])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[order]
    turned = np.asarray(nib.orientations.apply_orientation(volume, orientation))
    factors = [max(1, min(round(_COARSE_MM / s), n // 8)) for s, n in zip(spacing, turned.shape, strict=True)]
    return Coarse(_block_means(turned, factors), spacing * factors)


def anatomy_of(coarse: Coarse, modality: str, known: Mask | None = None) -> tuple[Anatomy, Mask]:
    """Measure a body.

    Args:
        coarse: HU for CT; any unit for MR.
        modality: "MR" or "CT".
        known: the body on the coarse copy, where it was given; else it is looked for.

    Returns:
        What was measured, and the mask of the body on the coarse copy, (X, Y, Z) bool.

    Raises:
        InputError: there is no body.
    """
    values, spacing = coarse.values, coarse.spacing
    body = body_mask(values, spacing.tolist(), modality) if known is None else known
    if not body.any():
        raise InputError("the body mask is empty.")
    spans = [np.flatnonzero(body.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    extent = [float((span[-1] - span[0] + 1) * s) for span, s in zip(spans, spacing, strict=True)]
    voxel = float(np.prod(spacing))
    contact = []
    for axis in range(3):
        face = voxel / spacing[axis] / 100
        contact += [float(body.take(end, axis=axis).sum() * face) for end in (0, -1)]
    # Where the body is cut off, depth is counted from the cut, since its skin and bone lie outside.
    inner = ndimage.distance_transform_edt(np.pad(body, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    clear = ndimage.distance_transform_edt(~body, sampling=spacing) > _CLEAR_MM
    outside = values[clear] if clear.any() else values[~body]
    if outside.size == 0 and known is None:
        raise InputError("no voxel lies outside the body.", "Check the volume and its modality.")
    kinds, counts = np.unique(outside, return_counts=True)
    common = int(counts.argmax()) if outside.size else None
    return (
        Anatomy(
            extent_mm=(extent[0], extent[1], extent[2]),
            liters=float(body.sum() * voxel / 1e6),
            contact_cm2=(contact[0], contact[1], contact[2], contact[3], contact[4], contact[5]),
            outside=(0.0, 0.0) if common is None else (float(kinds[common]), float(counts[common] / outside.size)),
            air=_air(outside) if modality == "CT" else None,
            table=modality == "CT" and _table(values, clear, spacing),
            head=_head(values, body, inner, spacing, modality),
            areas_cm2=tuple(float(area) for area in body.sum(axis=(0, 1)) * (voxel / spacing[2] / 100)),
            slice_mm=float(spacing[2]),
            signatures=_signatures(values, body, spacing),
        ),
        body,
    )


def _air(outside: Floats) -> float | None:
    counts, edges = np.histogram(outside, bins=32, range=(-1075, 525))
    return float(edges[counts.argmax()] + 25) if counts.any() else None


def _head(
    values: Floats, body: Mask, depth: np.ndarray, spacing: npt.NDArray[np.float64], modality: str
) -> Head | None:
    heights = np.flatnonzero(body.any(axis=(0, 1)))
    vertex = int(heights[-1])
    below = (vertex - np.arange(body.shape[2])) * spacing[2]  # mm below the vertex
    upper = body[:, :, (below >= 0) & (below <= 110)]
    width, length = (
        float((np.ptp(np.flatnonzero(upper.any(axis=others))) + 1) * spacing[axis])
        for axis, others in ((0, (1, 2)), (1, (0, 2)))
    )
    if not (_HEAD_WIDTH[0] <= width <= _HEAD_WIDTH[1] and _HEAD_LENGTH[0] <= length <= _HEAD_LENGTH[1]):
        return None
    if (heights[-1] - heights[0] + 1) * spacing[2] < 0.4 * length or width > 1.1 * length:
        return None
    vault = (below >= 0) & (below <= _UPPER * length)
    core = values[(depth > _CORE_DEPTH * length) & vault[None, None, :]]
    score = enhanced = dip = bone = None
    if modality == "CT":
        bone = _skull_share(values[:, :, vault], body[:, :, vault], depth[:, :, vault])
    else:
        dip = _skull_dip(values[:, :, vault], body[:, :, vault], depth[:, :, vault])
    if core.size >= 200:
        if modality == "CT":
            enhanced = float(((core > _ENHANCED_HU[0]) & (core < _ENHANCED_HU[1])).mean())
        else:
            low, middle, high = np.percentile(core, (2, 50, 95))
            score = float((middle - low) / (high - low)) if high > low else None
            where = np.argwhere((depth > _CORE_DEPTH * length) & vault[None, None, :]) * spacing
            enhanced = _enhanced(core, where)
    return Head(width, length, _recession(body, below, length, spacing), dip, bone, score, enhanced)


def _recession(
    body: Mask, below: npt.NDArray[np.float64], length: float, spacing: npt.NDArray[np.float64]
) -> float | None:
    """Distance by which the nose lies behind the forehead, near the midline, mm."""
    across = np.flatnonzero(body[:, :, (below >= 0) & (below <= _UPPER * length)].any(axis=(1, 2)))
    middle = (across[0] + across[-1]) / 2
    near = np.abs(np.arange(body.shape[0]) - middle) * spacing[0] <= _MIDLINE_MM
    reached = []
    for start, stop in (_FOREHEAD, _NOSE):
        part = body[near][:, :, (below >= start * length) & (below <= stop * length)]
        if part.shape[2] * spacing[2] < 0.8 * (stop - start) * length - spacing[2] or not part.any():
            return None
        reached.append(float(np.flatnonzero(part.any(axis=(0, 2)))[-1] * spacing[1]))
    return reached[0] - reached[1]


def _skull_dip(values: Floats, body: Mask, depth: np.ndarray) -> float | None:
    layer = np.minimum((depth[body] / _LAYER_MM).astype(int), _LAYERS)
    count = np.bincount(layer, minlength=_LAYERS + 1)[:_LAYERS]
    sums = np.bincount(layer, weights=values[body], minlength=_LAYERS + 1)[:_LAYERS]
    profile = sums[count > 0] / count[count > 0]
    bright = float(np.percentile(values[body], 95))
    if len(profile) < 4 or bright <= 0:
        return None
    dips = [min(profile[:i].max(), profile[i + 1 :].max()) - profile[i] for i in range(1, len(profile) - 1)]
    return float(max(dips) / bright)


def _skull_share(values: Floats, body: Mask, depth: np.ndarray) -> float | None:
    """The outermost layers are left out: at the rim of a brain without its skull, voxels hold part of the bone."""
    layer = np.minimum((depth[body] / _LAYER_MM).astype(int), _LAYERS)
    count = np.bincount(layer, minlength=_LAYERS + 1)[2:_LAYERS]
    dense = np.bincount(layer, weights=values[body] > 250, minlength=_LAYERS + 1)[2:_LAYERS]
    return float((dense[count > 0] / count[count > 0]).max()) if count.any() else None


def _enhanced(core: Floats, where: npt.NDArray[np.float64]) -> float:
    """Part of the core that is much brighter than a smooth field through its brighter half, which is white matter."""
    x, y, z = ((where - where.mean(axis=0)) / 50).T
    terms = np.stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], axis=1)
    used = core > np.median(core)
    field = np.full(core.shape, float(np.median(core)))
    for _ in range(3):
        weights, *_ = np.linalg.lstsq(terms[used], core[used], rcond=None)
        field = np.maximum(terms @ weights, 0.2 * float(np.median(core)))
        used = (core > 0.8 * field) & (core < 1.25 * field)
        if used.sum() < 50:
            break
    return float((core > _ENHANCED_MR * field).mean())


def _table(values: Floats, clear: Mask, spacing: npt.NDArray[np.float64]) -> bool:
    labels, count = ndimage.label(clear & (values > _TABLE_HU))
    return any(
        (box[0].stop - box[0].start) * spacing[0] > _TABLE_WIDE_MM
        for box in ndimage.find_objects(labels, count)
        if box is not None
    )


def _signatures(values: Floats, body: Mask, spacing: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    low, high = np.percentile(values, (1.0, 99.5))
    scaled = np.clip((values - low) / (high - low if high > low else 1), 0, 1).astype(np.float32)
    smooth = ndimage.gaussian_filter(scaled, 0.4 * _SIGNATURE_MM / spacing, mode="constant", truncate=2.5)
    made = []
    for reverse in (False, True):
        for axis in range(3):
            moved, mask = np.moveaxis(smooth, axis, 2), np.moveaxis(body, axis, 2)
            steps = np.append(np.delete(spacing, axis), spacing[axis])
            if reverse:
                moved, mask = moved[:, :, ::-1], mask[:, :, ::-1]
            made.append(_signature(moved, mask, steps))
    return np.stack(made)


def _signature(smooth: Floats, body: Mask, spacing: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    """Means in cubes of 13 mm, as int8 of zero mean; in the middle of the body across, from its upper end downward."""
    center = [(np.flatnonzero(body.any(axis=others))[[0, -1]]).mean() for others in ((1, 2), (0, 2))]
    top = float(np.flatnonzero(body.any(axis=(0, 1)))[-1])
    half = (SIGNATURE - 1) / 2
    steps = _SIGNATURE_MM / spacing
    lines = [
        center[0] + (np.arange(SIGNATURE) - half) * steps[0],
        center[1] + (np.arange(SIGNATURE) - half) * steps[1],
        top - (SIGNATURE - 1 - np.arange(SIGNATURE) + 0.25) * steps[2],
    ]
    points = np.meshgrid(*lines, indexing="ij")
    picture = ndimage.map_coordinates(smooth, points, order=1, mode="constant")
    picture -= picture.mean()
    return np.rint(127 * picture / max(float(np.abs(picture).max()), 1e-9)).astype(np.int8)


def _block_means(volume: npt.NDArray[np.floating], factors: Sequence[int]) -> Floats:
    """Means over blocks of `factors` voxels, slab by slab along the first axis; the rest at an end is left out."""
    nx, ny, nz = (n // f for n, f in zip(volume.shape, factors, strict=True))
    fx, fy, fz = factors
    result = np.empty((nx, ny, nz), np.float32)
    for i in range(nx):
        slab = volume[i * fx : (i + 1) * fx, : ny * fy, : nz * fz]
        result[i] = slab.reshape(fx, ny, fy, nz, fz).mean(axis=(0, 2, 4), dtype=np.float32)
    return result
