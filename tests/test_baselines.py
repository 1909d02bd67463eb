"""What needs no network, graded: the best constant and the best table are the best, and undefined where they are."""

from __future__ import annotations

import numpy as np
import pytest

from medcyclegan.report.baselines import Baselines, mean_of

RANDOM = np.random.default_rng(3)
# Mostly soft tissue, some dense bone: mean and median lie far apart.
HU = np.where(RANDOM.random((8, 9, 10)) < 0.8, RANDOM.normal(40, 20, (8, 9, 10)), RANDOM.normal(900, 100, (8, 9, 10)))
INSIDE = RANDOM.random(HU.shape) < 0.7


def test_the_constant_is_the_median_inside_the_mask_and_no_other_is_better() -> None:
    found = Baselines(200.0)
    outside = HU.copy()
    outside[~INSIDE] = -1000  # must not count
    found.add(outside.astype(np.float64), INSIDE, None)
    hu = HU[INSIDE]
    assert mean_of(found.constant, "mae") == pytest.approx(np.abs(hu - np.median(hu)).mean())
    others = [float(np.abs(hu - value).mean()) for value in np.linspace(-1024, 3071, 4096)]
    assert found.constant["mae"][0] <= min(others)
    assert mean_of(found.constant, "me") == pytest.approx(np.median(hu) - hu.mean())
    bone = hu[hu > 200]
    assert mean_of(found.constant, "mae_bone") == pytest.approx((bone - np.median(hu)).mean())
    assert found.table == {} and mean_of(found.table, "mae") is None


def test_the_table_is_made_of_each_case_and_a_voxel_without_mr_gets_the_constant() -> None:
    levels = np.digitize(HU, [200.0])
    mr = np.where(levels == 1, 5.0, 100.0)
    mr[0] = np.nan
    found = Baselines(None)
    found.add(HU, INSIDE, mr)
    hu, of_bone, unseen = HU[INSIDE], levels[INSIDE] == 1, np.isnan(mr[INSIDE])
    guess = np.where(of_bone, np.median(hu[of_bone & ~unseen]), np.median(hu[~of_bone & ~unseen]))
    guess[unseen] = np.median(hu)
    assert mean_of(found.table, "mae") == pytest.approx(np.abs(guess - hu).mean())
    assert "mae_bone" not in found.table  # where the evaluation did not say what bone is, nothing is said of it


def test_means_are_over_the_cases_and_an_empty_mask_adds_none() -> None:
    found = Baselines(200.0)
    found.add(HU, INSIDE, None)
    found.add(2 * HU, INSIDE, None)
    found.add(HU, np.zeros_like(INSIDE), None)
    assert found.cases == 2
    assert mean_of(found.constant, "mae") == pytest.approx(1.5 * found.constant["mae"][0])
