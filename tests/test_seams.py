"""Flicker and seams against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medcyclegan.inference.seams import seam_energy, slice_flicker


def test_flicker_of_alternating_slices_is_twice_their_amplitude() -> None:
    volume = np.zeros((4, 4, 10)) + 7 * (-1.0) ** np.arange(10)
    assert slice_flicker(volume, np.ones(volume.shape, bool)) == pytest.approx(14)
    assert slice_flicker(np.moveaxis(volume, 2, 0), np.ones((10, 4, 4), bool), axis=0) == pytest.approx(14)


def test_a_trend_and_a_change_of_shape_do_not_flicker() -> None:
    volume = np.zeros((4, 4, 10)) + 30.0 * np.arange(10)
    mask = np.ones(volume.shape, bool)
    assert slice_flicker(volume, mask) == pytest.approx(0)
    volume[0] += 1000  # brighter in a corner that every other slice leaves out
    mask[0, :, ::2] = False
    assert slice_flicker(volume, mask) == pytest.approx(0)
    assert np.isnan(slice_flicker(volume, np.zeros_like(mask)))


def test_seam_energy_is_a_ratio_of_squares() -> None:
    volume = np.cumsum(np.ones((12, 3, 3)), axis=0)
    mask = np.ones(volume.shape, bool)
    assert seam_energy(volume, [4, 8], 0, mask) == pytest.approx(1)
    volume[4:8] += 2  # steps of 3 and -1 where they were 1
    assert seam_energy(volume, [4], 0, mask) == pytest.approx(9 / 1)
    assert seam_energy(volume, [4, 8], 0, mask) == pytest.approx((9 + 1) / 2)
