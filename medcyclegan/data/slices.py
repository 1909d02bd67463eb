"""The usable slices of a prepared volume, measured once during preparation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from medcyclegan.data.stored_image import StoredImage
from medcyclegan.data.windows import BACKGROUND, Bools, Floats
from medcyclegan.errors import InputError

CONTRAST = 0.05  # flatter patches are not used: instance norm would amplify their noise


@dataclass(frozen=True)
class Slices:
    """Body area and contrast of the slices of a volume, or of a pair, where both halves need both.

    Attributes:
        areas: for each axis of the working grid, voxels of body in every slice across it.
        shown: for each axis, the slices in which the body is not nearly constant, rising.
    """

    areas: tuple[tuple[int, ...], ...]
    shown: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the volume, (X, Y, Z)."""
        return tuple(len(areas) for areas in self.areas)

    @property
    def voxels(self) -> int:
        """Of body."""
        return sum(self.areas[0])

    def with_body(self, axis: int) -> npt.NDArray[np.intp]:
        """The slices across `axis` that show any body, rising."""
        return np.flatnonzero(self.areas[axis])

    def eligible(self, name: str, minimum_body: float, axis: int = 2) -> npt.NDArray[np.intp]:
        """Usable slices across `axis`, rising.

        Nearly constant ones are left out, because instance norm amplifies their noise.

        Args:
            name: of the case or pair, for the message.
            minimum_body: smallest area of a usable slice, as a share of the largest.
            axis: of the working grid.

        Raises:
            InputError: there is none.
        """
        areas, shown = np.array(self.areas[axis]), np.array(self.shown[axis], dtype=np.intp)
        chosen = shown[areas[shown] >= max(1, minimum_body * areas.max())]
        if not len(chosen):
            raise InputError(
                f"{name} has no slice with body and contrast to learn from.",
                "Look at the volume, of a pair at both, and leave it out or give a body mask.",
            )
        return chosen

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"areas": [list(areas) for areas in self.areas], "shown": [list(shown) for shown in self.shown]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Slices:
        return cls(*(tuple(tuple(map(int, along)) for along in content[name]) for name in ("areas", "shown")))


class PatchSource(Protocol):
    """A prepared case, as patches are drawn from it."""

    @property
    def id(self) -> str: ...

    @property
    def image(self) -> Floats | StoredImage:
        """(C, X, Y, Z)."""
        ...

    @property
    def body(self) -> Bools:
        """(X, Y, Z)."""
        ...

    @property
    def slices(self) -> Slices:
        """Its slices, known without reading the arrays."""
        ...


def measure_slices(images: Sequence[Floats | StoredImage], body: Bools) -> Slices:
    """Measure the slices of a volume, or of both halves of a pair.

    Args:
        images: of each volume, (C, X, Y, Z).
        body: (X, Y, Z), of a pair what both bodies have in common.
    """
    areas = [body.sum(axis=tuple(i for i in range(3) if i != axis)) for axis in range(3)]
    shown = [
        [int(k) for k in np.flatnonzero(along) if all(_shows(image, body, axis, int(k)) for image in images)]
        for axis, along in enumerate(areas)
    ]
    return Slices(tuple(tuple(map(int, along)) for along in areas), tuple(map(tuple, shown)))


def _shows(image: Floats | StoredImage, body: Bools, axis: int, k: int) -> bool:
    # Not `take`, which would first copy an array in Fortran order.
    inside = body[(slice(None),) * axis + (k,)]
    return shows_something(np.where(inside, np.asarray(image.take(k, axis=axis + 1)), np.float32(BACKGROUND)))


def shows_something(image: Floats, slices: int = 1) -> bool:
    """Whether at least one channel of (C slices, *spatial), all slices of a channel together, is not flat."""
    return any(np.ptp(part) > CONTRAST for part in np.split(image, len(image) // slices))
