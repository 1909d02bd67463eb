"""Ensembles: who is a member, and how members become one."""

from __future__ import annotations

import numpy as np
import pytest

from medcyclegan import InputError
from medcyclegan.inference.ensemble import Ensemble, fused, members

IMAGE = np.random.default_rng(0).uniform(-1, 1, (6, 5, 4)).astype(np.float32)
BODY = IMAGE > -0.9


def test_every_combination_is_a_member_once() -> None:
    asked = []

    def translate(image: np.ndarray, body: np.ndarray, plane: str) -> np.ndarray:
        asked.append((plane, bool(np.array_equal(image, IMAGE)), bool(np.array_equal(body, BODY))))
        return image

    ensemble = Ensemble(("axial", "sagittal"), flips=True)
    found = list(members([(translate, "axial"), (translate, "coronal")], IMAGE, BODY, ensemble))
    assert [name for name, _ in found] == [
        f"{number} {plane}{flip}" for number in (1, 2) for plane in ("axial", "sagittal") for flip in ("", " mirrored")
    ]
    # A mirrored volume is shown and the identity's result comes back unmirrored.
    assert asked[:2] == [("axial", True, True), ("axial", False, False)]
    assert all(np.array_equal(values, IMAGE) for _, values in found)
    assert [n for n, _ in members([(translate, "coronal")], IMAGE, BODY, Ensemble())] == ["1 coronal"]


def test_mirroring_is_of_left_and_right() -> None:
    def first_half(image: np.ndarray, body: np.ndarray, plane: str) -> np.ndarray:
        return np.where(np.arange(6)[:, None, None] < 3, image, 0)

    plain, mirrored = (v for _, v in members([(first_half, "axial")], IMAGE, BODY, Ensemble(flips=True)))
    assert np.array_equal(plain[:3], IMAGE[:3]) and not plain[3:].any()
    assert np.array_equal(mirrored[3:], IMAGE[3:]) and not mirrored[:3].any()


def test_mean_and_median_voxel_by_voxel() -> None:
    values = [np.full((2, 2, 2), v, np.float32) for v in (0.0, 0.1, 0.8)]
    np.testing.assert_allclose(fused(values, "mean"), 0.3, atol=1e-6)
    np.testing.assert_allclose(fused(values, "median"), 0.1, atol=1e-6)
    assert np.array_equal(values[0], np.zeros((2, 2, 2)))  # the members are left alone
    assert np.array_equal(fused([IMAGE], "mean"), IMAGE)


def test_unknown_planes_and_fusions_are_refused() -> None:
    with pytest.raises(InputError, match=r"axial, coronal, sagittal"):
        Ensemble(("axial", "transverse"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="once"):
        Ensemble(("axial", "axial"))
    with pytest.raises(InputError, match="mean or median"):
        Ensemble(fuse="max")  # type: ignore[arg-type]
