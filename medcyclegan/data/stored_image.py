"""Images of the prepared cache: 16-bit numbers on disk that read as float32 in [-1, 1].

Stored is round(32767 v). The error is at most 0.5 / 32767 of half the range: 0.03 HU for the window of CT (-1024 to
3071 HU), while -1 and 1 come back exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_STEPS = 32767


def encode(image: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """[-1, 1] to int16, any shape.

    Raises:
        ValueError: a value lies outside [-1, 1] or is not finite.
    """
    if not (np.abs(image) <= 1).all():  # false for NaN too
        raise ValueError("images are stored in [-1, 1]; a value lies outside or is not finite")
    return np.rint(image * np.float32(_STEPS)).astype(np.int16)


class StoredImage:
    """A stored image as an array of float32 in [-1, 1]: only what is indexed is read and decoded.

    Args:
        stored: (C, X, Y, Z) int16 from `encode`, memory-mapped as a rule.
    """

    def __init__(self, stored: npt.NDArray[np.int16]) -> None:
        if stored.dtype != np.int16:
            raise ValueError(f"stored images are int16, got {stored.dtype}")
        self._stored = stored

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._stored.shape

    @property
    def ndim(self) -> int:
        return self._stored.ndim

    def __getitem__(self, index: Any) -> npt.NDArray[np.float32]:
        return _decode(self._stored[index])

    def take(self, indices: Any, axis: int) -> npt.NDArray[np.float32]:
        """As `numpy.take`, which would first copy an array in Fortran order as a whole."""
        return self[(slice(None),) * (axis % self.ndim) + (indices,)]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("a stored image is decoded, which makes a copy")
        return np.asarray(_decode(self._stored), dtype=dtype)


def _decode(stored: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    # A quotient and not a product with 1 / 32767: 32767 / 32767 is exactly 1.
    return np.asarray(stored, dtype=np.float32) / np.float32(_STEPS)
