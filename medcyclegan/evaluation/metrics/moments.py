"""Local means, variances and covariance in a uniform window of 7 x 7 x 7 voxels, the ground of SSIM and MS-SSIM.

Only windows that lie wholly inside the volume are used, so a result is 3 voxels smaller on every face: the organisers
crop the same rim from their maps, hence nothing depends on how a filter continues beyond the border. Everything is
float64 on plain tensors, on the processor or on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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

    ux: Tensor
    uy: Tensor
    vx: Tensor
    vy: Tensor
    vxy: Tensor


def moments(x: Tensor, y: Tensor) -> Moments:
    """Moments of every whole window.

    Args:
        x: (X, Y, Z) float64, at least 7 along each axis.
        y: the same shape.

    Returns:
        Five tensors of (X - 6, Y - 6, Z - 6).
    """
    ux, uy = _window_mean(x), _window_mean(y)
    sample = WINDOW**3 / (WINDOW**3 - 1)
    vx = (_window_mean(x * x) - ux * ux).mul_(sample)
    vy = (_window_mean(y * y) - uy * uy).mul_(sample)
    vxy = (_window_mean(x * y) - ux * uy).mul_(sample)
    return Moments(ux, uy, vx, vy, vxy)


def mean_over(x: Tensor, y: Tensor, inside: Tensor, measure: Callable[[Moments], Tensor]) -> float:
    """Mean of a local measure over the windows whose center is inside.

    The measure is computed slab by slab and only in the bounding box of those windows, which is exactly the mean over
    the whole map.

    Args:
        x: (X, Y, Z) float64, at least 7 along each axis.
        y: the same shape and device.
        inside: the same shape and device, bool.
        measure: from the moments of N windows, five tensors of (N,), to one number per window.

    Returns:
        The mean; nan if `inside` has no voxel outside the rim of 3 voxels.
    """
    centers = inside[RIM:-RIM, RIM:-RIM, RIM:-RIM]
    box = _bounding_box(centers)
    if box is None:
        return math.nan
    total, count = 0.0, 0
    first, rest = box[0], tuple(slice(axis.start, axis.stop + 2 * RIM) for axis in box[1:])
    for start in range(first.start, first.stop, _SLAB):
        stop = min(start + _SLAB, first.stop)
        chosen = centers[start:stop, box[1], box[2]]
        if not chosen.any():
            continue
        windows = (slice(start, stop + 2 * RIM), *rest)
        local = moments(x[windows], y[windows])
        values = measure(Moments(*(part[chosen] for part in local)))
        total += float(values.sum())
        count += values.numel()
    return total / count


def _bounding_box(inside: Tensor) -> tuple[slice, slice, slice] | None:
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        used = inside.any(dim=others[1]).any(dim=others[0]).nonzero().flatten()
        if not used.numel():
            return None
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return box[0], box[1], box[2]


def _window_mean(x: Tensor) -> Tensor:
    """Mean of 7 along each axis in turn; a sum of 7 is one of 4, one of 2 and one, made of sums of 2."""
    for axis in range(3):
        n = x.shape[axis] - WINDOW + 1
        pairs = x.narrow(axis, 0, n + 5) + x.narrow(axis, 1, n + 5)
        total = pairs.narrow(axis, 0, n) + pairs.narrow(axis, 2, n)
        x = total.add_(pairs.narrow(axis, 4, n)).add_(x.narrow(axis, 6, n))
    return x.div_(WINDOW**3)


def on_device(x: Array, y: Array, inside: Inside, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Arrays as tensors on a device, sharing memory with NumPy where that is possible."""
    return torch.as_tensor(x, device=device), torch.as_tensor(y, device=device), torch.as_tensor(inside, device=device)
