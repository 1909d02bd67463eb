"""How well the channels of a patient overlay: coverage of the body, and motion between the scans.

Words used here. *Covered*: where a channel has voxels. *Apart*: moved between the scans.
"""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import grid_of
from medcyclegan.transforms.geometry import resample, working_grid
from medcyclegan.transforms.registration import align, percentile_window, with_rim

# Share of the body that every channel must show.
LEAST_COVERED = 0.9
WHOLE = 0.995  # from this share on, the body counts as covered whole
# Beyond this (mm) a patient has probably moved between two scans: see `apart_mm`.
APART_MM = 3.0
_ESTIMATE_MM = 4.0

Mask = npt.NDArray[np.bool_]


def moved(mask: Mask, source: Grid, target: Grid) -> Mask:
    """A mask (X, Y, Z) on `source` brought onto `target`, (X', Y', Z'); nearest neighbor, False beyond its ends."""
    return np.asarray(resample(mask, source, target, fill=0, mode="nearest"), dtype=bool)


def covered(body: Mask, grid: Grid, other: Grid) -> float:
    """Share of a body on `grid` that lies in the field of view of `other`."""
    seen = resample(np.ones(other.shape, dtype=np.bool_), other, grid, fill=0, mode="nearest")
    return float(seen[body].mean()) if body.any() else 0.0


def require_covered(share: float, grids: tuple[Grid, Grid], names: tuple[str, str]) -> None:
    """Refuse a channel that shows too little of the body.

    Args:
        share: what `covered` gave.
        grids: of the channel's volume and of the first channel's.
        names: of both, file and channel.
    """
    if share < LEAST_COVERED:
        raise InputError(
            f"{names[0]} covers {100 * share:.1f} % of the body in {names[1]}; at least {100 * LEAST_COVERED:.0f} % "
            f"are needed. It lies {_place(grids[0])}, the other {_place(grids[1])} (RAS, mm).",
            "Is it the same patient in the same visit, and are the headers right? Leave the case out, or train "
            "without this contrast.",
        )


def apart_mm(first: MetaTensor, other: MetaTensor, body: Mask) -> float:
    """How far apart two channels show the body, mm: the rigid registration of one to the other, as a mean distance.

    An estimate on voxels of 4 mm, see `registration`.

    Args:
        first: (1, X, Y, Z).
        other: (1, X', Y', Z').
        body: (X, Y, Z) on the grid of `first`.

    Returns:
        nan where it cannot be estimated.
    """
    source = grid_of(first)
    coarse = working_grid(source, np.maximum(source.spacing[_ras_order(source)], _ESTIMATE_MM).tolist())
    values, others = (
        resample(volume.as_tensor().detach().cpu().numpy()[0], grid_of(volume), coarse, fill=0.0)
        for volume in (first, other)
    )
    inside = moved(body, source, coarse)
    windows = (percentile_window(values, inside), percentile_window(others, inside))
    if any(not high > low for low, high in windows):
        return math.nan
    return align(values, others, with_rim(inside, coarse), coarse, windows=windows).displacement


def _ras_order(grid: Grid) -> npt.NDArray[np.intp]:
    """The voxel axes nearest to right, anterior, superior."""
    return np.argsort(nib.orientations.io_orientation(grid.affine)[:, 0])


def _place(grid: Grid) -> str:
    """Where a field of view is: "from x to y" along right, anterior, superior."""
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * np.array(grid.shape) - 0.5
    world = corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    low, high = world.min(axis=0), world.max(axis=0)
    return " x ".join(f"{a:.0f} to {b:.0f}" for a, b in zip(low, high, strict=True))
