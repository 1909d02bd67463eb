"""What the volumes of a domain are like as a whole: grids, and how far the body reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medcyclegan.cohort.datalist import Case
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.grid import Grid
from medcyclegan.io.headers import read_header
from medcyclegan.io.pictures import PICTURE_SUFFIXES
from medcyclegan.io.reader import grid_of, read_mask, read_volume
from medcyclegan.progress import Progress, Silent
from medcyclegan.transforms.body import body_mask

Three = tuple[float, float, float]
LOOKED_AT = 12  # volumes of a domain that are opened; of the others the headers are read
MINIMUM_BODY = 0.05  # share of the largest area from which on a slice is trained on by default
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
        problems: why some volumes cannot be used, of those that were opened and of the headers of the others.
        shown_mm: of each volume that was opened, how high its slices with enough body to learn from are together.
        grids: file -> grid, of every volume that can be read; those of further volumes too, if they were given.
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
    shown_mm: tuple[float, ...] = ()
    grids: Mapping[str, Grid] = field(default_factory=dict)

    @property
    def single_slices(self) -> bool:
        """Whether some are pictures, which have one slice."""
        return any(grid.shape[2] == 1 for grid in self.grids.values())


def fingerprint(
    cases: Sequence[Case], modality: str, progress: Progress | None = None, further: Sequence[Case] = ()
) -> Fingerprint:
    """Open up to 12 volumes, evenly over the list, and describe the domain.

    Args:
        cases: of the domain.
        modality: of its volumes.
        progress: to report to.
        further: volumes of this modality that are prepared with the domain and are not part of it, such as those of
            the validation pairs: only their grids are asked for.

    Raises:
        InputError: if none of them can be read and shows a body; the reasons of all are given.
    """
    progress = progress or Silent()
    chosen = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, min(LOOKED_AT, len(cases))).astype(int))]
    looks: list[_Look] = []
    problems: list[str] = []
    grids: dict[str, Grid] = {}
    for case in progress.track(chosen, len(chosen), f"looking at {modality}"):
        try:
            looks.append(_look(case, modality))
            grids[str(case.image)] = looks[-1].grid
        except InputError as error:
            problems.append(str(error) if str(case.image) in str(error) else f"{case.image}: {error}")
    raise_all(problems if not looks else [], f"none of the {modality} volumes that were opened can be used:")
    for case in [case for case in cases if case not in chosen] + list(further):
        try:
            grids[str(case.image)] = _grid(case)
        except InputError as error:
            problems.append(str(error))
    spacings = np.array([look.spacing for look in looks])
    extents = np.array([look.extent for look in looks])
    tops = np.array([look.top_inside for look in looks])
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
        shown_mm=tuple(look.shown_mm for look in looks),
        grids=grids,
    )


def field_of_view(grid: Grid) -> npt.NDArray[np.float64]:
    """(3,) how far a grid reaches along its axes nearest to right, anterior, superior, mm."""
    order = np.argsort(nib.orientations.io_orientation(grid.affine)[:, 0])
    return np.asarray(np.array(grid.shape) * grid.spacing)[order]


def _grid(case: Case) -> Grid:
    # A picture's header tells no grid; it is small.
    if case.image.name.lower().endswith(PICTURE_SUFFIXES):
        return grid_of(read_volume(case.image, case.levels))
    return read_header(case.image).grid


@dataclass(frozen=True)
class _Look:
    """What one volume tells; lengths along right, anterior, superior in mm, see `Fingerprint`."""

    grid: Grid
    spacing: npt.NDArray[np.float64]
    extent: npt.NDArray[np.float64]
    top_inside: bool
    shown_mm: float


def _look(case: Case, modality: str) -> _Look:
    volume = read_volume(case.image, case.levels)
    grid = grid_of(volume)
    body = read_mask(case.body, grid) if case.body else body_mask(volume.numpy()[0], grid.spacing.tolist(), modality)
    if not body.any():
        raise InputError(f"{case.image}: the body mask is empty.")
    spacing, upright = _upright(grid, body)
    ends = [np.flatnonzero(upright.any(axis=tuple(i for i in range(3) if i != axis))) for axis in range(3)]
    extent = np.array([(end[-1] - end[0] + 1) for end in ends]) * spacing
    area = upright.sum(axis=(0, 1))
    shown = np.count_nonzero(area >= max(1, MINIMUM_BODY * area.max())) * spacing[2]
    return _Look(grid, spacing, extent, bool(ends[2][-1] < upright.shape[2] - 1), float(shown))


def _upright(grid: Grid, values: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Spacing and voxels with the axes nearest to right, anterior, superior in this order and direction."""
    orientation = nib.orientations.io_orientation(grid.affine)
    order = np.argsort(orientation[:, 0])
    return grid.spacing[order], nib.orientations.apply_orientation(values, orientation)


def _three(values: npt.NDArray[np.floating]) -> Three:
    x, y, z = (round(float(value), 2) for value in values)
    return x, y, z
