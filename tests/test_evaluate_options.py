"""What is done only on request: resampling, registering, labels, targets, tables, several processes; and bad input."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcyclegan import cli, phantom
from medcyclegan.errors import InputError
from medcyclegan.evaluation import segmentation
from medcyclegan.evaluation.case import grade
from medcyclegan.evaluation.evaluate import evaluate, evaluate_pairs
from medcyclegan.evaluation.metrics.tissue import Tissues
from medcyclegan.evaluation.pairing import CaseFiles, find_cases
from medcyclegan.evaluation.scoring import Scoring
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import read_volume
from medcyclegan.io.writer import write_volume

SHAPE = (40, 48, 26)
AFFINE = np.array([[-4.0, 0, 0, 78], [0, 4, 0, -94], [0, 0, 6, -72], [0, 0, 0, 1]])
GRID = Grid(SHAPE, AFFINE)
PATIENTS = ("1HNA001", "1HNA002", "1HNB003")


@pytest.fixture(scope="module")
def heads() -> list[phantom.Phantom]:
    return [phantom.sample(phantom.head(seed), SHAPE, AFFINE) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def layout(heads: list[phantom.Phantom], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """References in the SynthRAD layout, and predictions 10, 20 and 30 HU above them in a folder; all of them MHA."""
    folder = tmp_path_factory.mktemp("synthrad")
    for offset, (patient, head) in enumerate(zip(PATIENTS, heads, strict=True), start=1):
        ct = np.rint(head.ct).astype(np.int16)
        write_volume(folder / "ref" / patient / "ct.mha", ct, GRID)
        write_volume(folder / "ref" / patient / "mr.mha", head.mr_t1, GRID)
        write_volume(folder / "ref" / patient / "mask.mha", head.body, GRID)
        write_volume(folder / "pred" / f"sct_{patient}.mha", (ct + 10 * offset).astype(np.int16), GRID)
    return folder


def rows(folder: Path, name: str = "cases.csv") -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def medcyclegan(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The command line, in this process: importing everything anew takes longer than most of what is tested here."""
    command = ["medcyclegan", *map(str, arguments)]
    out, err, ended = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        patch.setattr(sys, "argv", command)
        try:
            cli.main()
        except SystemExit as exit:
            ended = int(exit.code or 0)
    assert ended == code, err.getvalue()
    return subprocess.CompletedProcess(command, ended, out.getvalue(), err.getvalue())


def test_foreign_folders_are_graded_as_they_are_by_two_processes(layout: Path, tmp_path: Path) -> None:
    command = ("evaluate", layout / "pred", layout / "ref", "--protocol", "synthrad2025", "--workers", 2)
    summary = json.loads(medcyclegan(*command, "-o", tmp_path / "out", "--json").stdout)
    assert [row["case"] for row in rows(tmp_path / "out")] == list(PATIENTS)
    assert [float(row["mae"]) for row in rows(tmp_path / "out")] == [10, 20, 30]
    assert summary["mask"] == "given" and summary["n_expected"] == 3 and summary["doubts"] == {}
    files = summary["files"]["1HNA001"]
    assert files["source"] == str(layout / "ref/1HNA001/mr.mha") and files["mask"].endswith("1HNA001/mask.mha")
    alone = evaluate(layout / "pred", layout / "ref", scoring=Scoring("synthrad2025"))
    assert json.loads(json.dumps(alone.summary)) == summary


def test_a_missing_case_fails_the_command_unless_allowed(layout: Path, tmp_path: Path) -> None:
    pred = tmp_path / "pred"
    pred.mkdir()
    for patient in PATIENTS[:2]:
        (pred / f"{patient}.mha").symlink_to(layout / "pred" / f"sct_{patient}.mha")
    command = ("evaluate", pred, layout / "ref", "--protocol", "synthrad2023", "--workers", 1, "-o", tmp_path / "out")
    assert "'1HNB003' has no prediction" in medcyclegan(*command, code=2).stderr
    assert "graded 2 of 3; without a prediction: 1HNB003" in medcyclegan(*command, "--allow-missing").stdout
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["n"], summary["n_expected"], summary["missing"]) == (2, 3, ["1HNB003"])
    assert rows(tmp_path / "out")[2]["notes"] == "failed: there is no prediction"


