"""Numbers in DICOM headers: absent, usable, or there and unusable, which is not the same as absent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from medcyclegan.errors import InputError
from medcyclegan.io.dicom.files import LIBRARY_ERRORS, Place


def numbers(header: Dataset, keyword: str, count: int) -> npt.NDArray[np.float64] | None:
    """`count` finite numbers, or None where the element is absent or empty.

    Raises:
        ValueError: there is something else.
    """
    try:
        found = header.get(keyword)
        if found is None or (isinstance(found, str | bytes | Sequence) and not len(found)):
            return None
        if isinstance(found, bytes):
            raise ValueError(keyword)  # of a kind that holds no numbers
        parts = [found] if isinstance(found, str) or not isinstance(found, Sequence) else found
        if any("_" in str(getattr(part, "original_string", part)) for part in parts):
            raise ValueError(keyword)  # Python takes 1_00 for 100, DICOM does not (PS3.5 6.2)
        values = np.atleast_1d(np.asarray(found, dtype=np.float64))
    except LIBRARY_ERRORS as error:
        raise ValueError(keyword) from error
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(keyword)
    return values


def numbers_or_none(header: Dataset, keyword: str, count: int) -> npt.NDArray[np.float64] | None:
    """`count` finite numbers, or None where there is nothing or something else."""
    try:
        return numbers(header, keyword, count)
    except ValueError:
        return None


def rescale_value(header: Dataset, keyword: str, place: Place, name: str) -> float | None:
    """A slope or intercept; None where there is none. What is there and no number must not count as none."""
    try:
        found = numbers(header, keyword, 1)
    except ValueError as error:
        raise InputError(
            f"{name}: {keyword} of {place.name} is not one decimal number (a decimal comma? DICOM wants a point), so "
            "that the values are not known.",
            "Correct it in the header, or export the series with a point.",
        ) from error
    return None if found is None else float(found[0])
