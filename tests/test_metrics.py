"""The metrics against the challenges' own numbers, against numbers worked by hand, and against the plain definition."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medcyclegan.errors import InputError
from medcyclegan.evaluation.evaluate import METRICS, score_case
from medcyclegan.evaluation.metrics import moments as moments_module
from medcyclegan.evaluation.metrics.mae import mae, mae_bone, me
from medcyclegan.evaluation.metrics.ms_ssim import _halved, ms_ssim
from medcyclegan.evaluation.metrics.psnr import psnr
from medcyclegan.evaluation.metrics.score import Score, within
from medcyclegan.evaluation.metrics.ssim import ssim
from medcyclegan.evaluation.protocol import PROTOCOLS, protocol

VECTORS = Path(__file__).parents[1].parent / "shared" / "metrics"
LIMITS = (-1024.0, 3071.0)
SPAN = 4095.0
C1, C2 = (0.01 * SPAN) ** 2, (0.03 * SPAN) ** 2


def vectors() -> list[Any]:
    if not (VECTORS / "vectors.json").exists():
        return [pytest.param(None, None, None, marks=pytest.mark.skip(reason=f"{VECTORS} is absent"))]
    cases = json.loads((VECTORS / "vectors.json").read_text())["image"]
    return [
        pytest.param(case, name, content[name], id=f"{case}-{name}")
        for case, content in cases.items()
        for name in ("synthrad2023", "synthrad2025")
    ]


@pytest.mark.parametrize(("case", "name", "expected"), vectors())
def test_equals_the_organizers_numbers(case: str, name: str, expected: dict[str, Any] | str) -> None:
    with np.load(VECTORS / "inputs.npz") as inputs:
        reference, synthetic = inputs[f"{case}__gt"], inputs[f"{case}__pred"]
        mask = inputs.get(f"{case}__mask", None)
    scores = score_case(reference, synthetic, mask, protocol(name))
    # One vector has no numbers at all: MS-SSIM without a mask raises, and took MAE and PSNR down with it.
    numbers = {"ms_ssim": expected} if isinstance(expected, str) else expected
    for metric, number in numbers.items():
        score = scores[metric]
        if str(number).startswith("raises") or number == "nan":
            assert math.isnan(score.value) and score.reason, metric
        elif number == "inf":
            assert score.value == math.inf, metric
        else:
            assert score.value == pytest.approx(number, abs=1e-9, rel=0), metric
            assert score.reason is None


def box(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32).reshape(1, 1, -1)


def test_errors_worked_by_hand() -> None:
    reference, synthetic = box(-1000, 0, 250, 251, 5000), box(-990, -30, 150, 271, 4000)
    mask = box(1, 1, 1, 1, 0)
    # 10, -30, -100, 20 inside the mask
    assert mae(reference, synthetic, mask, LIMITS).value == 40
    assert me(reference, synthetic, mask, LIMITS).value == -25
    # 250 HU is not above 250 HU
    assert mae_bone(reference, synthetic, mask, LIMITS).value == 20
    # without a mask the last voxel counts, unclipped although it exceeds every protocol's range
    assert mae(reference, synthetic, None, LIMITS).value == (160 + 1000) / 5
    assert me(reference, synthetic, None, LIMITS).value == (-100 - 1000) / 5
    assert mae_bone(reference, synthetic, None, LIMITS).value == 510


def test_errors_of_small_integers_do_not_wrap() -> None:
    reference, synthetic = np.full((2, 2, 2), -30000, np.int16), np.full((2, 2, 2), 30000, np.int16)
    assert mae(reference, synthetic, None, LIMITS).value == 60000
    assert me(reference, synthetic, None, LIMITS).value == 60000


def test_psnr_worked_by_hand() -> None:
    reference, synthetic = box(0, 100, 5000), box(3, 96, 6000)
    # 5000 and 6000 are clipped to 3071 and so equal; the mean square is (9 + 16 + 0) / 3
    expected = 10 * math.log10(4095**2 / (25 / 3))
    assert psnr(reference, synthetic, None, LIMITS).value == pytest.approx(expected, abs=1e-12)
    assert psnr(reference, synthetic, box(0, 0, 1), LIMITS) == Score(
        math.inf, "the two images are identical in the mask"
    )
    assert psnr(reference, synthetic, box(1, 0, 0), (-1024, 3000)).value == pytest.approx(
        20 * math.log10(4024 / 3), abs=1e-12
    )


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    reference, synthetic = np.full((9, 8, 7), 976.0), np.full((9, 8, 7), -524.0)
    x, y = 2000.0, 500.0
    expected = (2 * x * y + C1) / (x**2 + y**2 + C1)
    assert ssim(reference, synthetic, None, LIMITS).value == pytest.approx(expected, abs=1e-12)


def test_ssim_of_a_single_window_uses_sample_statistics() -> None:
    random = np.random.default_rng(1)
    reference, synthetic = random.uniform(-900, 900, (2, 7, 7, 7))
    x, y = reference.ravel() + 1024, synthetic.ravel() + 1024
    (vx, vxy), (_, vy) = np.cov(x, y, ddof=1)
    ux, uy = x.mean(), y.mean()
    expected = (2 * ux * uy + C1) * (2 * vxy + C2) / ((ux**2 + uy**2 + C1) * (vx + vy + C2))
    assert ssim(reference, synthetic, None, LIMITS).value == pytest.approx(expected, abs=1e-12)


def test_halving_averages_with_the_voxel_before_and_zero_before_the_first() -> None:
    line = np.array([2.0, 4.0, 6.0, 8.0, 10.0])
    weights = np.array([1.0, 5.0, 9.0])  # of (2, 0), (4, 6), (8, 10)
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = 5
        result = _halved(torch.from_numpy(line.reshape(shape)))
        # the two axes of one voxel are averaged with the zero before them: a factor of 1/4
        assert result.ravel() == pytest.approx(weights / 4)
    assert _halved(torch.ones(4, 4, 4))[1, 1, 1] == 1


def plain_maps(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Moments of all windows from cumulative sums, with no slab and no bounding box."""

    def mean(a: np.ndarray) -> np.ndarray:
        for axis in range(3):
            total = np.cumsum(np.insert(a, 0, 0, axis=axis), axis=axis)
            n = total.shape[axis]
            a = (np.take(total, range(7, n), axis) - np.take(total, range(n - 7), axis)) / 7
        return a

    ux, uy = mean(x), mean(y)
    return (
        ux,
        uy,
        *(343 / 342 * (mean(a * b) - ua * ub) for a, b, ua, ub in ((x, x, ux, ux), (y, y, uy, uy), (x, y, ux, uy))),
    )


