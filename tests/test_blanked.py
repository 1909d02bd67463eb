"""Defaced volumes: the missing face is found, told, and not taken for body; noise and masks are left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medcyclegan.transforms.blanked import blanked_voxels
from medcyclegan.transforms.pipeline import Preparation, prepare

SHAPE, SPACING = (40, 44, 30), (5.0, 5.0, 6.0)
FACE = (slice(12, 28), slice(32, 44), slice(4, 18))


def noisy_head() -> tuple[np.ndarray, np.ndarray]:
    position = (np.moveaxis(np.indices(SHAPE), 0, -1) - (19.5, 21.5, 14.5)) / (15, 19, 13)
    body = (position**2).sum(-1) < 1
    rng = np.random.default_rng(0)
    noise = np.hypot(rng.normal(0, 12, SHAPE), rng.normal(0, 12, SHAPE))
    return np.where(body, 500.0, 0.0) + noise, body


def test_a_blanked_face_is_found_where_the_air_is_noise() -> None:
    volume, body = noisy_head()
    volume[FACE] = 0
    found = blanked_voxels(volume, body, SPACING)
    truth = np.zeros(SHAPE, bool)
    truth[FACE] = True
    assert found[truth].mean() > 0.95 and found[~truth].sum() == 0


def test_an_untouched_head_and_one_without_background_give_nothing() -> None:
    volume, body = noisy_head()
    assert not blanked_voxels(volume, body, SPACING).any()
    masked = np.where(body, volume, 0)
    masked[FACE] = 0
    assert not blanked_voxels(masked, body, SPACING).any()  # where all air is 0, a zero says nothing
    corner = volume.copy()
    corner[:6, :6] = 0  # what gradient correction leaves at the corners of the field of view
    assert not blanked_voxels(corner, body, SPACING).any()
    frame = volume.copy()
    frame[:3] = frame[-3:] = 0  # the same where the head fills the field of view
    frame[:, :3] = frame[:, -3:] = 0
    assert not blanked_voxels(frame, body, SPACING).any()
    quiet = np.maximum(volume - 6, 0)  # noise that a scanner's offset cuts off at 0
    quiet[FACE] = 0
    assert not blanked_voxels(quiet, body, SPACING).any()
    few = volume.copy()
    few[20:22, 40, 10] = 0
    assert not blanked_voxels(few, body, SPACING).any()


@pytest.mark.parametrize("exclude", [True, False])
def test_the_body_and_the_record_follow(exclude: bool) -> None:
    volume, body = noisy_head()
    volume[FACE] = 0
    given = MetaTensor(
        torch.from_numpy(volume.astype(np.float32))[None], affine=torch.diag(torch.tensor([*SPACING, 1]))
    )
    case = prepare([given], [Preparation("MR", SPACING, mr_exclude_blanked=exclude)], body)
    face = np.zeros(SHAPE, bool)
    face[FACE] = True
    milliliters = face.sum() * 0.15
    assert case.blanked_ml == (pytest.approx(milliliters, rel=0.05) if exclude else 0)
    assert case.body[face & body].mean() == (pytest.approx(0, abs=0.05) if exclude else 1)
    assert case.body[body & ~face].all()