def test_other_grids_are_resampled_only_on_request_and_told(
    heads: list[phantom.Phantom], layout: Path, tmp_path: Path
) -> None:
    finer = AFFINE.copy()
    finer[2, 2] = 3
    pred = tmp_path / "1HNA001.nii.gz"
    write_volume(pred, np.repeat(heads[0].ct, 2, axis=2)[:, :, :46], Grid((40, 48, 46), finer))
    ref, mask = layout / "ref/1HNA001/ct.mha", layout / "ref/1HNA001/mask.mha"
    assert "--resample" in evaluate(pred, ref, masks=mask, scoring=Scoring("synthrad2023")).failed["ct"]
    case = evaluate(pred, ref, masks=mask, scoring=Scoring("synthrad2023", resample=True)).cases["ct"]
    assert "resampled (linear) from 40 x 48 x 46 voxels of 4 x 4 x 3 mm" in case.notes[0]
    assert "voxel(s) of the mask lie outside the prediction and count as air" in case.notes[1]
    # one voxel more along one axis is another grid too
    write_volume(pred, np.pad(heads[0].ct, ((0, 0), (0, 0), (0, 1))), Grid((40, 48, 27), AFFINE))
    assert "40 x 48 x 27 voxels" in evaluate(pred, ref, masks=mask, scoring=Scoring("synthrad2023")).failed["ct"]


def test_registering_is_off_by_default_and_reported(heads: list[phantom.Phantom], layout: Path, tmp_path: Path) -> None:
    shifted = AFFINE.copy()
    shifted[:3, 3] += (3, -2, 1)
    moved = phantom.sample(phantom.head(1), SHAPE, shifted).ct + np.random.default_rng(0).normal(0, 20, SHAPE)
    pred = tmp_path / "moved.nii.gz"
    write_volume(pred, moved.astype(np.float32), GRID)
    ref, mask = layout / "ref/1HNA001/ct.mha", layout / "ref/1HNA001/mask.mha"
    before = evaluate(pred, ref, masks=mask, scoring=Scoring("synthrad2023"))
    after = evaluate(pred, ref, tmp_path / "out", masks=mask, scoring=Scoring("synthrad2023", register=True))
    length = (9 + 4 + 1) ** 0.5
    assert before.cases["ct"].scores["misregistration_mm"].value == pytest.approx(length, abs=0.6)
    assert "shift_mm" not in before.cases["ct"].scores and before.summary["registered"] is False
    scores = after.cases["ct"].scores
    assert scores["shift_mm"].value == pytest.approx(length, abs=0.6) and scores["rotation_deg"].value < 0.6
    assert scores["mae"].value < 0.85 * before.cases["ct"].scores["mae"].value
    assert "moved rigidly" in after.cases["ct"].notes[0] and after.summary["registered"] is True
    assert float(rows(tmp_path / "out")[0]["shift_mm"]) == scores["shift_mm"].value
    with pytest.raises(InputError, match="interpolate twice"):
        Scoring(register=True, resample=True)


