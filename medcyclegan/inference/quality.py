"""The quality record of one conversion: is the volume like the training volumes, and which parts need a check.

Words used here. *Cohort*: the features (`survey.features`) of the training volumes, as a checkpoint stores them.
*Flag*: one sentence that says what is unlike the cohort.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medcyclegan.inference.seams import slice_means
from medcyclegan.io.grid import Grid
from medcyclegan.survey.anatomy import SKULL_DIP
from medcyclegan.survey.features import BINS, Features

_AXES = ("left-right", "front-back", "head-foot")
# A feature may lie outside the cohort's range by this factor.
_TOLERANCE = 1.5
# Earth mover's distance of histograms over [-1, 1] below which nothing is unusual.
_SAME_HISTOGRAM = 0.12
# A channel counts as exchanged if another channel's histogram is less than half as far as its own.
_MISTAKEN = 0.5
_LIKE_ITSELF = 0.05
# In thick slices a head shows no skull either; so a brain must have a small volume too.
_BRAIN_OF_HEAD = 0.8
SPREAD_THRESHOLD_HU = 100.0
# A slice is flagged if it differs from its neighbors by more than this, and by so many times the median.
_JUMP_HU = 15.0
_JUMP_TIMES = 6.0


def flags(found: Features, cohort: Sequence[Features], modality: str, channels: Sequence[str]) -> list[str]:
    """How a volume differs from the training cohort, one sentence each; empty if it does not.

    Args:
        found: features of the volume.
        cohort: those of the training volumes, at least one.
        modality: of the volume, "MR" or "CT".
        channels: their names, to say which of them were exchanged.
    """
    messages = []
    for key, name, unit in (("spacing_mm", "spacing", "mm"), ("field_of_view_mm", "field of view", "mm")):
        ranges = np.array([getattr(case, key) for case in cohort])
        low, high = ranges.min(axis=0), ranges.max(axis=0)
        for axis, value, a, b in zip(_AXES, getattr(found, key), low, high, strict=True):
            if not a / _TOLERANCE <= value <= b * _TOLERANCE:
                messages.append(f"{name} {axis} is {value:.3g} {unit}, in training {a:.3g} to {b:.3g}")
    sizes = [case.body_liters for case in cohort]
    if not min(sizes) / _TOLERANCE <= found.body_liters <= max(sizes) * _TOLERANCE:
        between = f"{min(sizes):.2g} to {max(sizes):.2g}"
        messages.append(f"the body has {found.body_liters:.2g} liters, in training {between}")
    given = found.histograms
    known = [np.array([case.histograms[number] for case in cohort]) for number in range(len(given))]
    messages += _exchanged(given, known, channels)
    for channel, histogram, histograms in zip(channels, given, known, strict=True):
        usual = max((_distance(h, np.delete(histograms, i, 0)) for i, h in enumerate(histograms)), default=0.0)
        distance = _distance(np.array(histogram), histograms)
        if distance > max(_SAME_HISTOGRAM, 1.5 * usual):
            messages.append(
                f"the intensities of {channel} are distributed unlike those in training (distance {distance:.2f}, "
                f"there up to {usual:.2f}): another sequence or modality?"
            )
    if modality == "MR":
        skulls = [case.skull_dip for case in cohort]
        if found.skull_dip < SKULL_DIP <= min(skulls) and found.body_liters < _BRAIN_OF_HEAD * min(sizes):
            messages.append("no dark skull under a scalp was found, in training there was: skull-stripped?")
        if found.skull_dip >= SKULL_DIP > max(skulls) and _BRAIN_OF_HEAD * found.body_liters > max(sizes):
            messages.append(
                "a dark skull under a scalp was found, in training there was none: those were skull-stripped?"
            )
    return messages


def _exchanged(
    given: Sequence[Sequence[float]], known: Sequence[npt.NDArray[np.float64]], names: Sequence[str]
) -> list[str]:
    """Channels that look like another channel of the training, probably exchanged."""
    mistaken = []
    for number, histogram in enumerate(given):
        distances = [_distance(np.array(histogram), histograms) for histograms in known]
        nearest = int(np.argmin(distances))
        if distances[number] > _LIKE_ITSELF and distances[nearest] < _MISTAKEN * distances[number]:
            mistaken.append(
                f"what was given as {names[number]} looks like {names[nearest]} (distance {distances[nearest]:.2f}, to "
                f"{names[number]} {distances[number]:.2f})"
            )
    if not mistaken:
        return []
    return [
        f"{' and '.join(mistaken)}: were the contrasts exchanged? The model takes {', '.join(names)}, in this order"
    ]


def jumping_slices(result: npt.NDArray[Any], grid: Grid, air: float = -300.0) -> list[int]:
    """Slices along the axis nearest head-foot that differ in brightness from both neighbors, by their index.

    Args:
        result: (X, Y, Z) HU on `grid`.
        air: voxels below are left out.
    """
    axis = int(np.argmax(nib.orientations.io_orientation(grid.affine)[:, 0] == 2))
    own, beside = slice_means(result, result > air, axis)
    jumps = np.abs(own - beside)
    known = np.isfinite(jumps)
    if not known.any():
        return []
    limit = max(_JUMP_HU, _JUMP_TIMES * float(np.median(jumps[known])))
    return [int(k) + 1 for k in np.flatnonzero(known & (jumps > limit))]


def share_above(spread_hu: npt.NDArray[np.floating], body: npt.NDArray[np.bool_]) -> float:
    """Share of the body's voxels whose spread is above `SPREAD_THRESHOLD_HU`."""
    return float((spread_hu[body] > SPREAD_THRESHOLD_HU).mean()) if body.any() else 0.0


def _distance(histogram: npt.NDArray[np.float64], cohort: npt.NDArray[np.float64]) -> float:
    """Earth mover's distance to the nearest histogram of the cohort, in [-1, 1] units; 0 where the cohort is empty."""
    if len(cohort) == 0:
        return 0.0
    differences = np.abs(np.cumsum(histogram) - np.cumsum(cohort, axis=1))
    return float(differences.sum(axis=1).min() * 2 / BINS)
