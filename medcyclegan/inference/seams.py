"""How visible the windows are in a translated volume: flicker from slice to slice, steps where tiles meet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def slice_means(volume: np.ndarray, mask: np.ndarray, axis: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each slice inside a mask that its two neighbors share with it, and that of the neighbors.

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


def slice_flicker(volume: np.ndarray, mask: np.ndarray, axis: int = 2) -> float:
    """How much slices flicker: root mean square of m(k) - (m(k-1) + m(k+1)) / 2 over the slices k.

    m are means over the voxels that the three slices share inside `mask`, so that a change of shape does not count. A
    linear trend has no flicker. Unit of `volume`; NaN if no three slices share a voxel.
    """
    own, beside = slice_means(volume, mask, axis)
    jumps = (own - beside)[np.isfinite(own)]
    return float(np.sqrt(np.mean(jumps**2))) if len(jumps) else float("nan")


def seam_energy(volume: np.ndarray, seams: Sequence[int], axis: int, mask: np.ndarray) -> float:
    """Mean square step across seams, over that across all other places: 1 where seams do not show.

    Args:
        volume: (X, Y, Z).
        seams: indices i along `axis` such that a window ends between i - 1 and i.
        axis: which the windows follow.
        mask: (X, Y, Z) bool; only steps with both ends inside count.
    """
    values, inside = np.moveaxis(volume, axis, 0), np.moveaxis(mask.astype(bool), axis, 0)
    both = inside[1:] & inside[:-1]
    steps = np.where(both, np.diff(values.astype(np.float64), axis=0) ** 2, 0)
    at = np.zeros(len(steps), bool)
    at[[s - 1 for s in seams]] = True
    seam, rest = (steps[chosen].sum() / max(1, both[chosen].sum()) for chosen in (at, ~at))
    return float(seam / rest)