def test_targets_get_a_map_and_every_angle_a_row(layout: Path, heads: list[phantom.Phantom], tmp_path: Path) -> None:
    target = np.zeros(SHAPE, np.uint8)
    target[18:22, 22:26, 12:14] = 1
    for patient in PATIENTS:
        write_volume(tmp_path / "targets" / f"{patient}.mha", target, GRID)
    out = tmp_path / "out"
    command = ("evaluate", layout / "pred", layout / "ref", "--targets", tmp_path / "targets", "--range-maps")
    medcyclegan(*command, "--angles", "0,90", "--tissues", -300, 250, "--bone", "250,600", "--workers", 1, "-o", out)
    per_angle = rows(out, "angles.csv")
    assert len(per_angle) == 3 * 2 * 2 and {row["angle"] for row in per_angle} == {"0.0", "90.0"}
    first, _, third = rows(out)
    assert 0 < float(first["wepl_mean_mm"]) < float(third["wepl_mean_mm"])
    assert {"hd95_bone_250", "dice_bone_600", "mae_soft", "radiological_p95_mm"} <= set(first)
    # 30 HU more of everything: 3 % of the water-like path, and less in bone
    summary = json.loads((out / "summary.json").read_text())
    assert summary["tissues"]["bone"] == [250, None] and "matRad" in str(summary["range_error"]["calibration"])
    import nibabel as nib

    shown = nib.load(out / "range_error" / "1HNB003.nii.gz").get_fdata()
    assert np.isfinite(shown[target > 0]).all() and np.isnan(shown[target == 0]).all()
    assert shown[target > 0].mean() == pytest.approx(float(third["wepl_mean_mm"]), rel=1e-5)
    with pytest.raises(InputError, match="give --targets"):
        evaluate(layout / "pred", layout / "ref", tmp_path / "other", scoring=Scoring(range_maps=True))


def test_the_same_voxels_in_another_order_are_graded_as_they_lie(heads: list[phantom.Phantom], tmp_path: Path) -> None:
    """Prediction, mask and label map with axes exchanged and reversed: every score is the same to the last digit."""
    part = (slice(10, 30), slice(12, 36), slice(6, 19))
    whole = heads[0].ct[part]
    # From voxel (k, i, j) of the turned arrays to that of the case: x and z run backwards.
    turn = np.array([[0.0, -1, 0, 19], [0, 0, 1, 0], [-1, 0, 0, 12], [0, 0, 0, 1]])
    ct = np.rint(whole).astype(np.int16)
    labels = (whole > 300).astype(np.uint8) * 91
    arrays = {
        "sct": (ct + np.random.default_rng(0).integers(-50, 51, ct.shape)).astype(np.int16),
        "body": heads[0].body[part],
        "labels": labels,
    }
    write_volume(tmp_path / "ct.nii", ct, Grid(ct.shape, AFFINE))
    write_volume(tmp_path / "ref_labels.nii", labels, Grid(ct.shape, AFFINE))
    scores = []
    for kind in ("plain", "turned"):
        folder = tmp_path / kind
        for name, array in arrays.items():
            grid = Grid(array.shape, AFFINE)
            if kind == "turned":
                array = np.transpose(array[::-1, :, ::-1], (2, 0, 1))
                grid = Grid(array.shape, AFFINE @ turn)
            write_volume(folder / f"{name}.nii", array, grid)
        files = CaseFiles(
            pred=folder / "sct.nii",
            ref=tmp_path / "ct.nii",
            mask=folder / "body.nii",
            pred_labels=folder / "labels.nii",
            ref_labels=tmp_path / "ref_labels.nii",
        )
        scores.append(grade("case", files, Scoring("synthrad2023")))
    plain, turned = scores
    assert [any("axes of the prediction exchanged" in note for note in case.notes) for case in scores] == [False, True]
    assert plain.scores.keys() == turned.scores.keys()
    for name, score in plain.scores.items():
        assert turned.scores[name].value == pytest.approx(score.value, rel=1e-12, nan_ok=True), name
    assert plain.scores["mae"].value > 0 and plain.scores["dice"].value == 1


