"""The metrics against the challenges' own numbers, against numbers worked by hand, and against the plain definition."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medcyclegan.errors import InputError
from medcyclegan.evaluation.case import METRICS, score_case
from medcyclegan.evaluation.metrics import moments as moments_module
from medcyclegan.evaluation.metrics.histogram import wasserstein
from medcyclegan.evaluation.metrics.mae import mae, me, rmse
from medcyclegan.evaluation.metrics.ms_ssim import _halved, ms_ssim
from medcyclegan.evaluation.metrics.psnr import psnr
from medcyclegan.evaluation.metrics.score import Score, within
from medcyclegan.evaluation.metrics.similarity import gradient_similarity, mutual_information, ncc
from medcyclegan.evaluation.metrics.ssim import ssim
from medcyclegan.evaluation.metrics.tissue import TISSUE_METRICS, Tissues, tissue_scores
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


# Numbers of the organizers' own programs (SynthRAD2023/metrics at 3200007, SynthRAD2025/evaluation at 17cac47):
# MAE (the same in both), PSNR and SSIM of 2023, PSNR and MS-SSIM of 2025.
ORGANIZERS = {
    "offset25": (25.0, 44.134359267516665, 0.999744643909187, 44.286277948488, 0.9996848664461361),
    "noise80": (39.77537048969072, 38.84336730266795, 0.9899130491244384, 38.99528598363928, 0.9994462443994181),
    "single_voxel_mask": (64.0, 35.96955996127968, 0.9994063319580321, 36.121478642251, 0.999970390210613),
    "out_of_clip_range": (
        75.45062822164948,
        24.772977831288895,
        0.9360469952343099,
        24.744990395682255,
        0.9831031837692813,
    ),
}


def organizers_case(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reference, synthetic CT and mask: whole HU, made from the recipe that came with the numbers."""
    shape = (40, 36, 28)
    x, y, z = (2 * i / (n - 1) - 1 for i, n in zip(np.indices(shape), shape, strict=True))
    r2 = (x / 0.85) ** 2 + (y / 0.80) ** 2 + (z / 0.95) ** 2
    noise = [np.random.RandomState(seed).random_sample(shape) - 0.5 for seed in (2023, 77)]
    body = r2 < 1
    reference = np.where(body, 40 + 150 * x - 100 * y + 60 * z, -1000)
    reference[(r2 >= 0.64) & (r2 < 0.81)] = 1100
    reference[(x - 0.2) ** 2 + (y + 0.1) ** 2 + z**2 < 0.04] = -950
    reference = np.rint(reference + 40 * noise[0])
    synthetic = reference + 25 if name == "offset25" else np.rint(reference + 160 * noise[1])
    if name == "single_voxel_mask":
        body = np.zeros(shape, bool)
        body[20, 18, 14] = True
    if name == "out_of_clip_range":
        reference[18:22, 16:20, 12:16], reference[:2] = 5000, -2000
        synthetic[18:22, 16:20, 10:14], synthetic[25:28, 16:20, 12:16] = 4200, -3000
    return reference.astype(np.int16), synthetic.astype(np.int16), body


@pytest.mark.parametrize("name", ORGANIZERS)
def test_equals_numbers_of_the_organizers_that_need_no_files(name: str) -> None:
    mae, *rest = ORGANIZERS[name]
    reference, synthetic, mask = organizers_case(name)
    of_2023, of_2025 = (score_case(reference, synthetic, mask, protocol(f"synthrad{year}")) for year in (2023, 2025))
    found = [of_2023["psnr"], of_2023["ssim"], of_2025["psnr"], of_2025["ms_ssim"]]
    assert [score.value for score in found] == pytest.approx(rest, abs=1e-9, rel=0)
    assert of_2023["mae"].value == of_2025["mae"].value == pytest.approx(mae, abs=1e-9, rel=0)


def box(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32).reshape(1, 1, -1)


def test_errors_worked_by_hand() -> None:
    reference, synthetic = box(-1000, 0, 250, 251, 5000), box(-990, -30, 150, 271, 4000)
    mask = box(1, 1, 1, 1, 0)
    # 10, -30, -100, 20 inside the mask
    assert mae(reference, synthetic, mask, LIMITS).value == 40
    assert me(reference, synthetic, mask, LIMITS).value == -25
    assert rmse(reference, synthetic, mask, LIMITS).value == pytest.approx(math.sqrt((100 + 900 + 10000 + 400) / 4))
    # without a mask the last voxel counts, unclipped although it exceeds every protocol's range
    assert mae(reference, synthetic, None, LIMITS).value == (160 + 1000) / 5
    assert me(reference, synthetic, None, LIMITS).value == (-100 - 1000) / 5


