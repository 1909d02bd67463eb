"""Known shifts and turns are found, in millimetres, and undone; what cannot be registered says why."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from medcyclegan import phantom
from medcyclegan.io.grid import Grid
from medcyclegan.transforms.registration import align, apply

SHAPE = (64, 76, 50)
AFFINE = np.array([[-3.0, 0, 0, 94.5], [0, 3, 0, -112.5], [0, 0, 3.5, -85], [0, 0, 0, 1]])
GRID = Grid(SHAPE, AFFINE)


@pytest.fixture(scope="module")
def head() -> phantom.Phantom:
    return phantom.sample(phantom.head(1), SHAPE, AFFINE)


def moved(shift: tuple[float, float, float], degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The same head moved, with new noise, blur and wrong bone, and the transform that aligns it: 4 x 4."""
    motion = np.eye(4)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    motion[:2, :2] = [[cosine, -sine], [sine, cosine]]
    motion[:3, 3] = shift
    volume = phantom.sample(phantom.head(1), SHAPE, motion @ AFFINE).ct
    volume = ndimage.gaussian_filter(volume, 0.7) + np.random.default_rng(0).normal(0, 30, SHAPE)
    return np.where(volume > 200, 0.8 * volume, volume + 20).astype(np.float32), np.linalg.inv(motion)


@pytest.mark.parametrize(
    ("shift", "degrees"), [((0.0, 0.0, 0.0), 0.0), ((2.0, -1.0, 0.5), 1.0), ((-5.0, 3.0, 4.0), -3.0)]
)
def test_a_known_motion_is_found(head: phantom.Phantom, shift: tuple[float, float, float], degrees: float) -> None:
    synthetic, truth = moved(shift, degrees)
    found = align(head.ct, synthetic, head.body, GRID)
    points = np.argwhere(head.body) @ AFFINE[:3, :3].T + AFFINE[:3, 3]

    def displaced(matrix: np.ndarray) -> np.ndarray:
        return points @ matrix[:3, :3].T + matrix[:3, 3]

    assert np.linalg.norm(displaced(found.matrix) - displaced(truth), axis=1).mean() < 0.5
    expected = np.linalg.norm(displaced(truth) - points, axis=1).mean()
    assert found.displacement == pytest.approx(expected, abs=0.5)
    assert found.rotation == pytest.approx(abs(degrees), abs=0.4)
    assert found.shift == pytest.approx((displaced(truth) - points).mean(axis=0), abs=0.5)
    if not degrees:
        assert align(head.ct, synthetic, head.body, GRID).displacement == found.displacement  # the same twice


def test_the_refinement_brings_it_back(head: phantom.Phantom) -> None:
    synthetic, _ = moved((4.0, -3.0, 2.0), 2.0)
    before = np.abs(synthetic - head.ct)[head.body].mean()
    still, _ = moved((0.0, 0.0, 0.0), 0.0)
    floor = np.abs(still - head.ct)[head.body].mean()
    found = align(head.ct, synthetic, head.body, GRID, fine=True)
    after = np.abs(apply(found, synthetic, GRID) - head.ct)[head.body].mean()
    assert before > 1.5 * floor and after < 1.25 * floor


def test_what_cannot_be_registered_says_why(head: phantom.Phantom) -> None:
    nothing, few = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    few[20:23, 20:23, 20:23] = True
    hole = head.ct.copy()
    hole[head.body] = np.nan
    for synthetic, mask, reason in (
        (head.ct, nothing, "the mask is empty"),
        (head.ct, few, "the mask has fewer than 500 voxels of 4 mm"),
        (hole, head.body, "a value in the mask is not finite"),
        (np.zeros(SHAPE), head.body, "a volume is constant in the mask"),
    ):
        found = align(head.ct, synthetic, mask, GRID)
        assert found.reason == reason and math.isnan(found.displacement)
        np.testing.assert_array_equal(found.matrix, np.eye(4))
