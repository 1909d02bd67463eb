"""The anatomical planes in which slices of a volume lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Plane = Literal["axial", "coronal", "sagittal"]
# The RAS axis across the slices; the other two, in order, are the slice's own.
ACROSS: dict[str, int] = {"axial": 2, "coronal": 1, "sagittal": 0}


def plane_window(window: Sequence[int], trained: Plane, plane: Plane) -> tuple[int, int]:
    """The training window for slices along another plane than the one trained on.

    An axis that both planes have keeps its length; one that training never saw takes the larger of the two.

    Args:
        window: along the two axes of the `trained` plane.
    """
    axes = [axis for axis in range(3) if axis != ACROSS[trained]]
    length = dict(zip(axes, window, strict=True))
    first, second = (length.get(axis, max(window)) for axis in range(3) if axis != ACROSS[plane])
    return first, second