def test_tissues_worked_by_hand() -> None:
    reference, synthetic = box(-1000, -200, 0, 200, 201, 5000), box(-990, -230, 20, 150, 301, 4000)
    mask = box(1, 1, 1, 1, 1, 0)
    found = {name: score.value for name, score in tissue_scores(reference, synthetic, mask, Tissues()).items()}
    # a voxel at a threshold is soft tissue: errors 10 | -30, 20, -50 | 100
    assert found == {
        "mae_air": 10, "me_air": 10, "share_air": 0.2,
        "mae_soft": pytest.approx(100 / 3), "me_soft": -20, "share_soft": 0.6,
        "mae_bone": 100, "me_bone": 100, "share_bone": 0.2,
    }  # fmt: skip
    wide = tissue_scores(reference, synthetic, mask, Tissues(-1500, 300))
    assert (wide["share_air"].value, wide["share_soft"].value, wide["share_bone"].value) == (0, 1, 0)
    assert wide["mae_bone"].reason == "the reference has no bone in the mask"
    assert tuple(found) == TISSUE_METRICS
    assert score_case(reference, synthetic, mask, protocol("native"))["mae_bone"].value == 100
    for thresholds in ((200, 200), (300, 200), (math.nan, 200)):
        with pytest.raises(InputError, match="the lower first"):
            Tissues(*thresholds)


def test_correlation_worked_by_hand() -> None:
    reference, synthetic = box(1, 2, 3, 4, 99), box(2, 4, 6, 8, -99)
    mask = box(1, 1, 1, 1, 0)
    assert ncc(reference, synthetic, mask, LIMITS).value == pytest.approx(1, abs=1e-15)
    assert ncc(reference, -synthetic, mask, LIMITS).value == pytest.approx(-1, abs=1e-15)
    # of (1, 2, 3) and (1, 3, 2)
    assert ncc(box(1, 2, 3), box(1, 3, 2), None, LIMITS).value == pytest.approx(0.5)
    assert ncc(reference, box(7, 7, 7, 7, 0), mask, LIMITS).reason == "the synthetic CT is constant in the mask"
    lines = np.random.default_rng(0).normal(size=(200, 3, 3, 3))
    assert all(abs(ncc(line, sign * 3 * line, None, LIMITS).value) <= 1 for line in lines for sign in (1, -1))
    noise = np.full((3, 3, 3), 0.1)
    assert "constant" in str(ncc(noise, np.arange(27.0).reshape(3, 3, 3), None, LIMITS).reason)


def test_mutual_information_worked_by_hand() -> None:
    # four values, each in its own bin: two bits, whatever values they are turned into
    reference = np.repeat([-1000.0, 0.0, 500.0, 2000.0], 8).reshape(4, 4, 2)
    turned = np.repeat([700.0, -900.0, 2500.0, 100.0], 8).reshape(4, 4, 2)
    assert mutual_information(reference, turned, None, LIMITS).value == pytest.approx(2)
    assert mutual_information(reference, np.zeros_like(reference), None, LIMITS).value == 0
    # independent: every pair of (half, half) occurs equally often
    a, b = np.zeros((2, 2, 2, 2))
    a[0], b[:, 0] = 1000, 1000
    assert mutual_information(a, b, None, LIMITS).value == 0
    # a half of the voxels are told apart: H(1/2) = 1 bit of the reference's 2
    merged = np.where(reference < 100, -500.0, 1000.0)
    assert mutual_information(reference, merged, None, LIMITS).value == pytest.approx(1)
    # values beyond the range fall into the outermost bins
    assert mutual_information(reference, np.where(reference < 100, -9e9, 9e9), None, LIMITS).value == pytest.approx(1)


@pytest.mark.parametrize(
    ("pair", "bits"), [((-1024, -961), 0), ((-961, -960), 1), ((3006, 3008), 1), ((3008, 3071), 0), ((3008, 9000), 0)]
)
def test_mutual_information_has_64_bins_of_the_range(pair: tuple[float, float], bits: float) -> None:
    # of 4095 / 64 = 63.98 HU: the first ends at -960.02, the last begins at 3007.02
    values = np.repeat(pair, 4).astype(float).reshape(2, 2, 2)
    assert mutual_information(values, values, None, LIMITS).value == pytest.approx(bits, abs=1e-12)


