"""Grids: what they accept, how far apart two of them are, and that they survive JSON exactly."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from medcyclegan.io.grid import Grid


def test_distance_is_the_largest_at_a_corner() -> None:
    grid = Grid((11, 5, 3), np.diag([2.0, 1, 1, 1]))
    stretched = Grid((11, 5, 3), np.diag([2.1, 1, 1, 1]))
    assert grid.distance(stretched) == pytest.approx(10 * 0.1)
    assert not grid.matches(stretched)
    assert grid.matches(Grid((11, 5, 3), np.diag([2.00001, 1, 1, 1])))
    assert not grid.matches(Grid((11, 5, 4), np.diag([2.0, 1, 1, 1])))


def test_spacing_of_an_oblique_grid() -> None:
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[:3, :3] = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    ) @ np.diag([0.5, 0.7, 3])
    np.testing.assert_allclose(Grid((4, 4, 4), affine).spacing, [0.5, 0.7, 3])


def test_json_keeps_every_bit() -> None:
    random = np.random.default_rng(0)
    grid = Grid((4, 5, 6), np.vstack([random.normal(size=(3, 4)), [0, 0, 0, 1]]))
    again = Grid.from_dict(json.loads(json.dumps(grid.to_dict())))
    assert again.shape == grid.shape and np.array_equal(again.affine, grid.affine)


@pytest.mark.parametrize(
    ("shape", "affine"),
    [((4, 4), np.eye(4)), ((4, 0, 4), np.eye(4)), ((4, 4, 4), np.zeros((4, 4))), ((4, 4, 4), np.full((4, 4), np.nan))],
)
def test_nonsense_is_refused(shape: Any, affine: Any) -> None:
    with pytest.raises(ValueError, match="grid"):
        Grid(shape, affine)


def test_the_affine_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Grid((2, 2, 2), np.eye(4)).affine[0, 0] = 5


def test_shear_is_the_largest_cosine() -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    assert Grid((2, 2, 2), affine).shear == 0
    affine[1, 2] = 4  # 3-4-5: the third axis leans against the second by a cosine of 4 / 5
    assert Grid((2, 2, 2), affine).shear == pytest.approx(0.8)
