"""Errors in HU: mean absolute, mean signed and root mean square error. None of them clips to the limits."""

from __future__ import annotations

import math

import numpy as np

from medcyclegan.evaluation.metrics.score import Limits, Values, voxelwise


@voxelwise
def mae(reference: Values, synthetic: Values, limits: Limits) -> float:
    """Mean absolute error, sum over the mask of |reference - synthetic| / number of voxels (SynthRAD2023 and 2025).

    In HU, 0 is best.
    """
    return float(np.abs(synthetic - reference).mean())


@voxelwise
def me(reference: Values, synthetic: Values, limits: Limits) -> float:
    """Mean signed error in HU, the mean over the mask of synthetic - reference: positive where the sCT is too dense."""
    return float((synthetic - reference).mean())


@voxelwise
def rmse(reference: Values, synthetic: Values, limits: Limits) -> float:
    """Root of the mean over the mask of (synthetic - reference)^2, in HU; unlike in PSNR, nothing is clipped."""
    return math.sqrt(np.square(synthetic - reference).mean())