def plain_scores(reference: np.ndarray, synthetic: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """SSIM and MS-SSIM by their definitions on whole maps, for volumes of at least 97 voxels per axis."""
    x = np.where(mask, np.clip(reference, *LIMITS), LIMITS[0]) - LIMITS[0]
    y = np.where(mask, np.clip(synthetic, *LIMITS), LIMITS[0]) - LIMITS[0]
    product, single = 1.0, math.nan
    for level, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        if level:
            for axis in range(3):
                x, y = ((a + np.roll(np.where(last(a, axis), 0, a), 1, axis)) / 2 for a in (x, y))
            x, y, mask = (a[::2, ::2, ::2] for a in (x, y, mask))
        ux, uy, vx, vy, vxy = plain_maps(x, y)
        chosen = mask[3:-3, 3:-3, 3:-3]
        if not level:
            s = (2 * ux * uy + C1) * (2 * vxy + C2) / ((ux**2 + uy**2 + C1) * (vx + vy + C2))
            single = float(s[chosen].mean())
        sx, sy = np.sqrt(np.maximum(0, vx)), np.sqrt(np.maximum(0, vy))
        luminance = np.maximum(0, (2 * ux * uy + C1) / (ux**2 + uy**2 + C1))
        contrast = np.maximum(0, (2 * sx * sy + C2) / (vx + vy + C2))
        structure = np.maximum(0, (vxy + C2 / 2) / (sx * sy + C2 / 2))
        product *= float(np.clip(((luminance * contrast * structure) ** weight)[chosen].mean(), 0, 1))
    return single, product


def last(a: np.ndarray, axis: int) -> np.ndarray:
    """True in the last plane along an axis."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return (np.arange(a.shape[axis]) == a.shape[axis] - 1).reshape(shape)


def test_slabs_and_bounding_box_give_what_the_whole_map_gives() -> None:
    random = np.random.default_rng(2)
    shape = (113, 98, 97)
    reference = random.uniform(-1500, 3500, shape)
    synthetic = reference + random.normal(0, 1500, shape)
    i, j, k = np.ogrid[:113, :98, :97]
    mask = (i - 62) ** 2 + (j - 45) ** 2 + (k - 50) ** 2 < 44**2
    single, multi = plain_scores(reference, synthetic, mask)
    assert ssim(reference, synthetic, mask, LIMITS).value == pytest.approx(single, abs=1e-10)
    assert ms_ssim(reference, synthetic, mask, LIMITS).value == pytest.approx(multi, abs=1e-10)
    assert multi < 0.99


def test_ms_ssim_repeats_the_border_of_small_volumes() -> None:
    random = np.random.default_rng(6)
    reference, synthetic = random.uniform(-900, 900, (2, 40, 97, 98))
    mask = np.ones(reference.shape, bool)
    padded = [np.pad(a, ((28, 29), (0, 0), (0, 0)), mode="edge") for a in (reference, synthetic, mask)]
    assert ms_ssim(reference, synthetic, mask, LIMITS).value == pytest.approx(plain_scores(*padded)[1], abs=1e-10)


def test_slab_size_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    reference, synthetic = random.uniform(-1000, 1000, (2, 20, 11, 9))
    mask = random.random((20, 11, 9)) < 0.3
    whole = ssim(reference, synthetic, mask, LIMITS).value
    monkeypatch.setattr(moments_module, "_SLAB", 3)
    assert ssim(reference, synthetic, mask, LIMITS).value == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_nothing_outside_the_mask_counts(name: str) -> None:
    random = np.random.default_rng(4)
    reference, synthetic = random.uniform(-1000, 1000, (2, 16, 15, 14))
    mask = np.zeros(reference.shape, np.uint8)
    mask[4:12, 4:12, 4:12] = 1
    score = METRICS[name](reference, synthetic, mask, LIMITS)
    spoiled, spoiled_too = np.where(mask, reference, np.nan), np.where(mask, synthetic, 1e30)
    assert METRICS[name](spoiled, spoiled_too, mask, LIMITS) == score
    assert math.isfinite(score.value)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_storage_type_does_not_matter(name: str, dtype: type) -> None:
    random = np.random.default_rng(5)
    reference, synthetic = random.integers(-1000, 1000, (2, 12, 11, 10))
    mask = np.ones(reference.shape, bool)
    expected = METRICS[name](reference.astype(np.float64), synthetic.astype(np.float64), mask, LIMITS)
    assert METRICS[name](reference.astype(dtype), synthetic.astype(dtype), mask, LIMITS) == expected


@pytest.mark.parametrize("name", METRICS)
def test_every_undefined_case_gives_its_reason(name: str) -> None:
    reference = np.full((8, 8, 8), 300.0)
    synthetic = reference + 10
    empty = METRICS[name](reference, synthetic, np.zeros((8, 8, 8)), LIMITS)
    assert math.isnan(empty.value) and empty.reason == "the mask is empty"
    synthetic[4, 4, 4] = np.nan
    hole = METRICS[name](reference, synthetic, np.ones((8, 8, 8)), LIMITS)
    assert math.isnan(hole.value)
    assert hole.reason == "the synthetic CT is not a finite number in 1 voxel(s) of the mask"
    with pytest.raises(ValueError, match=r"\(8, 8, 8\).*\(8, 8, 7\)"):
        METRICS[name](reference, synthetic[:, :, :7], None, LIMITS)


def test_reasons_of_one_metric_only() -> None:
    reference = np.zeros((8, 8, 6))
    assert "shorter than the window" in str(ssim(reference, reference, None, LIMITS).reason)
    assert "no voxel above 250 HU" in str(mae_bone(reference, reference, None, LIMITS).reason)
    assert "only inside a mask" in str(ms_ssim(reference, reference, None, LIMITS).reason)
    rim = np.zeros((8, 8, 8))
    rim[:3] = 1
    assert "3-voxel rim" in str(ssim(rim, rim, rim, LIMITS).reason)
    corner = np.zeros((100, 100, 100))
    corner[20:24, 20:24, 20:24] = 1
    # every second voxel, then every fourth: 16 voxels apart the corner is missed
    assert "level 4 of 5" in str(ms_ssim(corner, corner, corner, LIMITS).reason)


def test_within_shifts_clips_and_blanks() -> None:
    volume, inside = box(-3000, 0, 9000, 7), box(1, 1, 1, 0) > 0
    assert within(volume, inside, LIMITS).ravel().tolist() == [0, 1024, 4095, 0]


def test_a_score_is_never_silently_odd() -> None:
    for value, reason in ((math.nan, None), (math.inf, None), (1.0, "because"), (math.nan, "")):
        with pytest.raises(ValueError, match="reason"):
            Score(value, reason)


def test_protocols_are_those_of_the_challenges() -> None:
    ranges = {name: (entry.low, entry.high) for name, entry in PROTOCOLS.items()}
    assert ranges == {"native": (-1024, 3071), "synthrad2023": (-1024, 3000), "synthrad2025": (-1024, 3071)}
    assert protocol("synthrad2023").metrics == ("mae", "psnr", "ssim")
    assert protocol("synthrad2025").metrics == ("mae", "psnr", "ms_ssim")
    assert set(protocol("native").metrics) == set(METRICS)
    with pytest.raises(InputError, match=r"synthrad2024.*native, synthrad2023, synthrad2025.*Did you mean"):
        protocol("synthrad2024")
