"""Peak signal-to-noise ratio (SynthRAD2023 and 2025)."""

from __future__ import annotations

import math

import numpy as np

from medcyclegan.evaluation.metrics.score import Limits, Score, Values, voxelwise


@voxelwise
def psnr(reference: Values, synthetic: Values, limits: Limits) -> Score:
    """10 log10(R^2 / mean over the mask of (reference - synthetic)^2), both clipped to the limits, R = high - low.

    In dB, more is better; inf for images that are identical after clipping.
    """
    low, high = limits
    squared = float(np.square(np.clip(reference, low, high) - np.clip(synthetic, low, high)).mean())
    if squared == 0:
        return Score(math.inf, "the two images are identical in the mask")
    return Score(10 * math.log10((high - low) ** 2 / squared))
