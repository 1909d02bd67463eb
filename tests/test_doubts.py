"""Volumes that are not in HU, or not quite, are named; good ones are left alone."""

from __future__ import annotations

import numpy as np
import pytest

from medcyclegan import phantom
from medcyclegan.evaluation.doubts import difference_doubts, value_doubts


@pytest.fixture(scope="module")
def head() -> phantom.Phantom:
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    affine[:3, 3] = -94, -110, -60
    return phantom.sample(phantom.head(5), (48, 56, 32), affine)


def test_a_good_ct_raises_no_doubt(head: phantom.Phantom) -> None:
    for volume in (head.ct, np.rint(head.ct), np.where(head.body, head.ct, -3024)):
        assert value_doubts("reference", volume, head.body) == []
    assert difference_doubts(head.ct, head.ct + 300, head.body) == []
    # a mask of bone only, or of the airways, is nobody's mistake
    assert value_doubts("reference", head.ct, head.ct > 200) == []
    assert value_doubts("reference", head.ct, head.body & (head.ct < -800)) == []


def test_a_lost_or_doubled_intercept_is_named(head: phantom.Phantom) -> None:
    (doubt,) = value_doubts("reference", head.ct + 1024, head.body)
    assert doubt.startswith("reference: no value is below -200 HU") and "without its intercept" in doubt
    padded = head.ct + 1024
    padded[:2] = -1024  # what lies outside the scanner's circle
    (doubt,) = value_doubts("prediction", padded, head.body)
    assert doubt.startswith("prediction: the middle of the mask") and "without its intercept" in doubt
    (doubt,) = value_doubts("reference", head.ct - 1024, head.body)
    assert "applied twice" in doubt
    for offset, above in ((1024, "prediction"), (1000, "prediction"), (-1024, "reference")):
        (doubt,) = difference_doubts(head.ct, head.ct + offset, head.body)
        assert doubt.startswith(f"the {above} lies {abs(offset)} HU above")


def test_eight_bits_are_named(head: phantom.Phantom) -> None:
    grey = np.rint((head.ct + 1024) / 4095 * 255)
    (doubt,) = value_doubts("prediction", grey, head.body)
    assert "an 8-bit picture, not HU" in doubt
    (doubt,) = value_doubts("prediction", grey / 255, head.body)
    assert "a fraction, not HU" in doubt
    (doubt,) = value_doubts("prediction", grey / 127.5 - 1, head.body)
    assert "a network's output, not HU" in doubt
    stretched = grey / 255 * 4095 - 1024
    (doubt,) = value_doubts("prediction", stretched, head.body)
    assert "HU kept in 8 bits" in doubt and f"only {np.unique(stretched).size} different values" in doubt
    (doubt,) = value_doubts("prediction", np.rint(stretched), head.body)
    assert "HU kept in 8 bits" in doubt


def test_padding_that_was_stored_as_a_high_value_is_named(head: phantom.Phantom) -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, 48), np.linspace(-1, 1, 56), indexing="ij")
    padded = np.where((x**2 + y**2 > 1)[..., None], 3071, head.ct)
    (doubt,) = value_doubts("reference", padded, head.body)
    assert doubt.startswith("reference: 25 % of the voxels are at 3000 HU or above") and "padding" in doubt
    prosthesis = head.ct.copy()
    prosthesis[20:30, 20:30, 10:18] = 8000
    assert value_doubts("reference", prosthesis, head.body) == []