def test_gradient_similarity_is_that_of_prewitts_operator() -> None:
    """Voxel by voxel from the 27 neighbors, inside an irregular mask that touches two faces."""
    random = np.random.default_rng(7)
    reference, synthetic = random.uniform(-1500, 3500, (2, 9, 8, 7))
    i, j, k = np.indices(reference.shape)
    mask = (i + j + k < 13) & (j > 1) & (random.random(reference.shape) < 0.9)
    x, y = (np.where(mask, np.clip(volume, *LIMITS) + 1024, 0) for volume in (reference, synthetic))

    def magnitude(volume: np.ndarray, at: tuple[int, ...]) -> float:
        around = volume[tuple(slice(n - 1, n + 2) for n in at)]
        ends = [np.take(around, (2, 0), axis=axis) for axis in range(3)]
        return math.hypot(*(np.take(e, 0, a).mean() / 2 - np.take(e, 1, a).mean() / 2 for a, e in enumerate(ends)))

    c, found = 170 * (4095 / 255) ** 2, []
    for at in itertools.product(range(1, 8), range(1, 7), range(1, 6)):
        if mask[at]:
            a, b = magnitude(x, at), magnitude(y, at)
            found.append((2 * a * b + c) / (a * a + b * b + c))
    expected = pytest.approx(np.mean(found), abs=1e-12)
    assert gradient_similarity(reference, synthetic, mask, LIMITS).value == expected


def test_gradient_similarity_worked_by_hand() -> None:
    i = np.arange(6.0)[:, None, None] * np.ones((6, 6, 6))
    reference, synthetic = 100 * i, 40 * i
    # ramps along x: the gradients are 100 and 40 HU per voxel wherever there is one
    c = 170 * (4095 / 255) ** 2
    expected = (2 * 100 * 40 + c) / (100**2 + 40**2 + c)
    inner = np.zeros((6, 6, 6))
    inner[2:4, 2:4, 2:4] = 1
    inside = np.ones((6, 6, 6))
    assert gradient_similarity(reference, synthetic, inside, LIMITS).value == pytest.approx(expected)
    assert gradient_similarity(reference, reference + 300, inside, LIMITS).value == 1
    # an offset is an edge where the mask ends, since everything outside is blanked
    assert gradient_similarity(reference, reference + 300, inner, LIMITS).value < 1
    rim = np.zeros((6, 6, 6))
    rim[0] = 1
    assert "outermost voxels" in str(gradient_similarity(reference, reference, rim, LIMITS).reason)


def test_wasserstein_worked_by_hand() -> None:
    assert wasserstein(box(0, 10, 20), box(20, 0, 10), None, LIMITS).value == 0
    assert wasserstein(box(0, 10, 20), box(25, 5, 15), None, LIMITS).value == 5
    # sorted pairs (0, 1), (0, 3), (10, 4), the last voxel outside
    assert wasserstein(box(0, 10, 0, 99), box(3, 1, 4, -99), box(1, 1, 1, 0), LIMITS).value == pytest.approx(10 / 3)
    random = np.random.default_rng(8)
    a, b = random.normal(0, 300, (2, 9, 8, 7))
    from scipy.stats import wasserstein_distance

    assert wasserstein(a, b, None, LIMITS).value == pytest.approx(wasserstein_distance(a.ravel(), b.ravel()))
    assert wasserstein(a, b, None, LIMITS).value < mae(a, b, None, LIMITS).value


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
    mask = np.zeros(reference.shape, bool)
    mask[2:-2, 2:-2, 2:-2] = True
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
    assert [name for name, entry in PROTOCOLS.items() if entry.organizers] == ["synthrad2025"]
    assert protocol("synthrad2023").metrics == ("mae", "psnr", "ssim")
    assert protocol("synthrad2025").metrics == ("mae", "psnr", "ms_ssim")
    assert protocol("native").metrics == ("mae", "psnr", "ssim", "ms_ssim", "me", "mae_bone")
    with pytest.raises(InputError, match=r"synthrad2024.*native, synthrad2023, synthrad2025.*Did you mean"):
        protocol("synthrad2024")
