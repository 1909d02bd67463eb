"""The quality record of one conversion: is this volume like those trained on, and which parts of the result to check.

Words used here. *Features*: what is compared of a volume, plain numbers. *Cohort*: the features of the training
volumes, as a checkpoint stores them. *Flag*: one sentence that says what is unlike the cohort.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from medcyclegan.inference.seams import slice_means
from medcyclegan.io.grid import Grid
from medcyclegan.transforms.intensity import Scaler

BINS = 32
# Depths below the skin, mm, at which a head is looked at for its skull.
_DEPTHS_MM = np.arange(0.0, 33.0, 3.0)
# A feature may lie outside the cohort's range by this factor.
_TOLERANCE = 1.5
# Earth mover's distance of histograms over [-1, 1] below which nothing is unusual.
_SAME_HISTOGRAM = 0.12
# A contrast is mistaken for another where its histogram is less than half as far from that one's.
_MISTAKEN = 0.5
_LIKE_ITSELF = 0.05
# A further contrast shows all of the body from here on.
_WHOLE = 0.995
# Heads have a dip of 0.23 or more, brains of 0.09 or less (six real and three phantom heads, with and without skull;
# one head of 6.5 mm slices has none, which is why a brain's volume must be small too).
_SKULL = 0.15
_BRAIN_OF_HEAD = 0.8
SPREAD_THRESHOLD_HU = 100.0
# A slice differs from its neighbors by more than this, and by so many times the usual.
_JUMP_HU = 15.0
_JUMP_TIMES = 6.0


class Prepared(Protocol):
    """What features are taken from: a prepared case, in memory or on disk."""

    @property
    def image(self) -> npt.ArrayLike: ...
    @property
    def body(self) -> npt.NDArray[np.bool_]: ...
    @property
    def grid(self) -> Grid: ...
    @property
    def source_grid(self) -> Grid: ...
    @property
    def scaler(self) -> Scaler: ...


class Further(Protocol):
    """What is known of a contrast after the first."""

    @property
    def covered(self) -> float: ...
    @property
    def apart_mm(self) -> float: ...


def features(case: Prepared) -> dict[str, Any]:
    """Plain numbers that say what a volume is like.

    Returns:
        spacing_mm and field_of_view_mm of the source along right, anterior, superior; body_liters; histogram, shares of
        the body in `BINS` equal bins of the scaled intensities; skull, how much darker the layer under the scalp is
        than what lies above and below it, in [-1, 1] units of the scaled intensities (positive: there is a skull). Of
        several contrasts these are the first one's, and `further` has the histograms of the others, in order.
    """
    images, body = np.asarray(case.image), np.asarray(case.body)
    image, *others = images if images.ndim == 4 else [images]
    order = np.argsort(nib.orientations.io_orientation(case.source_grid.affine)[:, 0])
    spacing = case.source_grid.spacing[order]
    extent = spacing * np.array(case.source_grid.shape)[order]
    volume = abs(float(np.linalg.det(case.grid.affine[:3, :3]))) * int(body.sum()) / 1e6
    return {
        "spacing_mm": [round(float(s), 4) for s in spacing],
        "field_of_view_mm": [round(float(e), 2) for e in extent],
        "body_liters": round(volume, 4),
        "histogram": _histogram(image, body),
        "skull": round(_skull(-image if case.scaler.inverted else image, body, case.grid.spacing), 4),
        **({"further": [{"histogram": _histogram(other, body)} for other in others]} if others else {}),
    }


def _histogram(image: npt.NDArray[np.float32], body: npt.NDArray[np.bool_]) -> list[float]:
    inside = image[body]
    shares = np.histogram(inside, bins=BINS, range=(-1, 1))[0] / max(1, inside.size)
    return [round(float(share), 5) for share in shares]


def flags(
    found: Mapping[str, Any], cohort: Sequence[Mapping[str, Any]], modality: str, names: Sequence[str] = ()
) -> list[str]:
    """What of a volume is unlike the training cohort, one sentence each; empty where nothing is.

    Args:
        found: `features` of the volume.
        cohort: `features` of the training volumes, at least one.
        modality: of the volume, "MR" or "CT".
        names: of the contrasts, where there are several: which of them were exchanged is told too.
    """
    told = []
    for key, name, unit in (("spacing_mm", "spacing", "mm"), ("field_of_view_mm", "field of view", "mm")):
        ranges = np.array([case[key] for case in cohort])
        low, high = ranges.min(axis=0), ranges.max(axis=0)
        for axis, value, a, b in zip(("left-right", "front-back", "head-foot"), found[key], low, high, strict=True):
            if not a / _TOLERANCE <= value <= b * _TOLERANCE:
                told.append(f"{name} {axis} is {value:.3g} {unit}, in training {a:.3g} to {b:.3g}")
    sizes = [case["body_liters"] for case in cohort]
    if not min(sizes) / _TOLERANCE <= found["body_liters"] <= max(sizes) * _TOLERANCE:
        told.append(f"the body has {found['body_liters']:.2g} liters, in training {min(sizes):.2g} to {max(sizes):.2g}")
    given = [found["histogram"], *(contrast["histogram"] for contrast in found.get("further", ()))]
    if len(given) > 1:
        names = names or [f"contrast {number + 1}" for number in range(len(given))]
    known = [
        np.array([case["histogram"] if not number else case["further"][number - 1]["histogram"] for case in cohort])
        for number in range(len(given))
    ]
    told += _exchanged(given, known, names) if len(given) > 1 else []
    for number, (histogram, histograms) in enumerate(zip(given, known, strict=True)):
        usual = max((_distance(h, np.delete(histograms, i, 0)) for i, h in enumerate(histograms)), default=0.0)
        distance = _distance(np.array(histogram), histograms)
        if distance > max(_SAME_HISTOGRAM, 1.5 * usual):
            of = f" of {names[number]}" if names else ""
            told.append(
                f"the intensities{of} are distributed unlike those in training (distance {distance:.2f}, there up to "
                f"{usual:.2f}): another sequence or modality?"
            )
    if modality == "MR":
        skulls = [case["skull"] for case in cohort]
        if found["skull"] < _SKULL <= min(skulls) and found["body_liters"] < _BRAIN_OF_HEAD * min(sizes):
            told.append("no dark skull under a scalp was found, in training there was: skull-stripped?")
        if found["skull"] >= _SKULL > max(skulls) and _BRAIN_OF_HEAD * found["body_liters"] > max(sizes):
            told.append("a dark skull under a scalp was found, in training there was none: those were skull-stripped?")
    return told


def coverage_flags(further: Sequence[Further], names: Sequence[str], apart_limit: float) -> list[str]:
    """Contrasts after the first that miss part of the body or lie elsewhere, one sentence each.

    Args:
        further: what preparation found out.
        names: of all contrasts.
        apart_limit: mm beyond which two contrasts do not show the body at one place.
    """
    told = []
    for name, contrast in zip(names[1:], further, strict=True):
        if contrast.covered < _WHOLE:
            told.append(
                f"{name} covers {100 * contrast.covered:.0f} % of the body; the rest of it is background to the network"
            )
        if contrast.apart_mm > apart_limit:  # not where it could not be told, nan
            told.append(
                f"{name} and {names[0]} seem to lie {contrast.apart_mm:.1f} mm apart (a rigid registration's "
                "estimate): did the patient move?"
            )
    return told


def _exchanged(
    given: Sequence[Sequence[float]], known: Sequence[npt.NDArray[np.float64]], names: Sequence[str]
) -> list[str]:
    """Whether contrasts look like other ones of the training than those that they were given as."""
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


def _skull(image: npt.NDArray[np.float32], body: npt.NDArray[np.bool_], spacing: npt.NDArray[np.float64]) -> float:
    """Mean brightness by depth: how deep the darkest layer of the outer centimeters dips below both its sides."""
    # Upper half of the body only: a neck has no skull.
    height = np.flatnonzero(body.any(axis=(0, 1)))
    if not len(height):
        return 0.0
    middle = int(height[0] + 0.5 * (height[-1] - height[0]))
    depth = distance_transform_edt(body, sampling=spacing)[:, :, middle:]
    values, inside = image[:, :, middle:], body[:, :, middle:]
    layer = np.digitize(depth[inside], _DEPTHS_MM)
    count = np.bincount(layer, minlength=len(_DEPTHS_MM) + 1)[1:]
    sums = np.bincount(layer, weights=values[inside], minlength=len(_DEPTHS_MM) + 1)[1:]
    profile = sums[count > 0] / count[count > 0]
    if len(profile) < 4:
        return 0.0
    dips = [min(profile[:i].max(), profile[i + 1 :].max()) - profile[i] for i in range(1, len(profile) - 1)]
    return float(max(dips))
