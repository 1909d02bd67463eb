"""Pooled counts equal numpy's histogram of everything at once, and the agreement is that of the formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medcyclegan.report.density import DIFFERENCE_EDGES, HU_EDGES, HuDensity


def cohort() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    cases = []
    for n in (10, 14):
        ct = random.uniform(-1000, 1500, (n, 9, 8)).astype(np.float32)
        cases.append((ct, ct + random.normal(30, 80, ct.shape).astype(np.float32), random.random(ct.shape) < 0.5))
    return cases


def test_counts_are_those_of_all_voxels_at_once() -> None:
    density = HuDensity()
    for case in cohort():
        density.add(*case)
    ct, sct = (np.concatenate([case[n][case[2]] for case in cohort()]).astype(np.float64) for n in (0, 1))
    ends = [HU_EDGES[0], HU_EDGES[-1]]
    expected = np.histogram2d(ct, np.clip(sct, *ends), (HU_EDGES, HU_EDGES))[0]
    assert np.array_equal(density.joint, expected)
    agreement = np.histogram2d((ct + sct) / 2, sct - ct, (HU_EDGES, DIFFERENCE_EDGES))[0]
    assert np.array_equal(density.agreement, agreement)
    assert density.voxels == ct.size == density.joint.sum()
    assert density.bias == pytest.approx((sct - ct).mean())
    spread = 1.96 * np.std(sct - ct, ddof=1)
    assert density.limits_of_agreement == pytest.approx((density.bias - spread, density.bias + spread))


def test_every_voxel_is_counted_even_beyond_the_ends() -> None:
    density = HuDensity()
    ct = np.array([[[-3000.0, 0, 9000, 3076]]])
    density.add(ct, np.zeros_like(ct), np.ones(ct.shape, bool))
    assert density.joint.sum() == density.agreement.sum() == 4
    assert density.joint[0].sum() == 1 and density.joint[-1].sum() == 2
    # -3000 and 9000 lie beyond; 3076 is the very end, but its difference of -3076 lies beyond
    assert density.beyond == 3
    assert density.cases == [((-1500 + 0 + 4500 + 1538) / 4, (3000 - 9000 - 3076) / 4)]


def test_nothing_gives_nothing() -> None:
    density = HuDensity()
    density.add(np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), np.zeros((2, 2, 2), bool))
    assert density.voxels == 0 and not density.cases
    assert math.isnan(density.bias) and all(map(math.isnan, density.limits_of_agreement))
