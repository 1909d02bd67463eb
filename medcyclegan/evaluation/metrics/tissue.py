"""Errors per tissue: air, soft tissue and bone, by thresholds on the HU of the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medcyclegan.errors import InputError
from medcyclegan.evaluation.metrics.score import Mask, Score, Volume, inside_of, undefined, why_undefined


@dataclass(frozen=True)
class Tissues:
    """Two thresholds in HU that separate air, soft tissue and bone; a voxel at a threshold is soft tissue.

    Raises:
        InputError: the thresholds are not finite or not in order.
    """

    air_below: float = -200.0
    bone_above: float = 200.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.air_below) and np.isfinite(self.bone_above) and self.air_below < self.bone_above):
            raise InputError(
                f"Tissue thresholds {self.air_below:g} and {self.bone_above:g} HU: two finite numbers are needed, "
                "the lower first."
            )

    @property
    def ranges(self) -> dict[str, tuple[float | None, float | None]]:
        """Tissue to (lower, upper) limit in HU; None where it is open."""
        return {
            "air": (None, self.air_below),
            "soft": (self.air_below, self.bone_above),
            "bone": (self.bone_above, None),
        }


TISSUE_METRICS = tuple(f"{measure}_{name}" for name in Tissues().ranges for measure in ("mae", "me", "share"))


def tissue_scores(reference: Volume, synthetic: Volume, mask: Mask | None, tissues: Tissues) -> dict[str, Score]:
    """MAE and ME in HU of each tissue, and the share of the mask's voxels that it has in the reference.

    Args:
        reference: (X, Y, Z), HU; its values decide which tissue a voxel is.
        synthetic: (X, Y, Z), HU.
        mask: (X, Y, Z), voxels above 0 count; None for all.
        tissues: thresholds.

    Returns:
        `mae_air`, `me_air`, `share_air` and so on, shares in [0, 1]; nan with the reason for a
        tissue that is absent from the mask, an empty mask, or values that are not finite.

    Raises:
        ValueError: the shapes differ or are not three-dimensional.
    """
    inside = inside_of(mask, reference.shape)
    reason = why_undefined(reference, synthetic, inside)
    if reason:
        return dict.fromkeys(TISSUE_METRICS, undefined(reason))
    hu = reference[inside]
    error = synthetic[inside].astype(np.float64) - hu.astype(np.float64)
    air, bone = hu < tissues.air_below, hu > tissues.bone_above
    found = {}
    for name, members in (("air", air), ("soft", ~(air | bone)), ("bone", bone)):
        errors = error[members]
        if errors.size:
            found[f"mae_{name}"] = Score(float(np.abs(errors).mean()))
            found[f"me_{name}"] = Score(float(errors.mean()))
        else:
            absent = undefined(f"the reference has no {name} in the mask")
            found[f"mae_{name}"] = found[f"me_{name}"] = absent
        found[f"share_{name}"] = Score(errors.size / hu.size)
    return found
