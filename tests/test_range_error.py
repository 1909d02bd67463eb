"""Path lengths against lengths worked out on paper: slabs at any angle, spheres, and tilted, flipped grids."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from medcyclegan.errors import InputError
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
    synthetic[:, 8, :] = 500  # one plane of 1 mm, 1.5 instead of 1, in front of the targets
    target = np.zeros(shape, bool)
    target[4, 2, 1] = target[4, 9, 1] = True
    found = range_error(
        reference, synthetic, np.ones(shape, bool), grid, target=target, angles=(0, 180), calibration=LINEAR
    )
    # the voxel behind the plane sees it from the front only, the voxel before it from the back only
    assert found.map["wepl"] == pytest.approx([0.25, 0.25])
    assert found.per_angle["wepl"][0.0][0] == pytest.approx(0.25)


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
