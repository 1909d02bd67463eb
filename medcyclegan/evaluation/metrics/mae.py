"""Errors in HU: mean absolute, mean signed and root mean square error.

None of them clips, so they take the protocol's limits only to be called like every other metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from medcyclegan.evaluation.metrics.score import (
    Inside,
    Limits,
    Mask,
    Score,
    Volume,
    inside_of,
    undefined,
    why_undefined,
)


def mae(reference: Volume, synthetic: Volume, mask: Mask | None, limits: Limits) -> Score:
    """Mean absolute error, sum over the mask of |reference - synthetic| / number of voxels (SynthRAD2023 and 2025).

    Args:
        reference: (X, Y, Z), HU.
        synthetic: (X, Y, Z), HU.
        mask: (X, Y, Z), voxels above 0 count; None for all.
        limits: not used, since nothing is clipped.

    Returns:
        HU, 0 is best; nan with the reason for an empty mask or values that are not finite.

    Raises:
        ValueError: the shapes differ or are not three-dimensional.
    """
    return _mean_error(reference, synthetic, inside_of(mask, reference.shape), np.abs)


def me(reference: Volume, synthetic: Volume, mask: Mask | None, limits: Limits) -> Score:
    """Mean signed error, the mean over the mask of synthetic - reference: positive where the sCT is too dense.

    Arguments, undefined cases and errors are those of `mae`; the result is in HU.
    """
    return _mean_error(reference, synthetic, inside_of(mask, reference.shape), np.positive)


def rmse(reference: Volume, synthetic: Volume, mask: Mask | None, limits: Limits) -> Score:
    """Root of the mean over the mask of (synthetic - reference)^2; unlike in PSNR, nothing is clipped.

    Arguments, undefined cases and errors are those of `mae`; the result is in HU.
    """
    squared = _mean_error(reference, synthetic, inside_of(mask, reference.shape), np.square)
    return squared if squared.reason else Score(math.sqrt(squared.value))


def _mean_error(
    reference: Volume,
    synthetic: Volume,
    inside: Inside,
    measure: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
) -> Score:
    reason = why_undefined(reference, synthetic, inside)
    if reason:
        return undefined(reason)
    error = synthetic[inside].astype(np.float64) - reference[inside].astype(np.float64)
    return Score(float(measure(error).mean()))
