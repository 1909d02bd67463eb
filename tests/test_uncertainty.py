"""Uncertainty maps: their numbers, and whether they find faults that were planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import rankdata
from torch import nn

from medcyclegan import phantom
from medcyclegan.inference.sliding_window import SlidingWindow, translate_volume
from medcyclegan.inference.uncertainty import combined, cycle_residual, spread, structure_disagreement
from medcyclegan.io.reader import read_volume
from medcyclegan.transforms.pipeline import Preparation, prepare

SHAPE = (16, 17, 18)


def noise(seed: int) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.0).astype(np.float32)


def test_spread_is_the_standard_deviation_in_hu() -> None:
    parts = [noise(seed) for seed in range(5)]
    mean = np.mean(parts, axis=0, dtype=np.float32)
    np.testing.assert_allclose(spread(mean, parts, 4095.0), np.std(parts, axis=0) * 4095 / 2, rtol=1e-3, atol=1e-2)
    same = np.full(SHAPE, 0.3, np.float32)
    assert not spread(same, [same, same], 4095.0).any()
    # Members that agree with each other and not with what is delivered: 0.2 of [-1, 1] is 409.5 HU.
    np.testing.assert_allclose(spread(same, [same + np.float32(0.2)] * 3, 4095.0), 409.5, rtol=1e-4)
    with pytest.raises(ValueError, match="at least one"):
        spread(same, [], 4095.0)


def test_cycle_residual_is_a_share_of_the_window() -> None:
    body = np.zeros(SHAPE, bool)
    body[4:9] = True
    residual = cycle_residual(np.full((1, *SHAPE), -1, np.float32), np.full((1, *SHAPE), 0.5, np.float32), body)
    assert (residual[body] == 0.75).all() and not residual[~body].any()


def test_structure_disagrees_where_edges_do_and_not_where_brightness_does() -> None:
    image, body = noise(0), np.ones(SHAPE, bool)
    assert structure_disagreement(image[None], image, body).max() < 1e-6
    # Inverted contrast, the same edges.
    assert structure_disagreement(image[None], -0.5 * image + 0.2, body).max() < 1e-3
    other = image.copy()
    other[8:12, 8:12, 8:12] = noise(1)[8:12, 8:12, 8:12]
    found = structure_disagreement(image[None], other, body)
    assert found[9:11, 9:11, 9:11].mean() > 10 * found[:4].mean()
    assert found.min() >= 0 and found.max() <= 1


def test_combined_weighs_maps_of_any_unit_alike() -> None:
    body = np.ones(SHAPE, bool)
    a, b = np.abs(noise(0)), np.abs(noise(1))
    together = combined({"a": a, "b": b}, body)
    np.testing.assert_allclose(together, combined({"a": 1000 * a, "b": 0.01 * b}, body), rtol=1e-4)
    assert np.array_equal(combined({"a": np.zeros(SHAPE, np.float32)}, body), np.zeros(SHAPE))


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a voxel of a fault has a higher score than one of none (Mann and Whitney 1947)."""
    ranks, count = rankdata(score), int(positive.sum())
    rest = positive.size - count
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * rest))


def blurring(gain: float, lopsided: float) -> nn.Module:
    """A translation that can be told: blurs a little, more to one side than to the other, and scales."""
    network = nn.Conv2d(1, 1, 3, padding=1, padding_mode="replicate")
    kernel = torch.tensor([0.05 + lopsided, 0.9, 0.05 - lopsided])
    with torch.no_grad():
        network.weight.copy_(gain * (kernel[:, None] * torch.tensor([0.05, 0.9, 0.05]))[None, None])
        network.bias.zero_()
    return network.eval().requires_grad_(False)


def faulty(hu: np.ndarray, body: np.ndarray, spacing: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The sCT with one fault planted, and where it is: voxels that it changed."""
    random = np.random.default_rng(7)
    depth = ndimage.distance_transform_edt(body, sampling=spacing)
    bone = kind in ("lesion removed", "patch shifted")
    place = np.argwhere((hu > 300) & (depth > 6) if bone else depth > 30)
    center = place[random.integers(len(place))]
    grid = np.ogrid[tuple(slice(0, n) for n in hu.shape)]
    distance = sum(((g - c) * s) ** 2 for g, c, s in zip(grid, center, spacing, strict=True))
    ball = body & (distance < {"lesion inserted": 12, "lesion removed": 12}.get(kind, 20) ** 2)
    changed = {
        "lesion inserted": hu + 400,
        "lesion removed": np.minimum(hu, 40),  # a piece of bone becomes soft tissue
        "patch shifted": np.roll(hu, (2, 2), (0, 1)),
        "offset": hu + 150,
    }[kind]
    result = np.where(ball, changed, hu)
    return result, np.abs(result - hu) > 50


def test_planted_faults_are_found(tmp_path: Path) -> None:
    """Per voxel, over the body: AUROC of the combined map at least 0.9 for every kind of fault.

    Networks that are known exactly, so that what is tested are the maps and not a training.
    """
    spacing = (5.0, 5.0, 6.0)
    cohort = phantom.write_cohort(tmp_path / "p", seed=1, train_mr=1, train_ct=1, test=1, spacing_mm=spacing)
    case = prepare([read_volume(cohort.test_mr[0])], [Preparation("MR", spacing, mr_inverted=True)])
    image = case.image[0]
    there, back = blurring(0.8, 0.02), blurring(1 / 0.8, 0.0)

    def run(network: Any, image: np.ndarray, body: np.ndarray) -> np.ndarray:
        return translate_volume(network, image[None], body, SlidingWindow(image.shape[:2]))[0]

    plain = np.where(case.body, run(there, image, case.body), -1).astype(np.float32)
    members = [plain, run(there, image[::-1], case.body[::-1])[::-1]]
    table = {}
    for kind in ("lesion inserted", "lesion removed", "patch shifted", "offset"):
        hu, fault = faulty((plain + 1) / 2 * 4095 - 1024, case.body, np.array(spacing), kind)
        delivered = np.clip((hu + 1024) / 4095 * 2 - 1, -1, 1).astype(np.float32)
        maps = {
            "spread": spread(delivered, members, 4095.0),
            "cycle": cycle_residual(case.image, run(back, delivered, case.body)[None], case.body),
            "structure": structure_disagreement(case.image, delivered, case.body),
        }
        maps["combined"] = combined(maps, case.body)
        table[kind] = {name: round(auroc(values[case.body], fault[case.body]), 3) for name, values in maps.items()}
    assert all(row["combined"] >= 0.9 for row in table.values()), table
