"""Path lengths against lengths worked out on paper: slabs at any angle, spheres, and tilted, flipped grids."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from axis_orders import rotation

from medcyclegan.errors import InputError
from medcyclegan.evaluation import range_error as range_error_module
from medcyclegan.evaluation.range_error import (
    ANGLES,
    Curve,
    load_calibration,
    path_lengths,
    range_error,
    toward_source,
)
from medcyclegan.io.grid import Grid

# HU to a relative stopping power that can be inverted in the head.
LINEAR = {"relative_stopping_power": Curve((-1000.0, 3000.0), (0.0, 4.0), "the test")}


def test_gantry_angles_are_those_of_iec_61217_for_a_supine_patient() -> None:
    # front, the patient's left, back, the patient's right; RAS+ has right, front and top as positive
    for angle, direction in ((0, [0, 1, 0]), (90, [-1, 0, 0]), (180, [0, -1, 0]), (270, [1, 0, 0])):
        assert toward_source(angle).tolist() == direction
    assert toward_source(45) == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5), 0])


@pytest.mark.parametrize("angle", [0, 30, 45, 77.3, 90, 120, 180, 225, 270, 333])
@pytest.mark.parametrize("axes", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_a_uniform_slab_is_crossed_for_its_thickness_over_the_cosine(angle: float, axes: tuple[int, ...]) -> None:
    """Water of 2 x 3 mm voxels fills the volume: the path ends at the face that is reached first."""
    shape, spacing = (40, 30, 3), np.array([2.0, 3.0, 5.0])
    grid = Grid(shape, np.diag([*(spacing * axes), 1.0]))
    target = np.array([[11, 22, 1], [0, 0, 0], [39, 29, 2]])
    direction = toward_source(angle)
    expected = []
    for voxel in target:
        # distance from the voxel's center to the faces of the volume in mm along the grid's own axes
        along = direction * axes
        distances = [
            ((n - 0.5 - v) if d > 0 else (v + 0.5)) * s / abs(d)
            for n, v, s, d in zip(shape, voxel, spacing, along, strict=True)
            if abs(d) > 1e-12
        ]
        expected.append(min(distances))
    found = path_lengths(np.ones((1, *shape)), grid, target, direction)
    assert found[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("angle", [0, 20, -35, 160])
def test_an_inner_slab_is_exact_to_rounding(angle: float) -> None:
    """A slab of 1.5 between y = 20 and 32 mm in nothing: 1.5 x 12 mm / cos(angle), whatever is beside it."""
    shape = (200, 50, 1)
    volume = np.zeros((1, *shape))
    volume[0, :, 10:16] = 1.5  # voxels of 2 mm, whose faces lie at 20 and 32 mm from the volume's edge
    grid = Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    front, back = np.array([[100, 2, 0]]), np.array([[100, 40, 0]])
    towards = abs(math.cos(math.radians(angle)))
    start = front if abs(angle) < 90 else back
    assert path_lengths(volume, grid, start, toward_source(angle))[0, 0] == pytest.approx(18 / towards, abs=1e-9)


def sphere(radius: float, n: int, spacing: float, fine: int = 5) -> np.ndarray:
    """Part of every voxel that a centered sphere fills, from `fine`^3 points in each."""
    points = (np.arange(n * fine) + 0.5) / fine * spacing - n * spacing / 2
    x, y, z = np.meshgrid(points, points, points, indexing="ij", sparse=True)
    inside = (x**2 + y**2 + z**2 <= radius**2).astype(np.float32)
    return inside.reshape(n, fine, n, fine, n, fine).mean(axis=(1, 3, 5)).astype(np.float64)


@pytest.mark.parametrize("spacing", [2.0, 1.0])
def test_a_sphere_is_crossed_for_its_chord(spacing: float) -> None:
    """What is left is that a voxel at the surface is filled in part: less than a quarter of a voxel."""
    n, radius = 49 if spacing == 2 else 91, 40.0
    grid = Grid((n, n, n), np.diag([spacing, spacing, spacing, 1.0]))
    part = sphere(radius, n, spacing, 5 if spacing == 2 else 3)
    middle = n // 2
    targets = np.array([[middle, middle, middle], [middle + 8, middle - 5, middle + 6]])
    offsets = (targets - middle) * spacing
    errors = []
    for angle in range(0, 360, 15):
        direction = toward_source(angle)
        found = path_lengths(1.3 * part[None], grid, targets, direction)[0]
        for length, offset in zip(found, offsets, strict=True):
            along = float(offset @ direction)
            # from an inner point to the surface of the sphere
            chord = -along + math.sqrt(along**2 + radius**2 - float(offset @ offset))
            errors.append(length - 1.3 * chord)
    assert np.abs(errors).max() < 0.25 * spacing
    assert abs(np.mean(errors)) < 0.05 * spacing


def oblique(shape: tuple[int, int, int], order: tuple[int, int, int] = (0, 1, 2)) -> Grid:
    """Voxels of 1.5 x 3 x 2 mm, turned about an oblique axis, flipped along the second; no entry of the affine is 0."""
    affine = np.eye(4)
    affine[:3, :3] = (rotation(40) @ np.diag([1.5, -3.0, 2.0]))[:, order]
    affine[:3, 3] = 31, -77, 120
    return Grid(shape, affine)


def walked(volume: np.ndarray, grid: Grid, target: np.ndarray, direction: np.ndarray) -> float:
    """The integral from all the places where one line crosses any plane between voxels: slow and exact."""
    step = np.linalg.solve(grid.affine[:3, :3], direction)
    planes = [(np.arange(n + 1) - 0.5 - t) / s for n, t, s in zip(grid.shape, target, step, strict=True) if s]
    places = np.unique(np.concatenate([[0.0], *planes]).clip(min=0))
    total = 0.0
    for begin, end in itertools.pairwise(places):
        voxel = np.rint(target + (begin + end) / 2 * step).astype(int)
        if (voxel >= 0).all() and (voxel < grid.shape).all():
            total += float(volume[tuple(voxel)]) * (end - begin)
    return total


BLOB = (13, 9, 11)


def blob() -> tuple[np.ndarray, np.ndarray]:
    """Values without any symmetry, and an irregular body with a hole."""
    random = np.random.default_rng(4)
    i, j, k = np.indices(BLOB)
    body = ((i - 5) / 5.5) ** 2 + ((j - 4 + 0.15 * i - 0.7) / 3.6) ** 2 + ((k - 6 + 0.2 * j) / 4.8) ** 2 < 1
    body[4:6, 4:6, 5:8] = False
    return random.uniform(-600, 1500, BLOB), body


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("angle", [0.0, 37.0, 90.0, 214.0, 301.0])
def test_any_grid_and_any_body_as_walked_line_by_line(angle: float, order: tuple[int, int, int]) -> None:
    values, body = blob()
    quantity = np.where(body, values / 1000 + 1, 0)
    grid, targets = oblique(BLOB, order), np.argwhere(body)[::29]
    direction = toward_source(angle)
    expected = [walked(quantity, grid, target, direction) for target in targets]
    found = path_lengths(np.stack([quantity, 2 * quantity]), grid, targets, direction)
    assert len(targets) > 8 and max(expected) > 10
    np.testing.assert_allclose(found, [expected, 2 * np.array(expected)], rtol=0, atol=1e-9)


def test_a_sphere_on_a_turned_grid_is_crossed_for_its_chord() -> None:
    """On an oblique grid of 1 x 2 x 1.5 mm: what a wrong direction in voxels would miss by centimeters."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(-65) @ np.diag([1.0, 2.0, 1.5])
    shape, radius = (65, 33, 43), 30.0
    grid = Grid(shape, affine)
    offsets = (np.indices(shape).reshape(3, -1).T - np.array([32, 16, 21])) @ affine[:3, :3].T
    inside = ((offsets**2).sum(axis=1) <= radius**2).reshape(shape)
    target = np.array([[40, 14, 27]])
    offset = (target[0] - [32, 16, 21]) @ affine[:3, :3].T
    for angle in range(0, 360, 20):
        along = float(offset @ toward_source(angle))
        chord = -along + math.sqrt(along**2 + radius**2 - float(offset @ offset))
        found = path_lengths(inside[None].astype(float), grid, target, toward_source(angle))[0, 0]
        assert found == pytest.approx(chord, abs=1.5), angle  # of 14 to 46 mm; a step at the surface is a voxel


