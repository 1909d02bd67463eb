"""Errors of water-equivalent path length, in millimeters: the effect of HU errors on a beam.

It is no dose calculation and needs no treatment-planning system. It says how far from its planned range a proton would
stop (relative stopping power), and how much more water-equivalent matter a photon beam would cross (relative electron
density).

Words used here. *Path*: the straight line from the body's surface to a target voxel, against the direction of a
parallel beam. *Water-equivalent path length* (WEPL): the integral of the relative stopping power along the path, so the
length of water that slows a proton as much. *Radiological path length*: the same of the relative electron density.
*Gantry angle*: IEC 61217 for a patient on the back, head first: at 0 degrees the beam comes from the front, at 90 from
the patient's left. Volumes are constant within a voxel and nothing outside the body counts, so an integral is a sum of
exact lengths within voxels (Siddon 1985, Medical Physics 12(2); walked as Amanatides and Woo 1987, Eurographics).
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medcyclegan.documents import parse_json, read_json
from medcyclegan.errors import InputError
from medcyclegan.evaluation.metrics.score import Inside, Score, Volume, undefined
from medcyclegan.io.grid import Grid

Floats = npt.NDArray[np.float64]

QUANTITIES = {"relative_stopping_power": "wepl", "relative_electron_density": "radiological"}
ANGLES = tuple(float(angle) for angle in range(0, 360, 10))
RANGE_METRICS = tuple(f"{name}_{measure}_mm" for name in QUANTITIES.values() for measure in ("mean", "p95"))
# Rays walked together: their state of about 20 numbers stays in the processor's cache.
_TOGETHER = 1 << 15


@dataclass(frozen=True)
class Curve:
    """A piecewise-linear calibration from HU, constant beyond its ends.

    Attributes:
        hu: ascending.
        value: relative to water, at least 0; the same length.
        source: where it is published.
    """

    hu: tuple[float, ...]
    value: tuple[float, ...]
    source: str

    def __call__(self, hu: Volume) -> Floats:
        """The quantity at every voxel, float64."""
        return np.interp(hu, self.hu, self.value)


def load_calibration(path: str | os.PathLike[str] | None = None) -> dict[str, Curve]:
    """Curves from HU to the quantities `relative_stopping_power` and `relative_electron_density`.

    Args:
        path: a JSON file: an object with one or both of the quantities, each an object with `hu` (at least two numbers,
            ascending), `value` (as many, at least 0) and `source` (text). None takes the table in the package.

    Raises:
        InputError: the file is missing, no JSON, or not of this form; every problem is named.
    """
    if path is None:
        name = "the package's calibration"
        content = parse_json(files("medcyclegan.evaluation").joinpath("calibration.json").read_text(), name)
    else:
        name = str(path)
        content = read_json(Path(path), f"calibration {path}")
    form = (
        "It is an object with one or both of "
        + " and ".join(QUANTITIES)
        + ", each with the lists 'hu' (ascending) and "
        "'value' (at least 0) of one length and the text 'source'."
    )
    if not isinstance(content, dict) or not content or not set(content) <= set(QUANTITIES):
        raise InputError(f"The calibration {name} does not hold what it should.", form)
    curves = {}
    for quantity, curve in content.items():
        try:
            hu = tuple(float(value) for value in curve["hu"])
            values = tuple(float(value) for value in curve["value"])
            source = str(curve["source"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"The calibration {name}: {quantity} cannot be read ({error!r}).", form) from error
        ascending = all(a < b for a, b in itertools.pairwise(hu))
        possible = all(math.isfinite(v) and v >= 0 for v in values) and all(map(math.isfinite, hu))
        if len(hu) < 2 or len(hu) != len(values) or not ascending or not possible:
            raise InputError(f"The calibration {name}: {quantity} is no curve.", form)
        curves[quantity] = Curve(hu, values, source)
    return curves


def toward_source(angle: float) -> Floats:
    """Unit vector in RAS+ from the patient toward the source at a gantry angle in degrees, (3,).

    Exactly along an axis at multiples of 90 degrees.
    """
    turned = math.radians(angle)
    sine, cosine = (round(value, 15) for value in (math.sin(turned), math.cos(turned)))
    return np.array([-sine, cosine, 0.0])


def path_lengths(quantities: Floats, grid: Grid, targets: npt.NDArray[np.int64], direction: Floats) -> Floats:
    """Integrals of voxel-wise constant quantities from the center of each target voxel to the edge of the volume.

    Args:
        quantities: (Q, X, Y, Z), relative to water; 0 outside the body.
        grid: of the volumes.
        targets: (N, 3) voxel indices.
        direction: (3,) unit vector in RAS+ mm along which to walk.

    Returns:
        (Q, N), mm.

    Raises:
        ValueError: the shapes do not fit, or a target lies outside the volume.
    """
    if quantities.ndim != 4 or quantities.shape[1:] != grid.shape or targets.ndim != 2 or targets.shape[1] != 3:
        raise ValueError(
            f"(Q, X, Y, Z) on the grid and (N, 3) are needed, got {quantities.shape}, {grid.shape}, {targets.shape}"
        )
    if (targets < 0).any() or (targets >= np.array(grid.shape)).any():
        raise ValueError("a target lies outside the volume")
    step = np.asarray(np.linalg.inv(grid.affine[:3, :3]) @ direction, dtype=np.float64)  # voxels per mm
    flat = np.ascontiguousarray(quantities.reshape(len(quantities), -1).T)  # one voxel's quantities side by side
    found = [
        _walk(flat, grid.shape, targets[start : start + _TOGETHER], step) for start in range(0, len(targets), _TOGETHER)
    ]
    return np.concatenate(found).T if found else np.zeros((len(quantities), 0))


def _walk(flat: Floats, shape: tuple[int, int, int], targets: npt.NDArray[np.int64], step: Floats) -> Floats:
    """Sums (N, Q) of length times quantity, one voxel of every ray at a time."""
    moving = np.flatnonzero(np.abs(step) > 1e-12)
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    sign = np.sign(step).astype(np.int64)
    per_voxel = np.full(3, math.inf)
    per_voxel[moving] = 1 / np.abs(step[moving])  # mm from one face to the next along each axis
    totals = np.zeros((len(targets), flat.shape[1]))
    ray = np.arange(len(targets))
    place = targets @ strides
    # Voxels left along each axis before the ray leaves the volume, and mm until the next face: half a voxel first.
    left = np.where(sign > 0, np.array(shape) - 1 - targets, targets)
    to_face = np.broadcast_to(per_voxel / 2, targets.shape).copy()
    gone = np.zeros(len(targets))
    while ray.size:
        axis = to_face.argmin(axis=1)
        rows = np.arange(ray.size)
        reached = to_face[rows, axis]
        totals[ray] += flat[place] * (reached - gone)[:, None]
        gone = reached
        stays = left[rows, axis] > 0
        if not stays.all():
            ray, place, left, to_face, gone = ray[stays], place[stays], left[stays], to_face[stays], gone[stays]
            axis, rows = axis[stays], np.arange(ray.size)
        place = place + (sign * strides)[axis]
        left[rows, axis] -= 1
        to_face[rows, axis] += per_voxel[axis]
    return totals


@dataclass(frozen=True)
class RangeError:
    """Errors of path length to the voxels of a target.

    Attributes:
        scores: `wepl_mean_mm`, `wepl_p95_mm`, `radiological_mean_mm`, `radiological_p95_mm` as far as calibrated: mean
            and 95th percentile of |synthetic - reference| over all angles and voxels.
        per_angle: for each prefix above and gantry angle in degrees, (mean of |difference|, its 95th percentile, mean
            of the signed difference), mm.
        map: for each prefix, the mean over the angles of |difference| at each target voxel, (N,) mm.
        targets: (N, 3) voxel indices.
    """

    scores: Mapping[str, Score]
    per_angle: Mapping[str, Mapping[float, tuple[float, float, float]]]
    map: Mapping[str, Floats]
    targets: npt.NDArray[np.int64]


def range_error(
    reference: Volume,
    synthetic: Volume,
    body: Inside,
    grid: Grid,
    *,
    target: Inside | None = None,
    angles: Sequence[float] = ANGLES,
    calibration: Mapping[str, Curve] | None = None,
) -> RangeError:
    """Errors of the path length from the body's surface to each voxel of a target, or to the body's center.

    Args:
        reference: (X, Y, Z), HU.
        synthetic: (X, Y, Z), HU.
        body: (X, Y, Z), what lies outside counts nothing in either volume.
        grid: of the volumes.
        target: (X, Y, Z); None takes the voxel of the body that is nearest to its center of mass.
        angles: gantry angles, degrees.
        calibration: from `load_calibration`; None takes the package's.

    Returns:
        The errors; nan with the reason for an empty body or target, or values that are not finite.

    Raises:
        ValueError: the shapes differ, or there is no angle.
    """
    if not reference.shape == synthetic.shape == body.shape == grid.shape:
        raise ValueError(f"arrays of one shape are needed, got {reference.shape}, {synthetic.shape}, {body.shape}")
    if not len(angles):
        raise ValueError("at least one angle is needed")
    curves = load_calibration() if calibration is None else calibration
    prefixes = [QUANTITIES[quantity] for quantity in curves]
    reason = _why_not(reference, synthetic, body, target)
    if reason:
        scores = {f"{prefix}_{name}_mm": undefined(reason) for prefix in prefixes for name in ("mean", "p95")}
        return RangeError(scores, {}, {}, np.zeros((0, 3), dtype=np.int64))
    targets = _center(body, grid)[None] if target is None else np.argwhere(target)
    quantities = np.zeros((2 * len(curves), *grid.shape))
    for index, curve in enumerate(curves.values()):
        for offset, volume in enumerate((reference, synthetic)):
            quantities[2 * index + offset][body] = curve(volume[body])
    difference = np.empty((len(curves), len(angles), len(targets)))
    for index, angle in enumerate(angles):
        lengths = path_lengths(quantities, grid, targets, toward_source(angle))
        difference[:, index] = lengths[1::2] - lengths[::2]
    scores, per_angle, maps = {}, {}, {}
    for prefix, signed in zip(prefixes, difference, strict=True):
        size = np.abs(signed)
        scores[f"{prefix}_mean_mm"] = Score(float(size.mean()))
        scores[f"{prefix}_p95_mm"] = Score(float(np.percentile(size, 95)))
        per_angle[prefix] = {
            float(angle): (float(size[i].mean()), float(np.percentile(size[i], 95)), float(signed[i].mean()))
            for i, angle in enumerate(angles)
        }
        maps[prefix] = size.mean(axis=0)
    return RangeError(scores, per_angle, maps, targets)


def _why_not(reference: Volume, synthetic: Volume, body: Inside, target: Inside | None) -> str | None:
    if not body.any():
        return "the mask is empty"
    if target is not None and not target.any():
        return "the target is empty"
    for name, volume in (("reference", reference), ("synthetic CT", synthetic)):
        if not np.isfinite(volume[body]).all():
            return f"the {name} is not a finite number everywhere in the mask"
    return None


def _center(body: Inside, grid: Grid) -> npt.NDArray[np.int64]:
    """The voxel of the body nearest (in mm) to its center of mass, which may itself lie outside."""
    voxels = np.argwhere(body)
    offsets = (voxels - voxels.mean(axis=0)) @ grid.affine[:3, :3].T
    return np.asarray(voxels[(offsets**2).sum(axis=1).argmin()])
