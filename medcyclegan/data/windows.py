"""Cropping patches from a volume: windows and stacks of slices, (C, *spatial)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

BACKGROUND = -1.0

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Values = TypeVar("Values", bound=np.generic)


def choose_window(
    body: Bools, size: Sequence[int], random: np.random.Generator, middle: dict[int, int] | None = None
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Choose a random crop of a volume, and its position in the patch.

    Args:
        body: (C, *spatial).
        size: voxels of the patch along the spatial axes.
        random: decides the offsets.
        middle: axis -> index on which the patch is centered, as far as the volume allows.

    Returns:
        Slices of the volume and of the patch, (C, *spatial) each: `patch[target] = image[source]`.
    """
    source, target = [slice(None)], [slice(None)]
    for axis, wanted in enumerate(size, start=1):
        length = body.shape[axis]
        if length > wanted:
            if middle and axis in middle:
                start = int(np.clip(middle[axis] - wanted // 2, 0, length - wanted))
            else:
                occupied = np.flatnonzero(body.any(axis=tuple(i for i in range(body.ndim) if i != axis)))
                first, last = (int(occupied[0]), int(occupied[-1])) if len(occupied) else (0, length - 1)
                # The window lies over the body, or the body in the window, whichever is longer; never beyond the image.
                ends = sorted((first, last + 1 - wanted))
                start = int(random.integers(max(0, ends[0]), min(length - wanted, max(0, ends[1])) + 1))
            source.append(slice(start, start + wanted))
            target.append(slice(0, wanted))
        else:
            start = int(random.integers(wanted - length + 1))
            source.append(slice(0, length))
            target.append(slice(start, start + length))
    return tuple(source), tuple(target)


def crop_or_pad(image: Floats, body: Bools, size: Sequence[int], random: np.random.Generator) -> Floats:
    """Bring (C, *spatial) to `size`: crop around the body where it is larger, place it in background where smaller."""
    patch = np.full((len(image), *size), BACKGROUND, dtype=np.float32)
    source, target = choose_window(body, size, random)
    patch[target] = image[source]
    return patch


def stack_of_slices(volume: npt.NDArray[Values], axis: int, middle: int, neighbors: int) -> npt.NDArray[Values]:
    """The slices of (C, X, Y, Z) around `middle`; beyond the volume its last slice is repeated.

    Returns:
        (C (2 neighbors + 1), *slice), all slices of a channel together.
    """
    chosen = np.clip(np.arange(middle - neighbors, middle + neighbors + 1), 0, volume.shape[axis + 1] - 1)
    # Not `take`, which would first copy an array in Fortran order, the whole volume, into C order.
    taken = volume[(slice(None),) * (axis + 1) + (chosen,)]
    stacked = np.moveaxis(taken, axis + 1, 1)
    return stacked.reshape(-1, *stacked.shape[2:])
