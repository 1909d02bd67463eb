"""Label maps and surfaces: the organizers' numbers, shapes worked by hand, and what is reported of missing classes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcyclegan.errors import InputError
from medcyclegan.evaluation.metrics.surfaces import agreement, bone_scores
from medcyclegan.evaluation.segmentation import REGIONS, check_installed, label_scores, region_of

VECTORS = Path(__file__).parents[1].parent / "shared" / "metrics" / "vectors.json"


def labels() -> np.ndarray:
    """The recipe in the vectors' own words, `labels_recipe`."""
    i, j, k = np.ogrid[:32, :30, :20]
    result = np.zeros((32, 30, 20), np.int32)
    result[(i - 10) ** 2 + (j - 10) ** 2 + (k - 10) ** 2 <= 36] = 5
    result[(i - 22) ** 2 + (j - 20) ** 2 + ((k - 9) * 1.5) ** 2 <= 25] = 51
    result[4:9, 20:26, 4:15] = 2
    result[14:18, 22:27, 2:6] = 79
    result[26:30, 4:8, 12:18] = 30
    return result


def predicted(recipe: str) -> tuple[np.ndarray, np.ndarray]:
    """Reference and prediction of one vector."""
    gt = labels()
    i, j, k = np.ogrid[:32, :30, :20]
    if recipe == "identical":
        return gt, gt
    if recipe == "missing_class79_and_smaller_liver":
        pred = np.where((gt == 79) | (gt == 5), 0, gt)
        pred[((i - 11) ** 2 + (j - 10) ** 2 + (k - 10) ** 2 <= 25) & (pred == 0)] = 5
        return gt, pred
    if recipe == "extra_class116_in_pred":
        pred = gt.copy()
        pred[0:3, 0:3, 0:3] = 116
        return gt, pred
    if recipe == "no_selected_class":
        return np.zeros_like(gt), gt
    if recipe == "HN_region":
        shifted = np.zeros_like(gt)
        shifted[2:] = gt[:-2]
        return gt, shifted
    if recipe == "pred_all_background":
        return gt, np.zeros_like(gt)
    raise AssertionError(f"unknown recipe {recipe}")


def vectors() -> list[Any]:
    if not VECTORS.exists():
        return [pytest.param(None, None, marks=pytest.mark.skip(reason=f"{VECTORS} is absent"))]
    cases = json.loads(VECTORS.read_text())["segmentation"]
    return [pytest.param(name, content, id=name) for name, content in cases.items()]


@pytest.mark.parametrize(("name", "content"), vectors())
def test_equals_the_organizers_numbers(name: str, content: dict[str, Any]) -> None:
    gt, pred = predicted(name.split("|")[0])
    axes = np.diag(content["spacing"])
    scores = label_scores(gt, pred, axes, region=region_of(content["patient_id"]), as_organizers=True)
    # both of theirs are float32
    assert scores.dice.value == pytest.approx(content["out"]["DICE"], abs=1e-6, rel=0)
    assert scores.hd95.value == pytest.approx(content["out"]["HD95"], abs=1e-6, rel=0)


@pytest.mark.parametrize(
    ("recipe", "patient", "depth", "dice", "hd95"),
    [
        ("missing_class79_and_smaller_liver", "1ABA001", 1.0, 0.743055522441864, 0.5),
        ("missing_class79_and_smaller_liver", "1ABA001", 3.0, 0.743055522441864, 0.7905694246292114),
        ("HN_region", "1HNA001", 3.0, 0.5, 2.0),
        ("pred_all_background", "1ABA001", 1.0, 0.0, 0.0),
    ],
)
def test_equals_numbers_of_the_organizers_that_need_no_files(
    recipe: str, patient: str, depth: float, dice: float, hd95: float
) -> None:
    """Of SynthRAD2025/evaluation at 17cac47, which computes in float32."""
    axes = np.diag([1.0, 1.0, depth])
    found = label_scores(*predicted(recipe), axes, region=region_of(patient), as_organizers=True)
    assert (found.dice.value, found.hd95.value) == pytest.approx((dice, hd95), abs=1e-6, rel=0)


