"""Peak signal-to-noise ratio (SynthRAD2023 and 2025)."""

from __future__ import annotations

import math

import numpy as np

from medcyclegan.evaluation.metrics.score import Limits, Mask, Score, Volume, inside_of, undefined, why_undefined


def psnr(reference: Volume, synthetic: Volume, mask: Mask | None, limits: Limits) -> Score:
    """10 log10(R^2 / mean over the mask of (reference - synthetic)^2), both clipped to the limits, R = high - low.

    Args:
        reference: (X, Y, Z), HU.
        synthetic: (X, Y, Z), HU.
        mask: (X, Y, Z), voxels above 0 count; None for all.
        limits: low and high HU of the protocol.

    Returns:
        dB, more is better; inf for images that are identical after clipping; nan with the reason for an empty mask or
        values that are not finite.

    Raises:
        ValueError: the shapes differ or are not three-dimensional.
    """
    inside = inside_of(mask, reference.shape)
    reason = why_undefined(reference, synthetic, inside)
    if reason:
        return undefined(reason)
    low, high = limits
    g = np.clip(reference[inside].astype(np.float64), low, high)
    p = np.clip(synthetic[inside].astype(np.float64), low, high)
    squared = float(np.square(g - p).mean())
    if squared == 0:
        return Score(math.inf, "the two images are identical in the mask")
    return Score(10 * math.log10((high - low) ** 2 / squared))