def test_rays_walked_some_at_a_time_are_those_walked_together(monkeypatch: pytest.MonkeyPatch) -> None:
    values, body = blob()
    arguments = (np.where(body, values, 0)[None], oblique(BLOB), np.argwhere(body), toward_source(66))
    together = path_lengths(*arguments)
    for size in (1, 7, len(arguments[2]) - 1):
        monkeypatch.setattr(range_error_module, "_TOGETHER", size)
        assert np.array_equal(path_lengths(*arguments), together)


def test_every_number_is_of_the_differences_at_all_angles_and_targets() -> None:
    """Means, percentiles and maps worked out from the path lengths of the two volumes, voxel by voxel."""
    values, body = blob()
    synthetic = values + np.random.default_rng(5).normal(80, 200, BLOB)
    target = body & (np.random.default_rng(6).random(BLOB) < 0.2)
    grid, angles = oblique(BLOB), (10.0, 130.0, 275.0)
    found = range_error(values, synthetic, body, grid, target=target, angles=angles, calibration=LINEAR)
    curve = LINEAR["relative_stopping_power"]
    reference, other = (np.where(body, curve(volume), 0)[None] for volume in (values, synthetic))
    voxels = np.array([(i, j, k) for i in range(13) for j in range(9) for k in range(11) if target[i, j, k]])
    signed = np.array(
        [
            path_lengths(other, grid, voxels, toward_source(angle))[0]
            - path_lengths(reference, grid, voxels, toward_source(angle))[0]
            for angle in angles
        ]
    )
    size = np.abs(signed)
    ranked = np.sort(size.ravel())
    place = 0.95 * (ranked.size - 1)
    p95 = ranked[int(place)] + (place - int(place)) * (ranked[int(place) + 1] - ranked[int(place)])
    assert found.scores["wepl_mean_mm"].value == pytest.approx(size.mean(), rel=1e-12)
    assert found.scores["wepl_p95_mm"].value == pytest.approx(p95, rel=1e-12)
    assert p95 < 0.95 * ranked[-1] and not np.allclose(size.mean(axis=0), size.mean(axis=0)[::-1])
    np.testing.assert_allclose(found.map["wepl"], size.mean(axis=0), rtol=1e-12)
    assert np.array_equal(found.targets, voxels)
    for angle, row in zip(angles, signed, strict=True):
        expected = (np.abs(row).mean(), np.percentile(np.abs(row), 95), row.mean())
        assert found.per_angle["wepl"][angle] == pytest.approx(expected, rel=1e-12)
    assert set(found.scores) == {"wepl_mean_mm", "wepl_p95_mm"}


