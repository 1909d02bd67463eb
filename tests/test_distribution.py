"""Unpaired distances: zero for one distribution, large for another, and never called more than they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medcyclegan import phantom
from medcyclegan.errors import InputError
from medcyclegan.evaluation.distribution import FEATURES, compare_distributions, slice_features, squared_mmd
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import read_volume
from medcyclegan.io.writer import write_volume


def test_mmd_worked_by_hand() -> None:
    # standardized by y = (0, 2): x = (1, -1), y = (-1, 1) with d = 1 and the kernel (xy + 1)^3
    x, y = np.array([[2.0], [0.0]]), np.array([[0.0], [2.0]])
    kid, mmd = squared_mmd(x, y)
    # unlike pairs: (1 * -1 + 1)^3 = 0 on both sides; crossed: 0, 8, 8, 0, whose mean is 4
    assert kid == pytest.approx(0 + 0 - 2 * 4)
    # squared distances 4 within; crossed 4, 0, 0, 4 with the median 2: exp(-2) and means of exp(-2), 1, 1, exp(-2)
    assert mmd == pytest.approx(2 * np.exp(-2) - (1 + np.exp(-2)))


def test_sets_of_one_distribution_are_near_and_others_far() -> None:
    random = np.random.default_rng(0)
    x, y, z = random.normal(size=(3, 200, 10))
    same = squared_mmd(x, y)
    other = squared_mmd(z + 0.5, y)
    assert abs(same[0]) < 0.1 * other[0] and abs(same[1]) < 0.1 * other[1]
    with pytest.raises(ValueError):
        squared_mmd(x[:1], y)


def test_features_do_not_depend_on_the_axis_order() -> None:
    affine = np.diag([3.0, 3.0, 6.0, 1.0])
    affine[:3, 3] = -88.5, -103.5, -60
    ct = phantom.sample(phantom.head(3), (60, 70, 20), affine)
    grid = Grid(ct.shape, ct.affine)
    features = slice_features(ct.ct, grid)
    assert features.shape[1] == FEATURES and len(features) > 10
    assert features[:, :32].sum(axis=1) == pytest.approx(1)
    turned = ct.ct.transpose(2, 0, 1)[::-1]
    affine = ct.affine @ np.array([[0, 1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 19], [0, 0, 0, 1.0]])
    np.testing.assert_allclose(slice_features(turned, Grid(turned.shape, affine)), features, rtol=1e-4, atol=1e-4)


def test_a_worse_set_is_farther_and_the_result_is_marked(cohort: phantom.Cohort, tmp_path: Path) -> None:
    real = cohort.train_ct[0].parent
    for path in cohort.train_ct:
        volume = read_volume(path)
        grid = Grid(tuple(volume.shape[1:]), volume.affine.numpy())
        dim = np.where(volume.numpy()[0] > 0, 0.4 * volume.numpy()[0], volume.numpy()[0])
        write_volume(tmp_path / "dim" / path.name, dim.astype(np.float32), grid)
    near = compare_distributions(real, real)
    far = compare_distributions(tmp_path / "dim", real, tmp_path / "out")
    assert far["distances"]["kid"] > near["distances"]["kid"]
    assert far["distances"]["mmd"] > near["distances"]["mmd"]
    assert near["distances"]["wasserstein_hu"] == 0 < far["distances"]["wasserstein_hu"]
    assert "no substitute for paired scores" in far["warning"] and far["unpaired"] is True
    assert json.loads((tmp_path / "out" / "distribution.json").read_text()) == far
    ramp = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
    write_volume(tmp_path / "bad" / "a.nii.gz", ramp, Grid((10, 10, 10), np.eye(4)))
    with pytest.raises(InputError, match="prediction a: no air was found"):
        compare_distributions(tmp_path / "bad", real)
    with pytest.raises(InputError, match="nowhere"):
        compare_distributions(tmp_path / "nowhere", real)
