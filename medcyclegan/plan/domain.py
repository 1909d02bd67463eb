"""A domain: the grids of its volumes, and the extent of the body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medcyclegan.cohort.cases import Case
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.grid import Grid
from medcyclegan.io.pictures import PICTURE_SUFFIXES
from medcyclegan.io.reader import grid_of, read_header, read_mask, read_volume
from medcyclegan.progress import Progress, Silent
from medcyclegan.survey.anatomy import Anatomy
from medcyclegan.survey.volume import Survey, measure_volume

Three = tuple[float, float, float]
SURVEYED = 12  # volumes of a domain that are measured; only headers are read of the others
MINIMUM_BODY = 0.05  # smallest area of a usable slice by default, as a share of the largest


@dataclass(frozen=True)
class Domain:
    """Measurements of its volumes; lengths along right, anterior, superior in mm.

    Attributes:
        modality: "MR" or "CT".
        volumes: how many there are.
        spacing: median over the volumes that were measured.
        finest, coarsest: extremes of the spacing.
        extent: of the largest body.
        height: of the median body, along superior.
        top_inside: share of the volumes that show the top of the body.
        head: whether most bodies are as wide and long as a head.
        measured: how many were measured.
        problems: why some volumes cannot be used, of those that were measured and of the headers of the others.
        shown_mm: of each measured volume, the total height of its slices with enough body.
        grids: file -> grid, of every volume that can be read; those of `others` too.
    """

    modality: str
    volumes: int
    spacing: Three
    finest: Three
    coarsest: Three
    extent: Three
    height: float
    top_inside: float
    head: bool
    measured: int = 0
    problems: tuple[str, ...] = ()
    shown_mm: tuple[float, ...] = ()
    grids: Mapping[str, Grid] = field(default_factory=dict)

    @property
    def single_slices(self) -> bool:
        """Whether some are pictures, which have one slice."""
        return any(grid.shape[2] == 1 for grid in self.grids.values())


def describe(
    cases: Sequence[Case], modality: str, progress: Progress | None = None, others: Sequence[Case] = ()
) -> Domain:
    """Survey up to 12 volumes, evenly over the list, and describe the domain.

    Args:
        cases: of the domain.
        modality: of its volumes.
        progress: to report to.
        others: volumes of this modality that are prepared with the domain and are not part of it, such as those of
            the validation pairs: only their grids are asked for.

    Raises:
        InputError: if none of them can be read and shows a body; the reasons of all are given.
    """
    progress = progress or Silent()
    chosen = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, min(SURVEYED, len(cases))).astype(int))]
    bodies: list[tuple[Survey, Anatomy]] = []
    problems: list[str] = []
    grids: dict[str, Grid] = {}
    for case in progress.track(chosen, len(chosen), f"looking at {modality}"):
        try:
            volume = read_volume(case.images[0], case.levels)
            body = read_mask(case.body, grid_of(volume)) if case.body else None
            survey = measure_volume(volume, body=body, modality=modality)
            if survey.anatomy is None:
                raise InputError(survey.no_body or "no body was found.")
            bodies.append((survey, survey.anatomy))
            grids[str(case.images[0])] = grid_of(volume)
        except InputError as error:
            problems.append(str(error) if str(case.images[0]) in str(error) else f"{case.images[0]}: {error}")
    raise_all(problems if not bodies else [], f"none of the {modality} volumes that were opened can be used:")
    for case in [case for case in cases if case not in chosen] + list(others):
        try:
            grids[str(case.images[0])] = _grid(case)
        except InputError as error:
            problems.append(str(error))
    spacings = np.array([survey.spacing for survey, _ in bodies])
    extents = np.array([body.extent_mm for _, body in bodies])
    return Domain(
        modality=modality,
        volumes=len(cases),
        spacing=_three(np.median(spacings, axis=0)),
        finest=_three(spacings.min(axis=0)),
        coarsest=_three(spacings.max(axis=0)),
        extent=_three(extents.max(axis=0)),
        height=float(np.median(extents[:, 2])),
        top_inside=float(np.mean([not body.cut_at_top for _, body in bodies])),
        head=float(np.mean([body.head_sized for _, body in bodies])) > 0.5,
        measured=len(chosen),
        problems=tuple(problems),
        shown_mm=tuple(_shown_mm(body) for _, body in bodies),
        grids=grids,
    )


def _shown_mm(body: Anatomy) -> float:
    areas = np.array(body.areas_cm2)
    return float(np.count_nonzero(areas[areas > 0] >= MINIMUM_BODY * areas.max()) * body.slice_mm)


def _grid(case: Case) -> Grid:
    # A picture's header tells no grid; it is small.
    if case.images[0].name.lower().endswith(PICTURE_SUFFIXES):
        return grid_of(read_volume(case.images[0], case.levels))
    return read_header(case.images[0]).grid


def _three(values: npt.NDArray[np.floating]) -> Three:
    x, y, z = (round(float(value), 2) for value in values)
    return x, y, z