def test_the_center_is_that_of_mass_in_millimeters() -> None:
    """Of a horseshoe on anisotropic voxels, whose center of mass lies in the gap."""
    shape = (12, 7, 3)
    body = np.zeros(shape, bool)
    body[1:11, 1, 1] = body[1:11, 5, 1] = body[9:11, 1:6, 1] = True
    grid = Grid(shape, np.diag([1.0, 6.0, 2.0, 1.0]))
    voxels = np.argwhere(body)
    middle = voxels.mean(axis=0)
    assert not body[tuple(np.rint(middle).astype(int))]
    distances = {tuple(v): math.hypot((v[0] - middle[0]) * 1, (v[1] - middle[1]) * 6, 0) for v in voxels}
    expected = min(distances, key=lambda v: distances[v])
    in_voxels = min(distances, key=lambda v: math.dist(v, middle))
    assert expected != in_voxels and expected != tuple(voxels[len(voxels) // 2])
    zero = np.zeros(shape)
    assert range_error(zero, zero, body, grid, angles=(0,), calibration=LINEAR).targets.tolist() == [list(expected)]
    # and of a turned grid, on which the axes of the voxels are not those of the world: the same voxel
    there = Grid(shape, np.block([[rotation(75) @ np.diag([1.0, 6.0, 2.0]), np.ones((3, 1))], [0, 0, 0, 1]]))
    assert range_error(zero, zero, body, there, angles=(0,), calibration=LINEAR).targets.tolist() == [list(expected)]


def test_the_error_of_a_known_change_is_known() -> None:
    """Everything 10 % denser: every path is 10 % longer, so |difference| at the center of a box is that of the path."""
    shape = (21, 31, 5)
    grid = Grid(shape, np.diag([-2.0, 2.0, 3.0, 1.0]))
    reference, synthetic = np.zeros(shape), np.full(shape, 100.0)
    body = np.ones(shape, bool)
    found = range_error(reference, synthetic, body, grid, angles=(0, 90, 180, 270), calibration=LINEAR)
    # half of 31 voxels of 2 mm at 0 and 180 degrees, half of 21 at 90 and 270
    assert [value[2] for value in found.per_angle["wepl"].values()] == pytest.approx([3.1, 2.1, 3.1, 2.1])
    assert found.scores["wepl_mean_mm"].value == pytest.approx(2.6)
    assert found.scores["wepl_p95_mm"].value == pytest.approx(3.1)
    assert found.targets.tolist() == [[10, 15, 2]]
    lower = range_error(synthetic, reference, body, grid, angles=(0,), calibration=LINEAR)
    assert lower.per_angle["wepl"][0.0][2] == pytest.approx(-3.1)


def test_the_map_has_the_mean_over_angles_at_every_target_voxel() -> None:
    shape = (9, 11, 3)
    grid = Grid(shape, np.eye(4))
    reference = np.zeros(shape)
    synthetic = reference.copy()
    synthetic[:5, 8, :] = 500  # one plane of 1 mm, 1.5 instead of 1 in front of the first target
    synthetic[5:, 8, :] = 1000  # and 2 instead of 1 behind the second
    target = np.zeros(shape, bool)
    target[4, 2, 1] = target[6, 9, 1] = True
    found = range_error(
        reference, synthetic, np.ones(shape, bool), grid, target=target, angles=(0, 180), calibration=LINEAR
    )
    # The first voxel sees the plane from the front only, the second from the back only.
    assert found.targets.tolist() == [[4, 2, 1], [6, 9, 1]]
    assert found.map["wepl"] == pytest.approx([0.25, 0.5])
    assert found.per_angle["wepl"][0.0] == pytest.approx((0.25, 0.475, 0.25))
    assert found.per_angle["wepl"][180.0] == pytest.approx((0.5, 0.95, 0.5))


def test_what_is_outside_the_body_counts_nothing() -> None:
    shape = (15, 15, 3)
    grid = Grid(shape, np.eye(4))
    body = np.zeros(shape, bool)
    body[4:11, 4:11] = True
    reference, synthetic = np.zeros(shape), np.zeros(shape)
    synthetic[~body] = 2000  # a table
    assert range_error(reference, synthetic, body, grid, angles=ANGLES).scores["wepl_mean_mm"].value == 0
    synthetic[~body] = np.nan
    assert range_error(reference, synthetic, body, grid, angles=ANGLES).scores["wepl_mean_mm"].value == 0


def test_undefined_cases_say_why() -> None:
    shape = (5, 5, 5)
    grid, body = Grid(shape, np.eye(4)), np.ones(shape, bool)
    volume = np.zeros(shape)
    hole = np.where(np.indices(shape)[0] == 2, np.nan, 0.0)
    for found, reason in (
        (range_error(volume, volume, ~body, grid), "the mask is empty"),
        (range_error(volume, volume, body, grid, target=~body), "the target is empty"),
        (range_error(volume, hole, body, grid), "the synthetic CT is not a finite number everywhere in the mask"),
    ):
        assert all(math.isnan(score.value) and score.reason == reason for score in found.scores.values())


def test_the_packages_calibration_is_the_published_one() -> None:
    curves = load_calibration()
    stopping, electrons = curves["relative_stopping_power"], curves["relative_electron_density"]
    # matRad's table, and between its entries a straight line
    assert stopping(np.array([-1024, 200, 300, 2048, 5000])) == pytest.approx([0.00324, 1.2, 1.2, 2.5306, 2.5306])
    assert stopping(np.array([0.0]))[0] == pytest.approx(0.00324 + 1024 / 1224 * (1.2 - 0.00324))
    # Thomas: 1 + HU / 1000 up to 100 HU, 1 + HU / 1950 from 195 HU
    assert electrons(np.array([-1024, -500, 0, 50])) == pytest.approx([0, 0.5, 1, 1.05])
    assert electrons(np.array([195, 1000, 3071])) == pytest.approx([1.1, 1 + 1000 / 1950, 1 + 3071 / 1950])
    assert all("19" in curve.source or "20" in curve.source for curve in curves.values())


def test_a_calibration_can_be_replaced_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    curve = {"hu": [-1000, 0, 2000], "value": [0, 1, 2], "source": "our scanner"}
    own.write_text(json.dumps({"relative_stopping_power": curve}))
    (loaded,) = load_calibration(own).values()
    assert loaded(np.array([-500, 1000])) == pytest.approx([0.5, 1.5])
    for wrong in (
        {"stopping": curve},
        {"relative_stopping_power": {**curve, "hu": [0, -1000, 2000]}},
        {"relative_stopping_power": {**curve, "value": [0, 1]}},
        {"relative_stopping_power": {**curve, "value": [0, -1, 2]}},
        {"relative_stopping_power": {"hu": [0, 1], "value": [0, 1]}},
        [],
    ):
        own.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=r"own\.json"):
            load_calibration(own)
    own.write_text("hu,value")
    with pytest.raises(InputError, match="not JSON"):
        load_calibration(own)
    with pytest.raises(InputError, match="there is no calibration"):
        load_calibration(tmp_path / "absent.json")
