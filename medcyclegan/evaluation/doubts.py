"""Checks that the values of a CT or a synthetic CT are Hounsfield units: wrong offset, 8 bits, no HU at all.

Hounsfield units are fixed by air (-1000) and water (0). Nothing here changes a value: each doubt is one sentence beside
the scores of the case.
"""

from __future__ import annotations

import numpy as np

from medcyclegan.evaluation.metrics.score import Inside, Volume

# Every CT of a patient contains air; otherwise the intercept was probably lost and water is about 1000.
AIR_BELOW_HU = -200.0
# The middle fifth of a body's voxels is soft tissue, which lies within this of 0 HU: fat at -100, muscle at 60.
_SOFT_HU = 200.0
_MIDDLE = (0.4, 0.6)
# Padding may lie at -1024 or -2000 HU; air that is lower than this has been shifted.
_NO_AIR_BELOW = -1500.0
# How far a mean difference may be from 1000 or 1024 HU and still be called a lost or doubled intercept.
_OFFSET_TOLERANCE = 100.0
# 8 bits over a CT's range leave steps of 12 to 16 HU; a CT has steps of 1.
_COARSE_STEP, _COARSE_RANGE = 3.5, 500.0
_FEW_VALUES, _MANY_VALUES = 16, 256
# Denser than enamel is metal, of which a hip prosthesis with its streaks is less than a hundredth of a scan.
_METAL_HU, _METAL_SHARE = 3000.0, 0.02


def value_doubts(kind: str, volume: Volume, inside: Inside) -> list[str]:
    """Doubts about the values of one volume.

    Args:
        kind: "prediction" or "reference", for the sentences.
        volume: (X, Y, Z), HU, finite.
        inside: (X, Y, Z) bool, the voxels that are graded; not empty.
    """
    low, high = float(volume.min()), float(volume.max())
    if low >= 0 and high <= 255:
        what = "a fraction" if high <= 1 else "an 8-bit picture"
        return [f"{kind}: all values lie in [{low:g}, {high:g}]: {what}, not HU; its scores mean nothing"]
    if low >= -1 and high <= 1:
        return [f"{kind}: all values lie in [{low:g}, {high:g}]: a network's output, not HU; its scores mean nothing"]
    doubts = []
    if low >= AIR_BELOW_HU:
        doubts.append(
            f"{kind}: no value is below {AIR_BELOW_HU:g} HU (the lowest is {low:g}); "
            "a CT stored without its intercept, or not in HU?"
        )
    elif (offset := _lost_offset(volume[inside])) > 0:
        doubts.append(
            f"{kind}: the middle of the mask's values lies near {offset:g} HU, where soft tissue lies at 0; "
            "a CT stored without its intercept of -1024?"
        )
    elif offset < 0 and low < _NO_AIR_BELOW:
        doubts.append(
            f"{kind}: the middle of the mask's values lies near {offset:g} HU, where soft tissue lies at 0; "
            "an intercept of -1024 applied twice?"
        )
    if (metal := float(np.mean(volume >= _METAL_HU))) > _METAL_SHARE:
        doubts.append(
            f"{kind}: {100 * metal:.2g} % of the voxels are at {_METAL_HU:g} HU or above, far more than metal fills; "
            "padding stored as a high value?"
        )
    values = _distinct(volume)
    if _FEW_VALUES <= values.size <= _MANY_VALUES and high - low > _COARSE_RANGE:
        step = float(np.diff(values).min())
        if step > _COARSE_STEP:
            doubts.append(
                f"{kind}: only {values.size} different values, {step:.3g} HU or more apart; HU kept in 8 bits?"
            )
    return doubts


def difference_doubts(reference: Volume, synthetic: Volume, inside: Inside) -> list[str]:
    """Whether one of the two volumes lies a whole intercept above the other."""
    median = float(np.median(synthetic[inside].astype(np.float64) - reference[inside].astype(np.float64)))
    for offset in (1024.0, 1000.0):
        if abs(abs(median) - offset) < _OFFSET_TOLERANCE:
            above, below = ("prediction", "reference") if median > 0 else ("reference", "prediction")
            return [
                f"the {above} lies {abs(median):.0f} HU above the {below} (median in the mask); "
                f"is one of them without its intercept of {-offset:g}?"
            ]
    return []


def _lost_offset(values: np.ndarray) -> float:
    """1024 or -1024 if the middle fifth of the values lies there, as soft tissue lies at 0 HU; else 0."""
    middle = np.quantile(values, _MIDDLE)
    return next((offset for offset in (1024.0, -1024.0) if (np.abs(middle - offset) <= _SOFT_HU).all()), 0.0)


def _distinct(volume: Volume) -> np.ndarray:
    """The sorted distinct values; an empty array as soon as there are too many."""
    found = np.empty(0, volume.dtype)
    for plane in volume:
        found = np.union1d(found, plane)
        if found.size > _MANY_VALUES:
            return np.empty(0, volume.dtype)
    return found
