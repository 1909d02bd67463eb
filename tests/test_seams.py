"""Flicker from slice to slice against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medcyclegan.inference.seams import slice_means


def flicker(volume: np.ndarray, mask: np.ndarray, axis: int = 2) -> float:
    """Root mean square of the difference between the mean of a slice and that of its neighbors."""
    own, beside = slice_means(volume, mask, axis)
    jumps = (own - beside)[np.isfinite(own)]
    return float(np.sqrt(np.mean(jumps**2))) if len(jumps) else float("nan")


def test_flicker_of_alternating_slices_is_twice_their_amplitude() -> None:
    volume = np.zeros((4, 4, 10)) + 7 * (-1.0) ** np.arange(10)
    assert flicker(volume, np.ones(volume.shape, bool)) == pytest.approx(14)
    assert flicker(np.moveaxis(volume, 2, 0), np.ones((10, 4, 4), bool), axis=0) == pytest.approx(14)


def test_a_trend_and_a_change_of_shape_do_not_flicker() -> None:
    volume = np.zeros((4, 4, 10)) + 30.0 * np.arange(10)
    mask = np.ones(volume.shape, bool)
    assert flicker(volume, mask) == pytest.approx(0)
    volume[0] += 1000  # brighter in a corner that every other slice leaves out
    mask[0, :, ::2] = False
    assert flicker(volume, mask) == pytest.approx(0)
    assert np.isnan(flicker(volume, np.zeros_like(mask)))
