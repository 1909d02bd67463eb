"""Standardization: what each way is invariant to, and the formulas worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcyclegan.errors import InputError
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.standardization import (
    STANDARDIZATIONS,
    decile_shares,
    fit_landmarks,
    standard_scaler,
    white_stripe,
)

SHAPE, SPACING = (24, 24, 24), (6.0, 6.0, 6.0)
BODY = (((np.moveaxis(np.indices(SHAPE), 0, -1) - 11.5) / 11) ** 2).sum(-1) < 1


def skewed(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(3.0, 100.0, SHAPE).astype(np.float32)


LANDMARKS = fit_landmarks([decile_shares(skewed(seed), BODY) for seed in (1, 2)])


@pytest.mark.parametrize("name", STANDARDIZATIONS)
def test_a_gain_changes_nothing(name: str) -> None:
    first, second = (
        standard_scaler(volume, BODY, SPACING, name, landmarks=LANDMARKS).apply(volume)
        for volume in (skewed(), skewed() * np.float32(7.5))
    )
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_zscore_by_hand() -> None:
    values = skewed()[BODY].astype(float)
    scaler = standard_scaler(skewed(), BODY, SPACING, "zscore")
    assert scaler.low == pytest.approx(values.mean() - 3 * values.std(), rel=1e-5)
    assert scaler.high == pytest.approx(values.mean() + 3 * values.std(), rel=1e-5)


def test_deciles_and_landmarks_by_hand() -> None:
    # 0 to 1000 evenly: the percentiles 10 and 90 are 100 and 900, the decile d lies at (100 d - 100) / 800.
    ramp = np.linspace(0, 1000, 1001, dtype=np.float32).reshape(7, 11, 13)
    whole = np.ones(ramp.shape, bool)
    expected = (np.arange(1, 10) * 100 - 100) / 800
    np.testing.assert_allclose(decile_shares(ramp, whole, (10, 90)), expected, atol=1e-6)
    rows = [np.linspace(0.1, 0.9, 9), np.linspace(0.2, 0.95, 9)]
    np.testing.assert_allclose(fit_landmarks(rows), (rows[0] + rows[1]) / 2)


def test_nyul_takes_deciles_to_the_landmarks_whatever_bent_them() -> None:
    # Another scanner: a monotone change of contrast. Percentiles alone cannot undo it, the deciles do.
    volume = skewed(5)
    bent = (volume / 300) ** np.float32(1.6) * 900
    for given in (volume, bent.astype(np.float32)):
        scaled = standard_scaler(given, BODY, SPACING, "nyul", landmarks=LANDMARKS).apply(given)
        np.testing.assert_allclose(
            np.percentile(scaled[BODY], range(10, 100, 10)), 2 * np.array(LANDMARKS) - 1, atol=2e-3
        )

    def difference(name: str) -> float:
        first, second = (
            standard_scaler(v, BODY, SPACING, name, landmarks=LANDMARKS).apply(v.astype(np.float32))
            for v in (volume, bent)
        )
        return float(np.abs(first - second)[BODY].mean())

    assert difference("nyul") < 0.2 * difference("percentile")


def test_a_bent_scaler_goes_there_and_back() -> None:
    scaler = Scaler(0.0, 100.0, landmarks=((20.0, 0.5), (60.0, 0.75)))
    given = np.array([-5.0, 0.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 130.0], np.float32)
    expected = np.array([-1.0, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0], np.float32)
    np.testing.assert_allclose(scaler.apply(given), expected, atol=1e-6)
    np.testing.assert_allclose(scaler.undo(expected), np.clip(given, 0, 100), atol=1e-4)
    np.testing.assert_allclose(scaler.apply(torch.from_numpy(given)).numpy(), expected, atol=1e-6)
    assert Scaler.from_dict(scaler.to_dict()) == scaler
    turned = Scaler(0.0, 100.0, True, -0.5, ((20.0, 0.5),))
    np.testing.assert_allclose(turned.apply(given[[1, 3, 7]]), [1.0, 0.25, -0.5], atol=1e-6)
    np.testing.assert_allclose(turned.undo(np.array([1.0, 0.25, -0.5], np.float32)), [0, 20, 100], atol=1e-4)
    with pytest.raises(InputError, match="landmarks rise"):
        Scaler(0.0, 100.0, landmarks=((60.0, 0.5), (20.0, 0.75)))


def test_the_stripe_is_the_commonest_tissue_deep_inside() -> None:
    rng = np.random.default_rng(0)
    depth_voxels = 11 * (1 - np.sqrt((((np.moveaxis(np.indices(SHAPE), 0, -1) - 11.5) / 11) ** 2).sum(-1)))
    deep = np.where(rng.random(SHAPE) < 0.7, 400.0, 250.0)
    # The bright shell holds more voxels than the tissue below it and must not win.
    volume = np.where(depth_voxels < 3, 900.0, deep) + rng.normal(0, 8, SHAPE)
    assert (volume[BODY] > 800).mean() > 0.5
    assert white_stripe(volume, BODY, SPACING) == pytest.approx(400, abs=6)
    scaler = standard_scaler(volume, BODY, SPACING, "whitestripe")
    assert (scaler.low, scaler.high) == (0.0, pytest.approx(1200, abs=18))


def test_what_cannot_be_standardized_is_told() -> None:
    with pytest.raises(InputError, match="needs 9 landmarks"):
        standard_scaler(skewed(), BODY, SPACING, "nyul")
    with pytest.raises(InputError, match="deciles of the training volumes coincide"):
        fit_landmarks([[0.0] * 5 + [0.2, 0.4, 0.6, 0.8]])
    with pytest.raises(InputError, match="above 0"):
        white_stripe(skewed() - 5000, BODY, SPACING)
    # Few gray levels: deciles that coincide are left out instead of making a map without slope.
    coarse = np.rint(skewed() / 200) * 200
    scaler = standard_scaler(coarse, BODY, SPACING, "nyul", landmarks=LANDMARKS)
    assert 0 < len(scaler.landmarks) < 9
