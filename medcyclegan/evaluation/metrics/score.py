"""The result of one metric on one case, and the voxels that a metric looks at.

A metric is a function of (reference, synthetic, mask, limits): the reference and the synthetic CT as (X, Y, Z) arrays
in HU, a mask of the same shape (voxels above 0 count; None means all voxels) and the (low, high) HU limits of the
protocol. Everything is computed in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Volume = npt.NDArray[np.floating] | npt.NDArray[np.integer]
Mask = npt.NDArray[Any]
Inside = npt.NDArray[np.bool_]
Limits = tuple[float, float]


@dataclass(frozen=True)
class Score:
    """A number, and the reason wherever it is no ordinary one.

    Attributes:
        value: the metric; nan where it is undefined.
        reason: why `value` is nan or infinite; None for an ordinary number.

    Raises:
        ValueError: a nan or infinite value without a reason, or a reason beside an ordinary number.
    """

    value: float
    reason: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))
        if math.isfinite(self.value) == bool(self.reason):
            raise ValueError(f"a score has a reason exactly if it is not finite, got {self.value} and {self.reason!r}")


def undefined(reason: str) -> Score:
    """The score of a metric that has no value here."""
    return Score(math.nan, reason)


def inside_of(mask: Mask | None, shape: tuple[int, ...]) -> Inside:
    """The voxels that count, (X, Y, Z) bool: those above 0, or all of them without a mask."""
    return np.ones(shape, dtype=bool) if mask is None else np.asarray(mask) > 0


def why_undefined(reference: Volume, synthetic: Volume, inside: Inside) -> str | None:
    """Why no metric has a value on these arrays; None if they can be compared.

    Raises:
        ValueError: the arrays are not three-dimensional or differ in shape.
    """
    if reference.ndim != 3 or not reference.shape == synthetic.shape == inside.shape:
        raise ValueError(
            "metrics need (X, Y, Z) arrays of one shape, got "
            f"reference {reference.shape}, synthetic {synthetic.shape}, mask {inside.shape}"
        )
    if not inside.any():
        return "the mask is empty"
    for name, volume in (("reference", reference), ("synthetic CT", synthetic)):
        bad = int(np.count_nonzero(~np.isfinite(volume[inside])))
        if bad:
            return f"the {name} is not a finite number in {bad} voxel(s) of the mask"
    return None


def within(volume: Volume, inside: Inside, limits: Limits) -> npt.NDArray[np.float64]:
    """The volume clipped to the limits, with the low limit outside the mask, minus the low limit.

    Returns:
        (X, Y, Z) float64 in [0, high - low], exactly 0 outside the mask whatever the volume holds there.
    """
    low, high = limits
    shifted = np.zeros(volume.shape, dtype=np.float64)
    shifted[inside] = np.clip(volume[inside].astype(np.float64), low, high) - low
    return shifted
