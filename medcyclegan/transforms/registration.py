"""How far one volume lies from another of the same patient, and the rigid motion that brings it there.

Registration alone moves the MAE of one and the same model by several HU, so every graded case comes with an estimate of
what is left of it, in millimetres; and pairs for validation may need it to become pairs. Both are one rigid
registration by Mattes mutual information (Mattes et al. 2003, IEEE TMI 22(1)) of the synthetic CT (or any second
volume) to the reference inside the mask, from coarse to fine, at rest to begin with.

Words used here. *Transform*: takes a point of the reference (RAS+ mm) to the point of the synthetic CT that belongs
there. *Shift*: what it does to the center of the mask. *Displacement*: how far it moves one voxel of the mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

from medcyclegan.io.grid import Grid
from medcyclegan.transforms.geometry import resample

Volume = npt.NDArray[np.floating] | npt.NDArray[np.integer]
Inside = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

# Voxel size (mm) on which an estimate, or a refinement, is made; a volume that is coarser stays as it is.
_ESTIMATE_MM = 4.0
_REFINE_MM = 2.0
_BINS = 32
# HU window of the registration: air and metal carry no position.
HU_WINDOW = (-1024.0, 1500.0)
# Share of a volume that must be left inside the mask on the coarse grid.
_FEWEST_VOXELS = 500
AIR_HU = -1024.0
_RIM_MM = 8.0


@dataclass(frozen=True)
class Alignment:
    """A rigid transform from the reference to the synthetic CT, and how large it is.

    Attributes:
        matrix: 4 x 4, RAS+ mm.
        shift: (right, front, top) in mm at the center of the mask.
        rotation: angle in degrees about the rotation's own axis, at least 0.
        displacement: mean over the mask's voxels of how far each is moved, mm.
        reason: why there is no transform; the numbers are then nan and the matrix is the identity.
        information: mutual information that was reached, nats; comparable only for one mask and grid.
    """

    matrix: Floats
    shift: tuple[float, float, float]
    rotation: float
    displacement: float
    reason: str | None = None
    information: float = math.nan

    @property
    def shift_length(self) -> float:
        """Length of the shift, mm."""
        return math.dist((0, 0, 0), self.shift)


def with_rim(body: Inside, grid: Grid) -> Inside:
    """A body (X, Y, Z) on `grid` and 8 mm around it, because its surface says most about where it is."""
    result = body
    for axis, step in enumerate(grid.spacing):  # per axis, since voxels may be thick
        structure = np.expand_dims(np.ones(3, dtype=bool), tuple(i for i in range(3) if i != axis))
        result = ndimage.binary_dilation(result, structure, iterations=max(1, round(_RIM_MM / float(step))))
    return np.asarray(result, dtype=bool)


def percentile_window(values: Volume, body: Inside) -> tuple[float, float]:
    """Intensity window of an MR for registration: 0 to nearly the maximum in the body; (0, 0) of an empty body."""
    if not body.any():
        return 0.0, 0.0
    low, high = np.percentile(values[body], (0.5, 99.5))
    return min(0.0, float(low)), float(high)


def align(
    reference: Volume,
    synthetic: Volume,
    inside: Inside,
    grid: Grid,
    *,
    fine: bool = False,
    windows: tuple[tuple[float, float], tuple[float, float]] = (HU_WINDOW, HU_WINDOW),
) -> Alignment:
    """Find the rigid transform that best explains the synthetic CT by the reference.

    All voxels of the mask on the coarse grid are used, none drawn at random, so that it can be repeated.

    Args:
        reference: (X, Y, Z), HU.
        synthetic: (X, Y, Z), HU, on the same grid.
        inside: (X, Y, Z) bool, where to look.
        grid: of all three.
        fine: on a grid of 2 mm and to a smaller step instead of 4 mm, for a refinement.
        windows: of the reference and of the synthetic CT: values beyond carry no position.

    Returns:
        The transform; without one, and with the reason, where the mask is too small, a volume is constant or not finite
        there, or the registration fails.
    """
    if not reference.shape == synthetic.shape == inside.shape == grid.shape:
        raise ValueError(f"arrays of one shape are needed, got {reference.shape}, {synthetic.shape}, {inside.shape}")
    if not inside.any():
        return _none("the mask is empty")
    if not (np.isfinite(reference[inside]).all() and np.isfinite(synthetic[inside]).all()):
        return _none("a value in the mask is not finite")
    coarse = _coarser(grid, _REFINE_MM if fine else _ESTIMATE_MM)
    # Values outside the mask stay: they are not used, and a blanked rim would bias towards no shift.
    fixed, moving = (
        resample(np.clip(np.nan_to_num(volume, nan=low), low, high).astype(np.float32), grid, coarse, fill=low)
        for volume, (low, high) in zip((reference, synthetic), windows, strict=True)
    )
    mask = resample(inside, grid, coarse, fill=0, mode="nearest")
    if np.count_nonzero(mask) < _FEWEST_VOXELS:
        return _none(f"the mask has fewer than {_FEWEST_VOXELS} voxels of {_REFINE_MM if fine else _ESTIMATE_MM:g} mm")
    if fixed[mask].min() == fixed[mask].max() or moving[mask].min() == moving[mask].max():
        return _none("a volume is constant in the mask")
    try:
        matrix, information = _register(fixed, moving, mask, coarse, fine)
    except RuntimeError as error:  # ITK's, for instance of volumes that leave each other
        return _none(f"the registration failed ({str(error).strip().splitlines()[-1]})")
    points = np.argwhere(mask) @ coarse.affine[:3, :3].T + coarse.affine[:3, 3]
    moved = points @ matrix[:3, :3].T + matrix[:3, 3] - points
    x, y, z = moved.mean(axis=0)
    cosine = (np.trace(matrix[:3, :3]) - 1) / 2
    rotation = math.degrees(math.acos(min(1.0, max(-1.0, float(cosine)))))
    displacement = float(np.linalg.norm(moved, axis=1).mean())
    # ITK adds up in any order; beyond these digits, far below the accuracy, two runs may differ.
    shift = (round(float(x), 5), round(float(y), 5), round(float(z), 5))
    return Alignment(matrix, shift, round(rotation, 5), round(displacement, 5), information=round(information, 6))


def apply(alignment: Alignment, synthetic: Volume, grid: Grid) -> npt.NDArray[np.float32]:
    """The synthetic CT brought onto the reference: one linear interpolation, air where it has nothing.

    Args:
        alignment: from `align`.
        synthetic: (X, Y, Z), HU.
        grid: of the synthetic CT and of the result.

    Returns:
        (X, Y, Z) float32, HU.
    """
    # The value at a point x of the reference is that at T x: as if the volume lay on the grid T^-1 G.
    moved = Grid(grid.shape, np.linalg.inv(alignment.matrix) @ grid.affine)
    return np.asarray(resample(synthetic, moved, grid, fill=AIR_HU, antialias=False), dtype=np.float32)


def _none(reason: str) -> Alignment:
    return Alignment(np.eye(4), (math.nan, math.nan, math.nan), math.nan, math.nan, reason)


def _coarser(grid: Grid, size: float) -> Grid:
    """The same axes and field of view with voxels of about `size` mm where they were smaller."""
    factors = np.maximum(1.0, size / grid.spacing)
    counts = np.maximum(np.ceil(np.array(grid.shape) / factors), 1).astype(int)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * factors
    center = grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2)
    affine[:3, 3] += center - affine[:3, :3] @ ((counts - 1) / 2)
    return Grid((int(counts[0]), int(counts[1]), int(counts[2])), affine)


def _register(fixed: Volume, moving: Volume, mask: Inside, grid: Grid, fine: bool) -> tuple[Floats, float]:
    """4 x 4 in RAS+ mm, and the mutual information.

    The images are handed over in the frame of their own voxel axes (spacing as it is, no direction), because ITK wants
    rotations as directions and a sheared grid has none; a rigid motion there is one in the world for all other grids.
    """
    spacing = grid.spacing

    def image(array: npt.NDArray[np.generic]) -> sitk.Image:
        made = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        made.SetSpacing(spacing.tolist())
        return made

    start = sitk.Euler3DTransform()
    middle = np.argwhere(mask).mean(axis=0) * spacing
    start.SetCenter(middle.tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricFixedMask(image(mask.astype(np.uint8)))
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-3 if fine else 5e-3, numberOfIterations=100, relaxationFactor=0.5
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0])
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(image(fixed), image(moving))
    rotation = np.array(start.GetMatrix()).reshape(3, 3)
    local = np.eye(4)
    local[:3, :3] = rotation
    local[:3, 3] = middle + np.array(start.GetTranslation()) - rotation @ middle
    to_world = grid.affine @ np.diag([*(1 / spacing), 1.0])
    return np.asarray(to_world @ local @ np.linalg.inv(to_world)), -float(method.GetMetricValue())
