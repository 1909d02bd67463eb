"""Baselines that need no network: the best constant HU, and the best table from MR intensity to HU.

Both are fitted to each case with its reference known, which a model never has, so they are hard to beat:

- *Best constant*: the median of the reference's HU in the mask of the case, which of all single values has the smallest
  MAE there.
- *Best table*: 256 equal bins of the MR's intensity in the mask; each bin gives the median HU of its voxels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medcyclegan.evaluation.metrics.score import Volume

Inside = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
SCORES = ("mae", "mae_bone", "me")  # of the baselines, as `evaluate` defines them
BINS = 256


@dataclass
class Baselines:
    """The scores of both over the cases that were added.

    Attributes:
        bone_above: HU above which the evaluation called a voxel bone; None where it did not say, and then there is no
            MAE in bone.
        constant: score -> its value in every case, HU.
        table: likewise, of the cases that have an MR.
    """

    bone_above: float | None
    constant: dict[str, list[float]] = field(default_factory=dict)
    table: dict[str, list[float]] = field(default_factory=dict)

    def add(self, reference: Volume, inside: Inside, mr: Volume | None) -> None:
        """Score both on one case.

        Args:
            reference: (X, Y, Z), HU.
            inside: (X, Y, Z), the mask; an empty one adds nothing.
            mr: (X, Y, Z) on the same grid, any unit; None where there is none. A voxel without a finite value is
                given the best constant.
        """
        hu = np.asarray(reference[inside], dtype=np.float64)
        if hu.size == 0 or not np.isfinite(hu).all():
            return
        constant = np.full(hu.shape, np.median(hu))
        self._grade(self.constant, constant, hu)
        if mr is None:
            return
        values = np.asarray(mr[inside], dtype=np.float64)
        known = np.isfinite(values)
        if known.any():
            guess = constant.copy()
            guess[known] = best_lookup(values[known], hu[known])
            self._grade(self.table, guess, hu)

    def _grade(self, into: dict[str, list[float]], guess: Floats, hu: Floats) -> None:
        error = guess - hu
        into.setdefault("mae", []).append(float(np.abs(error).mean()))
        into.setdefault("me", []).append(float(error.mean()))
        if self.bone_above is not None and (bone := hu > self.bone_above).any():
            into.setdefault("mae_bone", []).append(float(np.abs(error[bone]).mean()))

    @property
    def cases(self) -> int:
        return len(self.constant.get("mae", ()))


def mean_of(scores: Mapping[str, list[float]], name: str) -> float | None:
    """Mean over the cases; None where there is none."""
    values = scores.get(name)
    return math.fsum(values) / len(values) if values else None


def best_lookup(
    intensity: npt.NDArray[np.floating], hu: npt.NDArray[np.floating], bins: int = BINS
) -> npt.NDArray[np.float64]:
    """HU that the best table from intensity to HU gives: per bin the median, which minimizes the absolute error.

    Args:
        intensity: (N,) MR values inside the body.
        hu: (N,) the true HU of the same voxels.
        bins: of equal width over the intensity's range.
    """
    edges = np.linspace(intensity.min(), intensity.max(), bins + 1)
    index = np.digitize(intensity, edges[1:-1])
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(bins + 1))
    table = np.zeros(bins)
    for i in np.flatnonzero(np.diff(starts)):
        table[i] = np.median(hu[order[starts[i] : starts[i + 1]]])
    return table[index]