def test_a_mean_over_no_class_is_told_not_hidden() -> None:
    gt, nothing = labels(), np.zeros((32, 30, 20), np.int32)
    missed = label_scores(gt, nothing, np.eye(3), region="AB")
    assert (missed.dice.value, missed.classes_found.value) == (0, 0)
    assert math.isnan(missed.hd95.value) and "none of the classes" in str(missed.hd95.reason)
    organizers = label_scores(gt, nothing, np.eye(3), region="AB", as_organizers=True)
    assert organizers.hd95.value == 0 and "0 because the prediction has none" in organizers.notes[-1]
    empty = label_scores(nothing, gt, np.eye(3), region="AB")
    assert all(math.isnan(score.value) for score in empty.scores.values())


def test_classes_are_counted_by_region_and_reported_one_by_one() -> None:
    gt, pred = predicted("missing_class79_and_smaller_liver")
    every = label_scores(gt, pred, np.eye(3), region=None)
    assert set(every.classes) == {2, 5, 30, 51, 79}
    assert every.classes_found.value == 0.8
    assert every.classes[79].dice.value == 0 and every.classes[2].dice.value == 1
    assert "79" in every.notes[0]
    assert set(label_scores(gt, pred, np.eye(3), region="HN").classes) == {30, 79}


def test_the_regions_are_those_of_the_challenge() -> None:
    assert [region_of(case) for case in ("1ABA001", "2THC123", "1HNE999", "1BA001", "patient")] == [
        "AB", "TH", "HN", None, None,
    ]  # fmt: skip
    assert sorted(REGIONS["AB"])[:10] == [2, 3, 5, 6, 10, 11, 12, 13, 14, 26]
    assert {92, 116, 79, 51} <= REGIONS["TH"] and not {15, 52, 78, 91, 117} & REGIONS["TH"]
    assert {15, 17, 50, 90, 91} <= REGIONS["HN"] and not {14, 18, 51, 92} & REGIONS["HN"]


def test_surfaces_of_two_plates_worked_by_hand() -> None:
    a, b = np.zeros((2, 12, 10, 10), bool)
    a[2, 2:8, 2:8], b[5, 2:8, 2:8] = True, True  # two plates of one voxel, three apart along x
    found = agreement(a, b, np.diag([2.0, 1.0, 1.0]))
    assert (found.dice.value, found.hd95.value, found.surface_distance.value) == (0, 6, 6)
    # sheared axes: one step along x also goes 1 mm along y, so that three steps lead to (6, 3, 0), and the nearest
    # voxel of the other plate is 6 mm away except for the three rows that have none opposite
    sheared = np.array([[2.0, 0, 0], [1.0, 1, 0], [0, 0, 1.0]])
    distances = np.repeat([6, 6, 6, math.hypot(6, 1), math.hypot(6, 2), math.hypot(6, 3)], 6)
    assert agreement(a, b, sheared).surface_distance.value == pytest.approx(distances.mean())


def test_hd95_is_the_worse_of_both_directions() -> None:
    reference, found = np.zeros((2, 40, 5, 5), bool)
    reference[1, 1, 1] = True
    found[1, 1, 1] = found[31, 1, 1] = True
    result = agreement(reference, found, np.eye(3))
    # from the reference 0; from the prediction 0 and 30, whose 95th percentile is 28.5
    assert result.hd95.value == pytest.approx(28.5)
    assert result.surface_distance.value == pytest.approx(10)
    assert result.dice.value == pytest.approx(2 / 3)


def test_bone_is_what_exceeds_the_threshold_in_the_mask() -> None:
    reference, synthetic = np.zeros((2, 10, 10, 10))
    reference[2:5, 2:5, 2:5] = 300
    synthetic[2:5, 2:5, 3:6] = 600
    reference[8, 8, 8] = 3000  # outside the mask
    mask = np.ones(reference.shape, np.uint8)
    mask[8] = 0
    scores = bone_scores(reference, synthetic, mask, np.diag([1.0, 1.0, 4.0]), [200, 500])
    assert scores["dice_bone_200"].value == pytest.approx(2 / 3)
    assert scores["hd95_bone_200"].value == 4
    assert "nothing to find" in str(scores["dice_bone_500"].reason)
    synthetic[:] = 0
    missed = bone_scores(reference, synthetic, mask, np.eye(3), [200])
    assert missed["dice_bone_200"].value == 0 and "finds nothing" in str(missed["hd95_bone_200"].reason)


def test_without_totalsegmentator_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"TotalSegmentator, which is not installed.*--pred-labels"):
        check_installed()
