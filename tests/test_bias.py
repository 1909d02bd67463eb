"""N4: a known field is found again, and the unit stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medcyclegan.errors import InputError
from medcyclegan.transforms.bias import CorrectBiasd, correct_bias

SHAPE, SPACING = (40, 44, 36), (4.0, 4.0, 5.0)


def shaded() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two tissues in blobs under a strong field: the volume, the body, the truth."""
    index = np.moveaxis(np.indices(SHAPE), 0, -1)
    position = (index - (np.array(SHAPE) - 1) / 2) / (np.array(SHAPE) / 2)
    body = (position**2).sum(-1) < 0.8
    truth = np.where(np.sin(index / 2.5).prod(-1) > 0, 300.0, 500.0)
    field = np.exp(0.5 * position[..., 0] - 0.4 * position[..., 2] ** 2)
    noise = np.random.default_rng(0).normal(0, 5, SHAPE)
    return np.where(body, truth * field + noise, np.abs(noise)).astype(np.float32), body, truth


def test_a_field_is_removed_and_the_unit_stays() -> None:
    volume, body, truth = shaded()
    corrected = correct_bias(volume, body, SPACING, shrink=2)
    assert corrected.dtype == np.float32

    def unevenness(values: np.ndarray) -> float:
        ratio = np.log(values[body] / truth[body])
        return float(ratio.std())

    # The field alone varies by 0.23; what is left is mostly noise (5 of 400).
    assert unevenness(volume) > 0.2
    assert unevenness(corrected) < 0.06
    inside = volume[body] > 0
    assert np.log(corrected[body][inside]).mean() == pytest.approx(np.log(volume[body][inside]).mean(), abs=1e-4)


def test_the_same_twice_and_a_metatensor_stays_one() -> None:
    volume, body, _ = shaded()
    affine = torch.from_numpy(np.diag([*SPACING, 1.0]))
    data = {
        "image": MetaTensor(torch.from_numpy(volume)[None], affine=affine),
        "body": MetaTensor(torch.from_numpy(body.astype(np.uint8))[None], affine=affine),
    }
    result = CorrectBiasd("image", shrink=3)(data)["image"]
    assert isinstance(result, MetaTensor)
    torch.testing.assert_close(result.affine, affine)
    np.testing.assert_array_equal(result.numpy()[0], correct_bias(volume, body, SPACING, 3))
    np.testing.assert_array_equal(data["image"].numpy()[0], volume)


def test_nothing_to_correct_is_told() -> None:
    with pytest.raises(InputError, match="no value inside the body is above 0"):
        correct_bias(np.zeros(SHAPE, np.float32), np.ones(SHAPE, bool), SPACING, 2)
    with pytest.raises(ValueError, match="shrink"):
        correct_bias(np.ones(SHAPE, np.float32), np.ones(SHAPE, bool), SPACING, 0)
