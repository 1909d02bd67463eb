"""Features of a volume that a conversion compares with the training volumes': a few numbers, kept in the checkpoint.

They do not identify a patient: no name, no picture, no digest.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medcyclegan.io.grid import Grid
from medcyclegan.survey.volume import Survey, plain, tuples

BINS = 32


@dataclass(frozen=True)
class Features:
    """Features of one volume.

    Attributes:
        spacing_mm, field_of_view_mm: of the source along right, anterior, superior.
        body_liters: of the prepared body.
        skull_dip: see `survey.anatomy.Head`; 0 if it is no head.
        histograms: per channel, shares of the body in `BINS` equal bins of the scaled intensities, [-1, 1].
    """

    spacing_mm: tuple[float, float, float]
    field_of_view_mm: tuple[float, float, float]
    body_liters: float
    skull_dip: float
    histograms: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        sizes = [self.body_liters, self.skull_dip, *self.spacing_mm, *self.field_of_view_mm]
        if not np.isfinite([*sizes, *itertools.chain(*self.histograms)]).all():
            raise ValueError("a number is not finite")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and checkpoints; numbers survive exactly."""
        return plain(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Features:
        return cls(**{name: tuples(value) for name, value in content.items()})


def features_of(survey: Survey, images: npt.NDArray[np.float32], body: npt.NDArray[np.bool_], grid: Grid) -> Features:
    """Features of a prepared case.

    Args:
        survey: of its (first) volume.
        images: (C, X, Y, Z), [-1, 1].
        body: (X, Y, Z).
        grid: of both.
    """
    head = survey.anatomy.head if survey.anatomy else None
    source = survey.grid or grid
    liters = abs(float(np.linalg.det(grid.affine[:3, :3]))) * int(np.count_nonzero(body)) / 1e6
    x, y, z = (round(float(s), 4) for s in source.spacing[source.ras_order])
    right, anterior, superior = (round(float(length), 2) for length in source.field_of_view)
    return Features(
        spacing_mm=(x, y, z),
        field_of_view_mm=(right, anterior, superior),
        body_liters=round(liters, 4),
        skull_dip=round(head.skull_dip, 4) if head and head.skull_dip is not None else 0.0,
        histograms=tuple(_histogram(image[body]) for image in images),
    )


def _histogram(inside: npt.NDArray[np.float32]) -> tuple[float, ...]:
    shares = np.histogram(inside, bins=BINS, range=(-1, 1))[0] / max(1, inside.size)
    return tuple(round(float(share), 5) for share in shares)
