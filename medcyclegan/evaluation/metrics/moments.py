"""Local means, variances and covariance in a uniform window of 7 x 7 x 7 voxels, the ground of SSIM and MS-SSIM.

Only windows that lie wholly inside the volume are used, so a result is 3 voxels smaller on every face: the organisers
crop the same rim from their maps, hence nothing depends on how a filter continues beyond the border.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medcyclegan.evaluation.metrics.score import Inside

Array = npt.NDArray[np.float64]

WINDOW = 7
RIM = WINDOW // 2
K1, K2 = 0.01, 0.03
# Planes of the first axis in one go: large enough that the overlap of 6 is cheap, small enough that a dozen
# temporaries of a 256 x 256 plane stay below 0.3 GB.
_SLAB = 32


class Moments(NamedTuple):
    """Per window, in HU and HU^2: means of both images, sample variances and sample covariance (343/342)."""

    ux: Array
    uy: Array
    vx: Array
    vy: Array
    vxy: Array


def moments(x: Array, y: Array) -> Moments:
    """Moments of every whole window.

    Args:
        x: (X, Y, Z), at least 7 along each axis.
        y: the same shape.

    Returns:
        Five arrays of (X - 6, Y - 6, Z - 6).
    """
    ux, uy = _window_mean(x), _window_mean(y)
    sample = WINDOW**3 / (WINDOW**3 - 1)
    vx = sample * (_window_mean(x * x) - ux * ux)
    vy = sample * (_window_mean(y * y) - uy * uy)
    vxy = sample * (_window_mean(x * y) - ux * uy)
    return Moments(ux, uy, vx, vy, vxy)


def mean_over(x: Array, y: Array, inside: Inside, measure: Callable[[Moments], Array]) -> float:
    """Mean of a local measure over the windows whose center is inside.

    The measure is computed slab by slab and only in the bounding box of those windows, which is exactly the mean over
    the whole map.

    Args:
        x: (X, Y, Z), at least 7 along each axis.
        y: the same shape.
        inside: the same shape, bool.
        measure: from the moments of windows to one number per window.

    Returns:
        The mean; nan if `inside` has no voxel outside the rim of 3 voxels.
    """
    centers = inside[RIM:-RIM, RIM:-RIM, RIM:-RIM]
    box = ndimage.find_objects(centers.view(np.uint8), max_label=1)[0]
    if box is None:
        return math.nan
    total, count = 0.0, 0
    first, rest = box[0], tuple(slice(axis.start, axis.stop + 2 * RIM) for axis in box[1:])
    for start in range(first.start, first.stop, _SLAB):
        stop = min(start + _SLAB, first.stop)
        windows = (slice(start, stop + 2 * RIM), *rest)
        chosen = centers[start:stop, box[1], box[2]]
        total += float(measure(moments(x[windows], y[windows]))[chosen].sum())
        count += int(np.count_nonzero(chosen))
    return total / count


def _window_mean(x: Array) -> Array:
    whole: Array = ndimage.uniform_filter(x, size=WINDOW)
    return whole[RIM:-RIM, RIM:-RIM, RIM:-RIM]
