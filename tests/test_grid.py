"""Grids: what they accept, how far apart two of them are, and that they survive JSON exactly."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from axis_orders import ORDERS, affine_of

from medcyclegan.io.grid import SAME_MM, Grid, reordered


def test_distance_is_the_largest_at_a_corner() -> None:
    grid = Grid((11, 5, 3), np.diag([2.0, 1, 1, 1]))
    stretched = Grid((11, 5, 3), np.diag([2.1, 1, 1, 1]))
    assert grid.distance(stretched) == pytest.approx(10 * 0.1)
    assert not grid.matches(stretched)
    assert grid.matches(Grid((11, 5, 3), np.diag([2.00001, 1, 1, 1])))
    assert not grid.matches(Grid((11, 5, 4), np.diag([2.0, 1, 1, 1])))


def test_a_grid_matches_up_to_the_tolerance() -> None:
    grid, moved = Grid((2, 2, 2), np.eye(4)), []
    for along_y in (0.5, 0.75, 9e-4, 2e-3):
        affine = np.eye(4)
        affine[1, 3] = along_y
        moved.append(Grid((2, 2, 2), affine))
    assert [grid.distance(other) for other in moved[:2]] == [0.5, 0.75]
    assert grid.matches(moved[0], 0.5) and not grid.matches(moved[1], 0.5)
    assert grid.matches(moved[2]) and not grid.matches(moved[3])  # a micrometer, if nothing else is said
    assert Grid((1, 1, 1), np.eye(4)).matches(Grid((1, 1, 1), np.diag([2.0, 2, 2, 1])))  # the same one voxel


@pytest.mark.parametrize("degrees", [0.0, 25.0])
def test_reordered_voxels_lie_where_they_lay(degrees: float) -> None:
    """For all 48 orders onto another: what is at a place in the world is the place itself."""
    shape, like_order = (3, 4, 5), ORDERS[13]
    for order in ORDERS:
        grid = Grid(shape, affine_of(order, degrees, (1.0, 1.0, 1.0)))
        places = np.moveaxis(np.indices(shape), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        # The same places in the order of axes `like_order`, whose first voxel is one of the eight corners.
        turned = affine_of(like_order, degrees, (1.0, 1.0, 1.0))
        offsets = (places.reshape(-1, 3) - grid.affine[:3, 3]) @ np.linalg.inv(turned[:3, :3]).T
        turned[:3, 3] = grid.affine[:3, 3] + turned[:3, :3] @ offsets.min(axis=0)
        extent = np.rint(np.ptp(offsets, axis=0)).astype(int) + 1
        like = Grid((int(extent[0]), int(extent[1]), int(extent[2])), turned)
        expected = np.moveaxis(np.indices(like.shape), 0, -1) @ like.affine[:3, :3].T + like.affine[:3, 3]
        for axis in range(3):
            found = reordered(places[..., axis], grid, like)
            assert found is not None
            np.testing.assert_allclose(found, expected[..., axis], atol=1e-9)
        elsewhere = Grid(like.shape, like.affine + np.eye(4, 4, 1) * [0, 0, 0, 2 * SAME_MM])
        assert reordered(places[..., 0], grid, elsewhere) is None
    same = Grid(shape, np.eye(4))
    array = np.zeros(shape)
    assert reordered(array, same, same) is array
    oblique = np.eye(4)
    oblique[:3, :2] = [[0.7, 0.9], [0.1, 0.5], [0.2, 0.3]]  # both run most along x
    assert reordered(array, Grid(shape, oblique), same) is None


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
