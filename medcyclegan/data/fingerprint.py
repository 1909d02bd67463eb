"""What the volumes of a domain are like as a whole: grids, and how far the body reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medcyclegan.data.datalist import Case
from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import grid_of, read_mask, read_volume
from medcyclegan.progress import Progress, Silent
from medcyclegan.transforms.body import body_mask

Three = tuple[float, float, float]
LOOKED_AT = 12  # volumes of a domain that are opened; the rest is taken to be alike
HEAD_WIDTH_MM = (110.0, 230.0)  # from ear to ear; shoulders, chests and hips are wider
HEAD_DEPTH_MM = (130.0, 280.0)  # from nose to back


@dataclass(frozen=True)
class Fingerprint:
    """Lengths along right, anterior, superior in mm.

    Attributes:
        modality: "MR" or "CT".
        volumes: how many there are.
        spacing: median over the volumes that were opened.
        finest, coarsest: extremes of the spacing.
        extent: of the largest body.
        height: of the median body, along superior.
        slices: axial slices with body in the median volume.
        top_inside: share of the volumes with air above the body, so that its top is seen.
        head: whether the median body has a head's width and depth.
        opened: how many were opened.
        problems: why some of these could not be used.
    """

    modality: str
    volumes: int
    spacing: Three
    finest: Three
    coarsest: Three
    extent: Three
    height: float
    slices: int
    top_inside: float
    head: bool
    opened: int = 0
    problems: tuple[str, ...] = ()


def fingerprint(cases: Sequence[Case], modality: str, progress: Progress | None = None) -> Fingerprint:
    """Open up to 12 volumes, evenly over the list, and describe the domain.

    Raises:
        InputError: if none of them can be read and shows a body; the reasons of all are given.
    """
    progress = progress or Silent()
    chosen = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, min(LOOKED_AT, len(cases))).astype(int))]
    looks, problems = [], []
    for case in progress.track(chosen, len(chosen), f"looking at {modality}"):
        try:
            looks.append(_look(case, modality))
        except InputError as error:
            problems.append(str(error))
    if not looks:
        raise InputError(f"none of the {modality} volumes that were opened can be used:\n" + "\n".join(problems))
    spacings = np.array([spacing for spacing, _, _ in looks])
    extents = np.array([extent for _, extent, _ in looks])
    tops = np.array([top for _, _, top in looks])
    width, depth, _ = np.median(extents, axis=0)
    return Fingerprint(
        modality=modality,
        volumes=len(cases),
        spacing=_three(np.median(spacings, axis=0)),
        finest=_three(spacings.min(axis=0)),
        coarsest=_three(spacings.max(axis=0)),
        extent=_three(extents.max(axis=0)),
        height=float(np.median(extents[:, 2])),
        slices=int(np.median(extents[:, 2] / spacings[:, 2])),
        top_inside=float(tops.mean()),
        head=bool(HEAD_WIDTH_MM[0] <= width <= HEAD_WIDTH_MM[1] and HEAD_DEPTH_MM[0] <= depth <= HEAD_DEPTH_MM[1]),
        opened=len(chosen),
        problems=tuple(problems),
    )


def _look(case: Case, modality: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], bool]:
    """Spacing and extent of the body along right, anterior, superior (mm), and whether there is air above it."""
    volume = read_volume(case.image, case.levels)
    grid = grid_of(volume)
    body = read_mask(case.body, grid) if case.body else body_mask(volume.numpy()[0], grid.spacing.tolist(), modality)
    if not body.any():
        raise InputError(f"{case.image}: the body mask is empty.")
    spacing, upright = _upright(grid, body)
    ends = [np.flatnonzero(upright.any(axis=tuple(i for i in range(3) if i != axis))) for axis in range(3)]
    extent = np.array([(end[-1] - end[0] + 1) for end in ends]) * spacing
    return spacing, extent, bool(ends[2][-1] < upright.shape[2] - 1)


def _upright(grid: Grid, values: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Spacing and voxels with the axes nearest to right, anterior, superior in this order and direction."""
    orientation = nib.orientations.io_orientation(grid.affine)
    order = np.argsort(orientation[:, 0])
    return grid.spacing[order], nib.orientations.apply_orientation(values, orientation)


def _three(values: npt.NDArray[np.floating]) -> Three:
    x, y, z = (round(float(value), 2) for value in values)
    return x, y, z
