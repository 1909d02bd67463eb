"""Which slices of a prepared volume can be learned from."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from medcyclegan.data.stored_image import StoredImage
from medcyclegan.data.windows import BACKGROUND, Bools, Floats
from medcyclegan.errors import InputError

CONTRAST = 0.05  # a flatter patch is not shown: instance norm would blow its noise up


class PatchSource(Protocol):
    """A prepared case as far as patches are concerned."""

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


def eligible_slices(case: PatchSource, minimum_body: float, axis: int = 2) -> npt.NDArray[np.intp]:
    """Slices across `axis` with enough body; nearly constant ones are left out, because instance norm blows them up.

    Raises:
        InputError: if the case has no such slice.
    """
    chosen = _eligible(case, np.asarray(case.body), minimum_body, axis)
    if not len(chosen):
        raise InputError(
            f"case {case.id} has no slice with body and contrast to learn from.",
            "Look at the volume, and leave it out or give a body mask.",
        )
    return chosen


def eligible_in_both(a: PatchSource, b: PatchSource, minimum_body: float, axis: int = 2) -> npt.NDArray[np.intp]:
    """Slices with enough of the common body of a pair in which both halves show something: see `eligible_slices`."""
    body = a.body & b.body
    chosen = np.intersect1d(_eligible(a, body, minimum_body, axis), _eligible(b, body, minimum_body, axis))
    if not len(chosen):
        raise InputError(
            f"pair {a.id} has no slice in which both a and b show body and contrast.",
            "Look at both volumes, and leave the pair out or give body masks.",
        )
    return chosen


def _eligible(case: PatchSource, body: Bools, minimum_body: float, axis: int) -> npt.NDArray[np.intp]:
    area = body.sum(axis=tuple(i for i in range(3) if i != axis))
    image, chosen = case.image, []
    for k in np.flatnonzero(area >= max(1, minimum_body * area.max())):
        # Not `take`, which would first copy an array in Fortran order.
        inside = body[(slice(None),) * axis + (k,)]
        shown = np.where(inside, np.asarray(image.take(k, axis=axis + 1)), np.float32(BACKGROUND))
        if shows_something(shown):
            chosen.append(k)
    return np.array(chosen, dtype=np.intp)


def shows_something(image: Floats, slices: int = 1) -> bool:
    """Whether at least one channel of (C slices, *spatial), all slices of a channel together, is not flat."""
    return any(np.ptp(part) > CONTRAST for part in np.split(image, len(image) // slices))


def areas(case: PatchSource, axis: int) -> npt.NDArray[np.intp]:
    """Voxels of body in every slice across `axis`."""
    return np.asarray(case.body.sum(axis=tuple(i for i in range(3) if i != axis)))
