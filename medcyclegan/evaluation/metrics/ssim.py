"""Structural similarity in 3D inside a mask (SynthRAD2023)."""

from __future__ import annotations

import math

from torch import Tensor

from medcyclegan.evaluation.metrics.moments import K1, K2, RIM, WINDOW, Moments, mean_over, on_device
from medcyclegan.evaluation.metrics.score import Inside, Limits, Score, Volume, metric, undefined, within


@metric
def ssim(reference: Volume, synthetic: Volume, inside: Inside, limits: Limits, *, device: str = "cpu") -> Score:
    """Mean over the mask of the local similarity, after clipping and setting everything outside the mask to `low`.

    S = (2 ux uy + C1)(2 vxy + C2) / ((ux^2 + uy^2 + C1)(vx + vy + C2)) with C1 = (0.01 R)^2, C2 = (0.03 R)^2 and
    R = high - low (Wang et al. 2004, IEEE TIP 13(4), eq. 13), in a uniform 7 x 7 x 7 window. The 3 voxels next to every
    face of the volume are left out.

    Computed on `device`: "cpu", "cuda", "cuda:1", ...; float64 everywhere, so "mps" cannot.

    At most 1, which is best; nan with the reason for an axis shorter than 7 voxels, or a mask that lies wholly in the
    3-voxel rim.
    """
    if min(reference.shape) < WINDOW:
        return undefined(f"an axis of {min(reference.shape)} voxels is shorter than the window of {WINDOW}")
    span = limits[1] - limits[0]
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2

    def similarity(m: Moments) -> Tensor:
        return ((2 * m.ux * m.uy + c1) * (2 * m.vxy + c2)) / ((m.ux**2 + m.uy**2 + c1) * (m.vx + m.vy + c2))

    x, y = within(reference, inside, limits), within(synthetic, inside, limits)
    value = mean_over(*on_device(x, y, inside, device), similarity)
    if math.isnan(value):
        return undefined(f"the mask lies wholly in the {RIM}-voxel rim of the volume, where SSIM has no window")
    return Score(value)
