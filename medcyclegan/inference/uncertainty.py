"""Uncertainty maps: where a translated volume may be wrong, without knowing the truth.

    spread      how far the members of an ensemble are from the result, HU
    cycle       how far the source is from the result translated back, share of the source's intensity window, 0 to 1
    structure   where the result has other edges than the source (MIND), 0 to 1
    combined    the mean of the maps, each over its 99th percentile in the body

A low value proves nothing: members can share a mistake, and a cycle can hide information.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# Voxels: single ones are noise, and a fault that matters is larger.
_SMOOTHING = 1.0
_PATCH_SD = 0.5
_OFFSETS = [(axis, step) for axis in range(3) for step in (-1, 1)]


def spread(result: Map, members: Sequence[Map], width: float) -> Map:
    """Root mean square distance of the members to the result, in HU.

    Where the result is the members' mean this is their standard deviation (divisor n).

    Args:
        result: (X, Y, Z) in [-1, 1], the final result.
        members: the same shape and range, at least one.
        width: HU from -1 to 1.
    """
    if not members:
        raise ValueError("a spread needs at least one member")
    total = np.zeros(result.shape, np.float32)
    for member in members:
        total += (member - result) ** 2
    return np.sqrt(total / np.float32(len(members))) * np.float32(width / 2)


def cycle_residual(image: Map, returned: Map, body: Mask) -> Map:
    """|source - source translated there and back|, over the width of the source's window: 0 to 1, 0 outside the body.

    Zhu et al. 2017, eq. 2, without the sum over voxels.

    Args:
        image: (C, X, Y, Z) in [-1, 1].
        returned: likewise.
        body: (X, Y, Z).

    Returns:
        (X, Y, Z), the mean over the channels.
    """
    residual = np.where(body, np.abs(image - returned) / np.float32(2), 0)
    return np.asarray(residual.mean(axis=0), dtype=np.float32)


def structure_disagreement(image: Map, result: Map, body: Mask) -> Map:
    """Mean absolute difference of the MIND descriptors of both volumes, 0 to 1; 0 outside the body.

    MIND of a voxel x and its six neighbors r (Heinrich et al. 2012, "MIND: Modality independent neighbourhood
    descriptor for multi-modal deformable registration", eq. 2 to 4):

        D(x, r) = Gaussian patch distance of I(x) and I(x + r),   V(x) = mean over r of D
        MIND(x, r) = exp(-D / V) / max over r

    It depends on local structure and not on brightness, so that MR and CT can be compared.

    Args:
        image: (C, X, Y, Z) in [-1, 1].
        result: (X, Y, Z).
        body: (X, Y, Z).

    Returns:
        (X, Y, Z), the mean over the channels.
    """
    theirs, maps = _mind(result, body), []
    for channel in image:
        difference = np.zeros(result.shape, np.float32)
        for a, b in zip(_mind(channel, body), theirs, strict=True):
            difference += np.abs(a - b)
        maps.append(difference / np.float32(len(_OFFSETS)))
    return np.where(body, np.mean(maps, axis=0), 0).astype(np.float32)


def combined(maps: Mapping[str, Map], body: Mask) -> Map:
    """The mean of maps, each smoothed by a voxel and divided by its 99th percentile in the body; 0 outside it."""
    total = np.zeros(body.shape, np.float32)
    for values in maps.values():
        smooth = gaussian_filter(values, _SMOOTHING)
        scale = float(np.percentile(smooth[body], 99)) if body.any() else 0.0
        if scale > 0:
            total += smooth / np.float32(scale)
    return np.where(body, total / np.float32(max(1, len(maps))), 0).astype(np.float32)


def _mind(values: Map, body: Mask) -> list[Map]:
    distances = []
    for axis, step in _OFFSETS:
        # The edge voxel is its own neighbor beyond the border.
        index = np.clip(np.arange(values.shape[axis]) + step, 0, values.shape[axis] - 1)
        distances.append(gaussian_filter((values - values.take(index, axis=axis)) ** 2, _PATCH_SD))
    variance = np.asarray(np.mean(distances, axis=0, dtype=np.float32))
    # A flat neighborhood has no structure: its variance is held at or above a thousandth of the mean.
    usual = float(variance[body].mean()) if body.any() else 0.0
    variance = np.clip(variance, max(1e-3 * usual, 1e-12), max(1e3 * usual, 1e-12))
    descriptor = [np.exp(-distance / variance) for distance in distances]
    largest = np.maximum.reduce(descriptor)
    return [part / largest for part in descriptor]
