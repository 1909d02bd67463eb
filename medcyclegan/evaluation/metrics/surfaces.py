"""Overlap and surface distances of two segmentations, and of bone found by a threshold.

The *surface* of a segmentation are its voxels that have a face neighbor outside it; beyond the edge of the volume is
outside. Distances run between centers of surface voxels, in millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from medcyclegan.evaluation.metrics.score import Mask, Score, Volume, inside_of, undefined, why_undefined

Bools = npt.NDArray[np.bool_]
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """How well a segmentation agrees with a reference.

    Attributes:
        dice: 2 |A and B| / (|A| + |B|) (Dice 1945), in [0, 1].
        hd95: the larger of the two 95th percentiles (linear interpolation) of the distances from one surface to the
            other, mm.
        surface_distance: average symmetric surface distance: the mean of all those distances, both ways, mm.
    """

    dice: Score
    hd95: Score
    surface_distance: Score


def agreement(reference: Bools, found: Bools, axes: Matrix) -> Agreement:
    """Compare two segmentations.

    Args:
        reference: (X, Y, Z) bool.
        found: (X, Y, Z) bool.
        axes: (3, 3), mm; column i is the step from one voxel to the next along axis i: `np.diag(spacing)`, or the first
            three rows and columns of an affine.

    Returns:
        nan with the reason where the reference is empty, and for the distances where the segmentation is.

    Raises:
        ValueError: the shapes differ or are not three-dimensional.
    """
    if reference.ndim != 3 or reference.shape != found.shape:
        raise ValueError(f"two (X, Y, Z) arrays of one shape are needed, got {reference.shape} and {found.shape}")
    if not reference.any():
        empty = undefined("there is nothing to find in the reference")
        return Agreement(empty, empty, empty)
    if not found.any():
        missing = undefined("the prediction finds nothing of it")
        return Agreement(Score(0.0), missing, missing)
    # Cropped to both segmentations with a rim of one voxel, which keeps their surfaces.
    (box,) = ndimage.find_objects((reference | found).view(np.uint8), max_label=1)
    a, b = (np.pad(np.ascontiguousarray(part[box]), 1) for part in (reference, found))
    shared, total = np.count_nonzero(a & b), np.count_nonzero(a) + np.count_nonzero(b)
    from_a, from_b = _surface(a) @ axes.T, _surface(b) @ axes.T
    outward = np.asarray(cKDTree(from_b).query(from_a)[0])
    inward = np.asarray(cKDTree(from_a).query(from_b)[0])
    return Agreement(
        Score(2 * shared / total),
        Score(float(max(np.percentile(outward, 95), np.percentile(inward, 95)))),
        Score(float((outward.sum() + inward.sum()) / (outward.size + inward.size))),
    )


def bone_metric_names(thresholds: Sequence[float]) -> tuple[str, ...]:
    """The columns that `bone_scores` fills, such as `dice_bone_200`."""
    return tuple(f"{name}_bone_{t:g}" for t in thresholds for name in ("dice", "hd95", "surface_distance"))


def bone_scores(
    reference: Volume, synthetic: Volume, mask: Mask | None, axes: Matrix, thresholds: Sequence[float]
) -> dict[str, Score]:
    """Agreement of bone, which is what exceeds a threshold inside the mask.

    Args:
        reference: (X, Y, Z), HU.
        synthetic: (X, Y, Z), HU.
        mask: (X, Y, Z), voxels above 0 count; None for all.
        axes: as for `agreement`.
        thresholds: HU.

    Returns:
        `dice_bone_200`, `hd95_bone_200` (mm) and `surface_distance_bone_200` (mm) for a threshold of 200 HU and so on;
        nan with the reason where there is no bone, for an empty mask, or for values that are not finite.

    Raises:
        ValueError: the shapes differ or are not three-dimensional.
    """
    inside = inside_of(mask, reference.shape)
    reason = why_undefined(reference, synthetic, inside)
    if reason:
        return dict.fromkeys(bone_metric_names(thresholds), undefined(reason))
    scores = {}
    for threshold in thresholds:
        found = agreement(inside & (reference > threshold), inside & (synthetic > threshold), axes)
        for name in ("dice", "hd95", "surface_distance"):
            scores[f"{name}_bone_{threshold:g}"] = getattr(found, name)
    return scores


def _surface(inside: Bools) -> npt.NDArray[np.int64]:
    """Voxel indices of the surface, (N, 3); the array has a rim of zeros."""
    return np.argwhere(inside & ~ndimage.binary_erosion(inside))
