"""Comparing results: the same patients, the same masks, numbers worked by hand, and a ranking."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcyclegan.errors import InputError
from medcyclegan.evaluation.columns import heading
from medcyclegan.evaluation.compare import compare
from medcyclegan.evaluation.evaluate import evaluate
from medcyclegan.io.grid import Grid
from medcyclegan.io.writer import write_volume


def result(folder: Path, maes: Mapping[str, float], *, voxels: int = 100, **summary: Any) -> Path:
    """A result as `evaluate` writes it, with MAE and a PSNR that falls with it."""
    folder.mkdir(parents=True)
    with (folder / "cases.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["case", "mae", "psnr", "share_bone", "voxels", "mask", "notes"])
        table.writerows([case, mae, 40 - mae / 10, 0.1, voxels, "given", ""] for case, mae in maes.items())
    metrics = {name: {} for name in ("mae", "psnr", "share_bone")}
    content = {
        "protocol": "native",
        "mask": "given",
        "range": [-1024, 3071],
        "failed": [],
        "metrics": metrics,
        **summary,
    }
    (folder / "summary.json").write_text(json.dumps(content))
    return folder


def test_pairs_are_compared_patient_by_patient(tmp_path: Path) -> None:
    cases = [f"p{i}" for i in range(8)]
    a = result(tmp_path / "a", dict(zip(cases, range(60, 68), strict=True)))
    # the same scores in another order of the cases, each 2 to 9 HU better
    b = result(tmp_path / "b", {c: 60 + i - (i + 2) for i, c in reversed(list(enumerate(cases)))})
    found = compare([a, b], tmp_path / "out").summary
    mae, psnr = found["pairs"]
    assert (mae["metric"], mae["a"], mae["b"], mae["n"], mae["better"]) == ("mae", "a", "b", 8, "lower")
    assert mae["difference"] == pytest.approx(-np.mean(range(2, 10)))
    assert (mae["win_rate_b"], mae["effect_size"]) == (1, 1)
    assert mae["p_value"] == pytest.approx(2 / 2**8)  # all eight signs alike
    assert mae["p_holm"] == pytest.approx(4 / 2**8) == psnr["p_holm"]  # two tests
    assert mae["ci_low"] < -5.5 < mae["ci_high"] < 0
    assert psnr["difference"] == pytest.approx(0.55) and psnr["effect_size"] == 1
    assert [row["name"] for row in found["ranking"]["methods"]] == ["b", "a"]
    assert found["ranking"]["methods"][0]["kept"] == 1
    assert json.loads((tmp_path / "out/compare.json").read_text()) == found
    with (tmp_path / "out/compare.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["difference"]) for row in rows] == [row["difference"] for row in found["pairs"]]


def test_three_results_are_compared_in_pairs_and_holm_counts_all(tmp_path: Path) -> None:
    cases = [f"p{i}" for i in range(6)]
    folders = [
        result(tmp_path / n, {c: 60 + d + i for i, c in enumerate(cases)}) for n, d in (("a", 0), ("b", 1), ("c", 2))
    ]
    found = compare(folders, metrics=["mae"]).summary
    assert [(row["a"], row["b"]) for row in found["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(row["p_holm"] == pytest.approx(3 * 2 / 2**6) for row in found["pairs"])
    assert [row["name"] for row in found["ranking"]["methods"]] == ["a", "b", "c"]
    assert "rank 1: a" in "\n".join(compare(folders).lines())


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a = result(tmp_path / "a", {"p": 60, "q": 61})
    for other, message in (
        (result(tmp_path / "b", {"p": 60}), "b lacks q"),
        (result(tmp_path / "c", {"p": 60, "q": 61}, voxels=99), "case p: 100 voxels in a, 99 voxels in c"),
        (result(tmp_path / "d", {"p": 60, "q": 61}, protocol="synthrad2023"), "differ in their protocol"),
        (result(tmp_path / "e", {"p": 60, "q": 61}, mask="body"), "differ in their mask"),
        (tmp_path / "nowhere", "nowhere"),
        (a, "given twice"),
    ):
        with pytest.raises(InputError, match=message):
            compare([a, other])
    with pytest.raises(InputError, match="at least two"):
        compare([a])
    same = result(tmp_path / "f", {"p": 60, "q": 61})
    for metric, message in (("fid", "'fid' is not in all results"), ("share_bone", "no better direction")):
        with pytest.raises(InputError, match=message):
            compare([a, same], metrics=[metric])
    part = compare([a, tmp_path / "b"], allow_missing=True).summary
    assert part["n"] == 1 and part["left_out"] == {"a": [], "b": ["q"]}
    tie = compare([a, same]).summary["pairs"][0]
    assert (tie["p_value"], tie["reason"], tie["win_rate_b"]) == (None, "no patient differs", 0.5)


def test_results_that_evaluate_wrote(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    grid = Grid((14, 14, 14), np.eye(4))
    for case in range(3):
        ct = random.normal(0, 200, grid.shape).astype(np.float32)
        ct[:2] = -1000
        write_volume(tmp_path / "ct" / f"{case}.nii", ct, grid)
        write_volume(tmp_path / "masks" / f"{case}.nii", np.ones(grid.shape, np.uint8), grid)
        for name, error in (("near", 10), ("far", 20)):
            write_volume(tmp_path / name / f"{case}.nii", ct + error + case, grid)
    for name in ("near", "far"):
        evaluate(tmp_path / name, tmp_path / "ct", tmp_path / f"scores_{name}", masks=tmp_path / "masks")
    found = compare([tmp_path / "scores_near", tmp_path / "scores_far"], metrics=["mae", "me", "mae_bone"]).summary
    assert [row["difference"] for row in found["pairs"]] == pytest.approx([10, 10, 10], abs=1e-4)
    assert [row["name"] for row in found["ranking"]["methods"]] == ["scores_near", "scores_far"]


def test_every_score_knows_its_direction() -> None:
    better = {
        "lower": ("mae_bone", "hd95_bone_200", "wepl_p95_mm"),
        "higher": ("ms_ssim", "dice_bone_200", "classes_found"),
        "zero": ("me", "me_air"),
        None: ("share_soft", "rotation_deg"),
    }
    for direction, metrics in better.items():
        assert {heading(metric).better for metric in metrics} == {direction}
