"""Augmentation: movements in millimeters, intensities of MR only, everything a function of the seed."""

from __future__ import annotations

import numpy as np
import pytest

from medcyclegan.data.augment import Augmentation


def disk(shape: tuple[int, ...], center: tuple[float, ...], spacing: tuple[float, ...], radius: float) -> np.ndarray:
    """(1, *shape): 1 within `radius` mm of the center, smoothly to -1 outside; the center in voxels."""
    index = np.indices(shape, dtype=float)
    squared = sum(((x - c) * s) ** 2 for x, c, s in zip(index, center, spacing, strict=True))
    return (2 / (1 + np.exp((np.sqrt(squared) - radius) * 2)) - 1).astype(np.float32)[None]


def centroid(patch: np.ndarray) -> np.ndarray:
    weight = patch[0] + 1
    return np.array([(x * weight).sum() for x in np.indices(weight.shape)]) / weight.sum()


def test_nothing_asked_nothing_changed() -> None:
    patch = disk((20, 24), (9, 12), (1, 1), 5)
    moved, body = Augmentation(spacing=(1, 1))(patch, patch > 0, seed=4)
    assert np.array_equal(moved, patch) and np.array_equal(body, patch > 0)


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    patch = disk((20, 24), (9, 12), (1, 1), 5)
    vary = Augmentation(spacing=(1, 1), rotate=20, scale=0.1, translate=2, bias_field=0.3, gamma=0.3, noise=0.05)
    first, again, other = (vary(patch, patch > 0, seed=s)[0] for s in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 3.0)])
def test_rotation_keeps_distances_in_millimeters(spacing: tuple[float, float]) -> None:
    shape = (81, 81) if spacing[1] == 1 else (81, 41)
    middle = (np.array(shape) - 1) / 2
    offset = np.array([20.0, 0.0])  # mm to the right of the middle
    patch = disk(shape, tuple(middle + offset / spacing), spacing, 6)
    angles = []
    for seed in range(12):
        moved, body = Augmentation(spacing=spacing, rotate=40)(patch, patch > 0, seed)
        found = (centroid(moved) - middle) * spacing
        assert np.linalg.norm(found) == pytest.approx(20, abs=0.5)
        assert body.sum() == pytest.approx((patch > 0).sum(), rel=0.1)
        angles.append(np.degrees(np.arctan2(found[1], found[0])))
    assert max(np.abs(angles)) <= 41 and max(angles) > 10 and min(angles) < -10


def test_translation_is_in_millimeters_and_uncovers_background() -> None:
    patch = np.full((1, 21, 21), 0.5, np.float32)
    shifts = []
    for seed in range(20):
        moved, body = Augmentation(spacing=(2.0, 2.0), translate=8.0)(patch, patch > 0, seed)
        assert moved.min() >= -1 - 1e-6
        empty = (~body[0]).all(axis=1).sum()
        assert empty <= 4  # 8 mm are four voxels
        shifts.append(int(empty))
        assert np.allclose(moved[0][~body[0]], -1, atol=1.5 / 2 + 1e-6)
    assert max(shifts) >= 3


def test_resize_jitter_enlarges_and_crops() -> None:
    patch = disk((40, 40), (19.5, 19.5), (1, 1), 8)
    areas = [
        Augmentation(spacing=(1, 1), resize_jitter=1.25)(patch, patch > 0, seed)[1].sum() / (patch > 0).sum()
        for seed in range(6)
    ]
    assert np.mean(areas) == pytest.approx(1.25**2, rel=0.05)


def test_intensity_changes_stay_inside_the_body_and_the_range() -> None:
    patch = disk((32, 32), (16, 16), (1, 1), 10) * 0.6
    body = np.hypot(*(np.indices((32, 32)) - 16))[None] < 11
    vary = Augmentation(spacing=(1, 1), bias_field=0.5, gamma=0.4, noise=0.1)
    varied, _ = vary(patch, body, seed=0)
    assert np.array_equal(varied[~body], patch[~body])
    assert varied.min() >= -1 and varied.max() <= 1
    assert np.abs(varied - patch)[body].mean() > 0.02


def test_inverted_mr_is_varied_as_the_scan_was() -> None:
    """A bias field multiplies the scan: bright stays within the field's factor, and black stays black."""
    body = np.ones((1, 32, 32), bool)
    black = np.full((1, 32, 32), -1.0, np.float32)
    vary = {
        name: Augmentation(spacing=(1, 1), bias_field=0.5, inverted=name == "inverted")
        for name in ("plain", "inverted")
    }
    assert np.allclose(vary["plain"](black, body, 0)[0], -1)
    assert np.allclose(vary["inverted"](-black, body, 0)[0], 1)
    gray = np.full((1, 32, 32), 0.2, np.float32)
    plain, inverted = vary["plain"](gray, body, 3)[0], vary["inverted"](-gray, body, 3)[0]
    assert np.allclose(plain, -inverted, atol=1e-6) and plain.std() > 0.01


def test_boxes_move_too() -> None:
    patch = disk((24, 24, 12), (12, 12, 6), (1, 1, 2), 7)
    moved, body = Augmentation(spacing=(1.0, 1.0, 2.0), rotate=15, scale=0.1)(patch, patch > 0, seed=5)
    assert moved.shape == patch.shape and body.sum() == pytest.approx((patch > 0).sum(), rel=0.35)
    assert not np.array_equal(moved, patch)


def test_nothing_falls_into_the_gap_below_the_floor() -> None:
    """With a floor of -0.5, fat at the floor stays at or above it however the field brightens the scan."""
    body = np.ones((1, 32, 32), bool)
    body[..., :4] = False
    patch = np.where(body, np.float32(-0.5), np.float32(-1))  # the brightest of an inverted scan
    patch[..., 20:] = 0.25
    for seed in range(5):
        vary = Augmentation(spacing=(1, 1), bias_field=0.5, gamma=0.3, noise=0.1, inverted=True, floor=-0.5)
        varied, _ = vary(patch, body, seed)
        assert varied[body].min() >= -0.5 and varied.max() <= 1
        assert (varied[~body] == -1).all() and np.abs(varied - patch)[body].max() > 0.05
    black = np.where(body, np.float32(1), np.float32(-1))
    field_only = Augmentation(spacing=(1, 1), bias_field=0.5, inverted=True, floor=-0.5)
    assert np.allclose(field_only(black, body, 0)[0][body], 1)
