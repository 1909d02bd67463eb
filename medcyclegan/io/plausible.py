"""Limits of geometry and Hounsfield units beyond which a header or a value must be wrong.

One rule for every format. The limits are wide: they separate scanners and micro-CT from lengths in another
unit, padding and damage; values within them may still be doubtful: see `qc.rules` and `evaluation.doubts`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medcyclegan.errors import InputError

# Distance between voxel centers: micro-CT reaches a micrometer; 100 mm steps leave nothing of a body to see.
SMALLEST_SPACING_MM, LARGEST_SPACING_MM = 1e-3, 100.0
# The longest side: less than 0.1 mm holds no tissue sample; a whole-body scan is about 2 m.
SHORTEST_SIDE_MM, LONGEST_SIDE_MM = 0.1, 1e4
# Scanner coordinates stay within meters; beyond 100 m a 32-bit header cannot place a voxel to 0.01 mm any more.
FARTHEST_MM = 1e5
# Gold attenuates 60 keV 430 times as strongly as water (430,000 HU); padding may be anything that 16 bits and an
# intercept give. What a file holds beyond these limits was never a CT.
MATTER_HU = (-1e5, 1e6)
# The range of a usable CT: signed 16 bits. Steel reads about 30,000 HU; 64,511 is 65535, padding or a
# value below 0 that was stored without sign, with an intercept of -1024.
CT_HU = (-32768.0, 32767.0)


def refuse_impossible_geometry(shape: Sequence[int], affine: npt.NDArray[np.float64], name: str) -> None:
    """Refuse a grid on which no scan lies.

    Args:
        shape: voxels along the axes; the first three count.
        affine: 4 x 4, finite, voxel index to world (mm).
        name: of the volume, for the message.

    Raises:
        InputError: a spacing, the longest side or the place is beyond the limits above. A spacing of 0 is left to the
            check of whether the affine can be inverted.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        axes = affine[:3, :3]
        largest = np.abs(axes).max(axis=0)
        # Scaled before squaring: 1e-200 mm squared is 0, and 1e200 mm squared is infinite.
        spacing = largest * np.linalg.norm(axes / np.where(largest > 0, largest, 1), axis=0)
        sides = spacing * np.array(shape[:3], dtype=np.float64)
        farthest = float(np.abs(affine[:3, 3]).max())
    shown = " x ".join(f"{s:.4g}" for s in spacing)
    small = (spacing > 0) & (spacing < SMALLEST_SPACING_MM)
    if small.any() or spacing.max() > LARGEST_SPACING_MM:
        raise InputError(
            f"{name}: voxels of {shown} mm; {SMALLEST_SPACING_MM:g} to {LARGEST_SPACING_MM:g} mm can be. The header is "
            "damaged, or its lengths are in another unit.",
            "Correct the voxel size in the header.",
        )
    if spacing.min() > 0 and not SHORTEST_SIDE_MM <= sides.max() <= LONGEST_SIDE_MM:
        raise InputError(
            f"{name}: the longest side is {sides.max():.4g} mm (voxels of {shown} mm); {SHORTEST_SIDE_MM:g} to "
            f"{LONGEST_SIDE_MM:g} mm can be. The header is damaged, or its lengths are in another unit.",
            "Correct the voxel size in the header.",
        )
    if farthest > FARTHEST_MM:
        raise InputError(
            f"{name}: the first voxel lies {farthest / 1000:.4g} m from the origin of the scanner's coordinates; up to "
            f"{FARTHEST_MM / 1000:g} m can be. The header is damaged, or its lengths are in another unit.",
            "Correct the position in the header.",
        )


def impossible_hu(low: float, high: float, limits: tuple[float, float] = CT_HU) -> str:
    """Why values from `low` to `high` are no Hounsfield units of a CT, or an empty string."""
    if low >= limits[0] and high <= limits[1]:
        return ""
    return (
        f"values from {low:g} to {high:g}; Hounsfield units of a CT lie within {limits[0]:g} and {limits[1]:g} "
        "(padding that the header does not name, a lost slope, intercept or sign, or damage?)"
    )


def refuse_impossible_hu(low: float, high: float, name: str, limits: tuple[float, float] = CT_HU) -> None:
    """Refuse a CT for its lowest and highest value; `name` is for the message.

    Raises:
        InputError: a value lies outside `limits`.
    """
    if why := impossible_hu(low, high, limits):
        raise InputError(f"{name}: {why}.", "Give the CT in HU, with air (-1024) where nothing was measured.")
