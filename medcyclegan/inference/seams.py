"""How much the brightness of a translated volume changes from slice to slice."""

from __future__ import annotations

import numpy as np


def slice_means(volume: np.ndarray, mask: np.ndarray, axis: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each slice in the mask shared with its two neighbors, and the mean of the neighbors there.

    Args:
        volume: (X, Y, Z), any unit.
        mask: (X, Y, Z) bool.
        axis: across the slices.

    Returns:
        (N - 2,) mean of slices 1 to N - 2 and (N - 2,) mean of the two neighbors of each; NaN where nothing is shared.
    """
    values, inside = np.moveaxis(volume, axis, 0), np.moveaxis(mask.astype(bool), axis, 0)
    own, beside = np.full(max(0, len(values) - 2), np.nan), np.full(max(0, len(values) - 2), np.nan)
    for k in range(1, len(values) - 1):
        shared = inside[k - 1] & inside[k] & inside[k + 1]
        if shared.any():
            own[k - 1] = values[k][shared].mean(dtype=np.float64)
            pair = values[k - 1][shared].mean(dtype=np.float64), values[k + 1][shared].mean(dtype=np.float64)
            beside[k - 1] = sum(pair) / 2
    return own, beside
