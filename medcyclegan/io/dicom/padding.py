"""Padding: pixels that only make an image rectangular, such as those outside a CT's circle (PS3.3 C.7.5.1.1.2).

PixelPaddingValue names their stored value, and with PixelPaddingRangeLimit a range of them. They were not measured, and
slope and intercept make nothing of them that is true: 65535 with an intercept of -1024 would be 64,511 HU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from scipy import ndimage

from medcyclegan.io.dicom.files import LIBRARY_ERRORS

AIR_HU = -1024.0
_LIMITS = ("PixelPaddingValue", "PixelPaddingRangeLimit")


def padding(
    content: Dataset, cells: npt.NDArray[Any], values: npt.NDArray[Any], signed: bool
) -> npt.NDArray[np.bool_] | None:
    """Which pixels have a value that the header calls padding; None where it names none.

    Args:
        content: the header.
        cells: (frames, rows, columns), all allocated bits: writers put padding in bits that are not stored, too.
        values: same shape, the stored bits.
        signed: whether the values are.

    Raises:
        ValueError: one of them is there and is no whole number; its keyword is the message.
    """
    limits = [limit for keyword in _LIMITS if (limit := _whole(content, keyword)) is not None]
    if _whole(content, _LIMITS[0]) is None:
        return None
    # Both are written as signed by some and unsigned by others: what counts are their bits.
    bits = 8 * cells.itemsize
    size = 1 << bits
    limits = [limit % size for limit in limits]
    if signed:
        limits = [limit - size if limit >= size // 2 else limit for limit in limits]
    low, high = min(limits), max(limits)
    found: npt.NDArray[np.bool_] = (cells >= low) & (cells <= high)
    return found | ((values >= low) & (values <= high))


def fill_padding(array: npt.NDArray[np.float32], padded: npt.NDArray[np.bool_], modality: str) -> list[str]:
    """Replace padding that would be taken for a measurement, in place, with notes.

    It becomes air (-1024 HU) in CT, and elsewhere the lowest measured value. CT padding that lies lower stays
    as it is stored: everything takes it for air. Padding reaches the edge of its image; pixels of its value that do not
    were measured, such as metal at the top of the range, and stay.

    Args:
        array: (slices, rows, columns), HU for CT.
        padded: same shape.
        modality: "CT", "MR", ...

    Returns:
        Sentences for the user.
    """
    if not padded.any():
        return []
    if padded.all():
        return ["every pixel has the value that the header calls padding; they are read as values."]
    nothing = AIR_HU if modality == "CT" else float(array.min(where=~padded, initial=np.inf))
    changed = 0
    if modality != "CT":
        below = padded & (array < min(nothing, 0.0))
        array[below] = min(nothing, 0.0)
        changed += int(np.count_nonzero(below))
    padded = padded & (array > nothing)
    inside = 0
    for image, region in zip(array, padded, strict=True):
        outside = _from_the_edge(region)
        image[outside] = nothing
        changed += int(np.count_nonzero(outside))
        inside += int(np.count_nonzero(region & ~outside))
    notes = []
    if changed:
        what = "air (-1024 HU)" if modality == "CT" else "the lowest value that was measured, or 0"
        notes.append(f"{changed} pixels are padding (PixelPaddingValue), which was not measured; they became {what}.")
    if inside:
        notes.append(
            f"{inside} pixels within the images have the value that the header calls padding; they are read as values."
        )
    return notes


def _from_the_edge(region: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The parts of a region, (rows, columns), that reach the edge of the image."""
    if not region.any():
        return region
    labels, _ = ndimage.label(region)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return np.asarray(np.isin(labels, edge[edge > 0]))


def _whole(content: Dataset, keyword: str) -> int | None:
    """A whole number, or None where the element is absent or empty."""
    try:
        value = content.get(keyword)
    except LIBRARY_ERRORS as error:
        raise ValueError(keyword) from error
    if value is not None and value != "" and value != b"" and not isinstance(value, int):
        raise ValueError(keyword)
    return value if isinstance(value, int) else None