def test_label_maps_are_scored_by_region_with_every_class(
    layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.zeros(SHAPE, np.int16)
    labels[10:20, 10:20, 10:20] = 90  # counts in head and neck
    labels[25:30, 10:20, 10:20] = 5  # does not
    moved = np.roll(labels, 1, axis=2)
    for patient in PATIENTS:
        write_volume(tmp_path / "found" / f"{patient}.mha", moved, GRID)
        write_volume(tmp_path / "truth" / f"{patient}.mha", labels, GRID)
    out = tmp_path / "out"
    given = {"pred": layout / "pred", "ref": layout / "ref"}
    given |= {"pred_labels": tmp_path / "found", "ref_labels": tmp_path / "truth"}
    result = evaluate_pairs(find_cases(given), out, Scoring("synthrad2025"))
    scores = result.cases["1HNA001"].scores
    assert scores["dice"].value == pytest.approx(0.9)
    assert scores["hd95"].value == 6  # one slice
    assert scores["classes_found"].value == 1
    assert [row["class"] for row in rows(out, "classes.csv")] == ["90"] * 3
    write_volume(tmp_path / "found" / "1HNA001.mha", (moved / 2).astype(np.float32) + 0.25, GRID)
    failed = evaluate_pairs(find_cases(given), scoring=Scoring("synthrad2025")).failed
    with pytest.raises(InputError, match="either given or made"):
        monkeypatch.setattr(segmentation, "check_installed", lambda: "")
        evaluate_pairs(find_cases(given), out, Scoring(segment=True))
    assert "whole numbers" in failed["1HNA001"] and list(failed) == ["1HNA001"]


def test_segmenting_runs_the_program_that_is_installed(
    layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pred, ref = layout / "pred/sct_1HNA001.mha", layout / "ref/1HNA001/ct.mha"
    with pytest.raises(InputError, match="TotalSegmentator, which is not installed"):
        evaluate(pred, ref, tmp_path / "none", scoring=Scoring(segment=True))
    # A stand-in that calls everything above 300 HU the skull.
    program = tmp_path / "bin" / "TotalSegmentator"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys, nibabel as nib, numpy as np\n"
        "given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "image = nib.load(given['-i'])\n"
        "labels = ((image.get_fdata() > 300) * 91).astype(np.uint8)\n"
        "nib.save(nib.Nifti1Image(labels, image.affine), given['-o'])\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    result = evaluate(pred, ref, tmp_path / "out", scoring=Scoring("synthrad2025", segment=True))
    assert 0.9 < result.cases["ct"].scores["dice"].value < 1
    assert (tmp_path / "out/segmentations/pred_labels/ct.nii.gz").exists()
    program.write_text("#!/bin/sh\necho no GPU >&2; exit 3\n")
    with pytest.raises(InputError, match=r"(?s)exit code 3.*no GPU"):
        evaluate(pred, ref, tmp_path / "out", scoring=Scoring("synthrad2025", segment=True))


def test_bad_volumes_and_masks_are_named(layout: Path, tmp_path: Path, heads: list[phantom.Phantom]) -> None:
    """Every case is graded against a good one; each is wrong in its own way."""
    ct, good = np.rint(heads[0].ct).astype(np.int16), heads[0].body.astype(np.uint8)
    nan = heads[0].ct.copy()
    nan[20, 24, 13] = np.nan
    cases = {
        "empty_mask": (ct, ct, good * 0),
        "three_valued_mask": (ct, ct, good + heads[0].labels % 2 * good),
        "nan": (nan, ct, good),
        "one_voxel_more": (np.pad(ct, ((0, 1), (0, 0), (0, 0))), ct, good),
        "no_intercept": (ct, (ct + 1024).astype(np.int16), good),
        "eight_bits": (np.clip((ct + 1024) // 16, 0, 255).astype(np.uint8), ct, good),
    }
    for name, volumes in cases.items():
        for folder, array in zip(("pred", "ref", "mask"), volumes, strict=True):
            write_volume(tmp_path / folder / f"{name}.nii.gz", array, Grid(array.shape, AFFINE))
    done = medcyclegan(
        "evaluate", tmp_path / "pred", tmp_path / "ref", "--mask", tmp_path / "mask", "-o", tmp_path / "out",
        "--protocol", "synthrad2023", "--workers", 1, code=1,
    )  # fmt: skip
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    failed = {entry["case"]: entry["reason"] for entry in summary["failed"]}
    assert set(failed) == {"empty_mask", "three_valued_mask", "nan", "one_voxel_more"}
    assert "the mask is empty" in failed["empty_mask"] and "0 and one other value" in failed["three_valued_mask"]
    assert "1 of 49920 voxels are not finite" in failed["nan"] and "41 x 48 x 26" in failed["one_voxel_more"]
    assert "without its intercept" in summary["doubts"]["no_intercept"][0]
    assert any("8-bit picture, not HU" in doubt for doubt in summary["doubts"]["eight_bits"])
    assert "warning: no_intercept: reference: no value is below -200 HU" in done.stderr
    assert done.stderr.strip().splitlines()[-5].startswith("4 failed:")


def test_a_table_and_its_mistakes(layout: Path, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    pred, ref = layout / "pred/sct_1HNA001.mha", layout / "ref/1HNA001/ct.mha"
    table.write_text(f"case,pred,ref\nmine,{pred},{ref}\n")
    result = evaluate_pairs(find_cases({}, table=table), scoring=Scoring("synthrad2023"))
    assert list(result.cases) == ["mine"] and result.cases["mine"].mask == "body"
    with pytest.raises(InputError, match="names all files"):
        find_cases({"pred": pred, "ref": ref}, table=table)
    with pytest.raises(InputError, match="or a table with --pairs"):
        find_cases({"pred": pred})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "natve"}, "Did you mean 'native'"),
        ({"angles": ()}, "angles"),
        ({"bone": (200, 200)}, "bone thresholds"),
        ({"bone": (-5000,)}, "between -1024 and 3071 HU"),
        ({"device": "tpu"}, "cannot be used here"),
        ({"device": "cuda:99"}, "There is no device"),
        ({"range_maps": True, "calibration": {}}, "needs the relative_stopping_power"),
    ],
)
def test_what_cannot_be_scored_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scoring(**options)


def test_wrong_options_are_refused(layout: Path) -> None:
    pred, ref = layout / "pred", layout / "ref"
    with pytest.raises(InputError, match="the lower first"):
        Tissues(200, -200)
    with pytest.raises(InputError, match="workers is -1"):
        evaluate(pred, ref, workers=-1)
    with pytest.raises(InputError, match="give an output folder"):
        evaluate(pred, ref, scoring=Scoring(segment=True))
    with pytest.raises(InputError, match="compared in pairs"):
        find_cases({"pred": pred, "ref": ref, "pred_labels": "somewhere"})


def test_compare_and_unpaired_from_the_command_line(layout: Path, tmp_path: Path) -> None:
    for name, extra in (("a", 0), ("b", 5)):
        for patient in PATIENTS:
            volume = read_volume(layout / "pred" / f"sct_{patient}.mha").numpy()[0]
            write_volume(tmp_path / name / f"{patient}.mha", volume + np.float32(extra), GRID)
        evaluate(tmp_path / name, layout / "ref", tmp_path / f"out_{name}", scoring=Scoring("synthrad2023"))
    output = medcyclegan("compare", tmp_path / "out_a", tmp_path / "out_b", "-o", tmp_path / "compared").stdout
    assert "mae: out_b - out_a = 5" in output and "rank 1: out_a" in output
    assert (tmp_path / "compared/compare.json").exists()
    assert "at least two" in medcyclegan("compare", tmp_path / "out_a", code=2).stderr
    (tmp_path / "empty").mkdir()
    output = medcyclegan("compare", tmp_path / "out_a", tmp_path / "empty", code=2).stderr
    assert "empty/summary.json" in output and "FileNotFound" not in output
    done = medcyclegan("evaluate", tmp_path / "a", tmp_path / "b", "--unpaired", "-o", tmp_path / "set")
    assert "kid: " in done.stdout and "no substitute for paired scores" in done.stderr
    ignored = ("--mask", "m", "--protocol", "synthrad2023", "--register")
    told = medcyclegan("evaluate", "p", "r", "-o", "o", "--unpaired", *ignored, code=2).stderr
    assert "--mask, --protocol, --register belong to pairs" in told
    assert "such as 200,500" in medcyclegan("evaluate", "p", "r", "-o", "o", "--bone", "x", code=2).stderr
    assert "--angles 0,x" in medcyclegan("evaluate", "p", "r", "-o", "o", "--angles", "0,x", code=2).stderr
