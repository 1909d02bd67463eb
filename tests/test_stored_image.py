"""Stored images: small on disk, exact at the ends, less than 0.04 HU off between."""

from __future__ import annotations

import numpy as np
import pytest

from medcyclegan.data.stored_image import StoredImage, encode
from medcyclegan.transforms.intensity import CT_WINDOW, Scaler


def test_every_hounsfield_unit_comes_back() -> None:
    scaler = Scaler(*CT_WINDOW)
    hu = np.linspace(-1024, 3071, 4096 * 4 - 3, dtype=np.float32)
    stored = encode(scaler.apply(hu))
    assert stored.dtype == np.int16
    back = scaler.undo(np.asarray(StoredImage(stored)))
    assert np.abs(back - hu).max() < 0.04  # 4095 / 2 / 32767 / 2 = 0.031, and float32
    assert np.array_equal(np.rint(back[::4]), np.rint(hu[::4]))
    assert back[0] == -1024 and back[-1] == 3071


def test_it_reads_like_an_array() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (5, 6, 7)).astype(np.float32)
    image = StoredImage(encode(values))
    whole = np.asarray(image)
    assert image.shape == (5, 6, 7) and image.ndim == 3 and whole.dtype == np.float32
    np.testing.assert_allclose(whole, values, atol=0.5 / 32767 + 1e-7)
    for part, same in ((image[1:3, :, 4], whole[1:3, :, 4]), (image.take([0, 0, 2], axis=1), whole.take([0, 0, 2], 1))):
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, same)
    np.testing.assert_array_equal(image[whole > 0.5], whole[whole > 0.5])


@pytest.mark.parametrize("value", [1.0001, -1.0001, np.nan, np.inf])
def test_what_would_wrap_around_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="outside or is not finite"):
        encode(np.array([0.0, value], np.float32))
