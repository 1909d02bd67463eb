"""The grid of a volume: how many voxels there are and where they lie.

Words used here. *Voxel index*: (i, j, k), the centre of the first voxel is (0, 0, 0). *World*: RAS+ millimetres.
*Affine*: the 4 x 4 matrix that takes a voxel index to world. Nothing is assumed of an affine but that it can be
inverted: it may be flipped, permuted, oblique, anisotropic or sheared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

# DICOM and ITK have LPS: the first two world axes point the other way. The matrix is its own inverse.
LPS_FROM_RAS = RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Tolerances of all readers and writers.
# Cosine between two axes up to which they count as orthogonal: 0.06 degrees, far above the rounding of a header, in
# float32 or in three decimals.
SHEAR_COSINE = 1e-3
# Distance up to which two statements are about the same voxel: float32 headers and three decimals are that coarse.
SAME_MM = 1e-2
# Distance up to which two grids are one: the default of `Grid.matches`.
IDENTICAL_MM = 1e-3
# Distance between two statements about the same voxel above which they contradict each other.
DISAGREEMENT_MM = 1.0
# A unit vector or quaternion of a header may be longer by this, by rounding.
UNIT_LENGTH = 1e-3
# Voxels of the same index in both volumes of a pair lie at most this far apart: mm, and share of the smallest spacing.
SAME_GRID_MM = 0.1
SAME_GRID_VOXELS = 0.1


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and affine of a volume.

    Attributes:
        shape: voxels along the three axes, (X, Y, Z).
        affine: 4 x 4 float64, voxel index to world (RAS+, mm).
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a grid has three axes of at least one voxel, got shape {shape}")
        with np.errstate(over="ignore", invalid="ignore"):
            usable = affine.shape == (4, 4) and np.isfinite(affine).all() and np.linalg.det(affine[:3, :3]) != 0
        if not usable:
            raise ValueError(f"a grid needs a finite, invertible 4 x 4 affine, got\n{affine}")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> npt.NDArray[np.float64]:
        """Distance between voxel centres along each axis, (3,), mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def ras_order(self) -> npt.NDArray[np.intp]:
        """Which of the axes are nearest to right, anterior, superior, (3,)."""
        return np.argsort(nib.orientations.io_orientation(self.affine)[:, 0])

    @property
    def field_of_view(self) -> npt.NDArray[np.float64]:
        """How far it reaches along its axes nearest to right, anterior, superior, (3,), mm."""
        return (np.array(self.shape) * self.spacing)[self.ras_order]

    @property
    def shear(self) -> float:
        """Largest cosine between two axes; 0 where they are orthogonal."""
        unit = self.affine[:3, :3] / self.spacing
        return float(np.abs(unit.T @ unit - np.eye(3)).max())

    def matches(self, other: Grid, tolerance_mm: float = IDENTICAL_MM) -> bool:
        """True if the shapes are equal and no voxel lies more than `tolerance_mm` from its counterpart.

        The eight corners are compared, since the difference of two affine maps is largest at a corner.
        """
        return self.shape == other.shape and self.distance(other) <= tolerance_mm

    def distance(self, other: Grid) -> float:
        """Largest distance in mm between voxels of the same index, over the corners of this grid."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, -1)
        offsets = (self.affine - other.affine) @ np.vstack([corners, np.ones(8)])
        return float(np.linalg.norm(offsets[:3], axis=0).max())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and checkpoints; numbers survive exactly."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Grid:
        return cls(tuple(content["shape"]), np.array(content["affine"], dtype=np.float64))


def on_one_grid(a: Grid, b: Grid) -> bool:
    """Whether voxels of the same index show the same place: to within 0.1 mm and a tenth of the smallest spacing."""
    finest = float(min(a.spacing.min(), b.spacing.min()))
    return a.matches(b, min(SAME_GRID_MM, SAME_GRID_VOXELS * finest))


def reordered(array: npt.NDArray[Any], grid: Grid, like: Grid) -> npt.NDArray[Any] | None:
    """The voxels of `grid` in the order of `like`, by exchanging and reversing axes; nothing is interpolated.

    Args:
        array: (X, Y, Z) on `grid`.
        grid: where they lie.
        like: the same places (within `SAME_MM`) in any order of axes, in either direction.

    Returns:
        (X, Y, Z) on `like`, `array` itself where the order is the same already; None where the voxels are others.
    """
    steps = np.linalg.solve(like.affine[:3, :3], grid.affine[:3, :3])
    axes = [int(axis) for axis in np.abs(steps).argmax(axis=1)]  # which of its own axes runs along each of `like`
    if sorted(axes) != [0, 1, 2]:
        return None
    result = array.transpose(axes) if axes != [0, 1, 2] else array
    affine = grid.affine[:, [*axes, 3]]
    for axis, own in enumerate(axes):
        if steps[axis, own] < 0:
            result = np.flip(result, axis)
            affine[:3, 3] += affine[:3, axis] * (result.shape[axis] - 1)
            affine[:3, axis] *= -1
    return result if Grid(result.shape, affine).matches(like, SAME_MM) else None
