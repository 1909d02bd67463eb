"""Multi-scale structural similarity in 3D inside a mask (SynthRAD2025)."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from medcyclegan.evaluation.metrics.moments import K1, K2, Moments, mean_over, on_device
from medcyclegan.evaluation.metrics.score import (
    Limits,
    Mask,
    Score,
    Volume,
    inside_of,
    undefined,
    why_undefined,
    within,
)

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# Four halvings leave 7 of 97 voxels: one window at the last level.
SMALLEST_AXIS = 97


def ms_ssim(reference: Volume, synthetic: Volume, mask: Mask | None, limits: Limits, *, device: str = "cpu") -> Score:
    """Product over five levels of the mean over the mask of (L C S)^weight, images prepared as for `ssim`.

    The weights are those of Wang, Simoncelli and Bovik 2003 (Asilomar, section 3.2), but as in SynthRAD2025 luminance
    enters at every level and the weight acts on each voxel before the mean. With C3 = C2 / 2, sx = sqrt(max(0, vx)):
    L = max(0, (2 ux uy + C1) / (ux^2 + uy^2 + C1)), C = max(0, (2 sx sy + C2) / (vx + vy + C2)),
    S = max(0, (vxy + C3) / (sx sy + C3)). Volumes are edge-padded to at least 97 voxels per axis; a level leaves out
    its outer 3 voxels; its mean is clipped to [0, 1].

    In [0, 1], 1 is best; nan with the reason without a mask, for which the protocol has no definition, and for a mask
    that leaves no voxel at some level. `device` is as for `ssim`.
    """
    inside = inside_of(mask, reference.shape)
    reason = why_undefined(reference, synthetic, inside)
    if mask is None:
        reason = "MS-SSIM is defined only inside a mask, and there is none"
    if reason:
        return undefined(reason)
    span = limits[1] - limits[0]
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    c3 = c2 / 2

    def similarity(m: Moments) -> Tensor:
        sx, sy = m.vx.clamp(min=0).sqrt(), m.vy.clamp(min=0).sqrt()
        luminance = ((2 * m.ux * m.uy + c1) / (m.ux**2 + m.uy**2 + c1)).clamp(min=0)
        contrast = ((2 * sx * sy + c2) / (m.vx + m.vy + c2)).clamp(min=0)
        structure = ((m.vxy + c3) / (sx * sy + c3)).clamp(min=0)
        return luminance * contrast * structure

    padding = [((missing := max(0, SMALLEST_AXIS - n)) // 2, missing - missing // 2) for n in reference.shape]
    x, y, chosen = on_device(
        np.pad(within(reference, inside, limits), padding, mode="edge"),
        np.pad(within(synthetic, inside, limits), padding, mode="edge"),
        np.pad(inside, padding, mode="edge"),
        device,
    )
    product = 1.0
    for level, weight in enumerate(WEIGHTS, start=1):
        if level > 1:
            x, y, chosen = _halved(x), _halved(y), chosen[::2, ::2, ::2]
        value = mean_over(x, y, chosen, lambda m, w=weight: similarity(m) ** w)  # type: ignore[misc]
        if math.isnan(value):
            return undefined(
                f"the mask has no voxel at level {level} of {len(WEIGHTS)} "
                f"(spacing {2 ** (level - 1)} voxels, the outer 3 left out)"
            )
        product *= min(max(value, 0.0), 1.0)
    return Score(product)


def _halved(x: Tensor) -> Tensor:
    """y[n] = (x[n] + x[n - 1]) / 2 along each axis with x[-1] = 0, of which every second voxel is kept."""
    for axis in range(3):
        x = x.movedim(axis, 0)
        y = x[::2] / 2
        y[1:] += x[1::2][: len(y) - 1] / 2
        x = y.movedim(0, axis)
    return x.contiguous()
