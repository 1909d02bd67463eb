"""Display of a volume: three planes in radiological order, windows, and the position of a slice.

Volumes come with their grid and are brought to RAS order (no resampling, only axes), so that anterior is up in axial
slices and superior is up in coronal and sagittal ones, whatever the order of the file's axes. Radiological order: the
patient's right is at the left of the screen, and in sagittal slices anterior is at the left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medcyclegan.evaluation.metrics.score import Volume
from medcyclegan.io.grid import Grid

Inside = npt.NDArray[np.bool_]

# Wide enough for bone, narrow enough to tell soft tissue from fat.
CT_WINDOW = (-400.0, 1200.0)
# Signed errors saturate here (HU); fixed, so that two reports can be compared by eye.
ERROR_LIMIT = 500.0
GRAY, SIGNED = "gray", "RdBu_r"
NOT_A_NUMBER = "#ff00ff"
GROUND = "#0d0f12"  # behind and between the pictures


@dataclass(frozen=True)
class Plane:
    """One of the three planes.

    Attributes:
        name: "Axial", "Coronal" or "Sagittal".
        cut: the RAS axis that the plane cuts; also the letter of the coordinate that its slices differ in.
        across: the RAS axis that runs horizontally.
        up: the RAS axis that runs vertically.
        letters: the patient's side at the left, right, top and bottom edge.
    """

    name: str
    cut: int
    across: int
    up: int
    letters: tuple[str, str, str, str]

    @property
    def coordinate(self) -> str:
        return "xyz"[self.cut]


PLANES = (
    Plane("Axial", 2, 0, 1, ("R", "L", "A", "P")),
    Plane("Coronal", 1, 0, 2, ("R", "L", "S", "I")),
    Plane("Sagittal", 0, 1, 2, ("A", "P", "S", "I")),
)


class RasOrder:
    """The flips and permutations that bring arrays of one grid to RAS order.

    Args:
        grid: of the arrays; may be oblique, then the axes nearest the patient's are taken.

    Attributes:
        shape: voxels along x, y, z after `apply`.
        spacing: mm along x, y, z.
        affine: (4, 4) from voxel indices after `apply` to RAS+ mm.
    """

    def __init__(self, grid: Grid) -> None:
        self._orientation = nib.orientations.io_orientation(grid.affine)  # row n: RAS axis of file axis n, direction
        self._file_axes = np.argsort(self._orientation[:, 0])
        self._file_shape = grid.shape
        x, y, z = self._file_axes
        self.shape = (grid.shape[x], grid.shape[y], grid.shape[z])
        self.spacing = (float(grid.spacing[x]), float(grid.spacing[y]), float(grid.spacing[z]))
        self.affine: npt.NDArray[np.float64] = grid.affine @ nib.orientations.inv_ornt_aff(
            self._orientation, grid.shape
        )

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(X, Y, Z) in the file's order to RAS order; a view where possible."""
        return np.asarray(nib.orientations.apply_orientation(np.asarray(array), self._orientation))

    def file_index(self, axis: int, index: int) -> tuple[str, int]:
        """The file's axis ("i", "j" or "k") that RAS axis `axis` is, and the slice number along it."""
        old = self._file_axes[axis]
        return "ijk"[old], index if self._orientation[old, 1] > 0 else self._file_shape[old] - 1 - index

    @property
    def tilt_degrees(self) -> float:
        """Largest angle between an axis of the volume and the patient's axis it is shown as."""
        cosines = np.abs(np.diag(self.affine)[:3]) / self.spacing
        return math.degrees(math.acos(float(np.clip(cosines, 0, 1).min())))


def on_screen(volume: npt.NDArray[Any], plane: Plane, index: int) -> npt.NDArray[Any]:
    """A slice of a volume in RAS order as (rows downward, columns rightward) on the screen."""
    # x grows toward the patient's right, which radiological display puts at the left; y grows toward anterior, which
    # the same turn puts at the left of a sagittal slice. Rows run downward, the axes upward.
    return np.take(volume, index, axis=plane.cut).T[::-1, ::-1]


def bounding_box(inside: Inside) -> tuple[tuple[int, int], ...]:
    """(first, last) index along each axis that holds a true voxel; there must be one."""
    spans = [np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return tuple((int(span[0]), int(span[-1])) for span in spans)


def percentile_range(volume: Volume, inside: Inside, low: float = 1.0, high: float = 99.5) -> tuple[float, float]:
    """Percentiles of the finite values in the mask, for volumes without a unit; never an empty range."""
    values = volume[inside] if inside.any() else np.ravel(volume)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    bottom, top = (float(value) for value in np.percentile(values, (low, high)))
    return bottom, top if top > bottom else bottom + 1


def window_words(window: tuple[float, float]) -> str:
    low, high = window
    return f"level {(low + high) / 2:g} HU, width {high - low:g} HU"
