"""Pairing by id, refusals, failures that cost one case only, and what is written."""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from medcyclegan import __version__
from medcyclegan.errors import InputError
from medcyclegan.evaluation.case import metric_names, score_case
from medcyclegan.evaluation.evaluate import evaluate, evaluate_pairs
from medcyclegan.evaluation.pairing import find_cases, pair
from medcyclegan.evaluation.protocol import Protocol
from medcyclegan.evaluation.scoring import Scoring
from medcyclegan.evaluation.summary import _statistics
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import read_volume
from medcyclegan.io.writer import write_volume

T = TypeVar("T")
SHAPE = (24, 26, 28)
GRID = Grid(SHAPE, np.diag([-3.0, 3.0, 3.0, 1.0]))
SQUARED_RADIUS = sum((axis - n // 2) ** 2 for axis, n in zip(np.ogrid[:24, :26, :28], SHAPE, strict=True))
BODY = SQUARED_RADIUS < 81


def ct(seed: int = 0) -> np.ndarray:
    """A ball of soft tissue in a shell of bone, in air; integer HU."""
    volume = np.where(BODY, 40, -1000) + np.random.default_rng(seed).integers(-10, 11, SHAPE)
    volume[BODY & (SQUARED_RADIUS > 49)] += 900
    return volume.astype(np.int16)


def folders(tmp_path: Path, cases: dict[str, tuple[str, int]]) -> tuple[Path, Path]:
    """References named by the keys; predictions named by the first value, off by the second in HU."""
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    for seed, (name, (predicted, offset)) in enumerate(cases.items()):
        write_volume(ref / f"{name}.nii.gz", ct(seed), GRID)
        write_volume(pred / predicted, ct(seed) + np.int16(offset), GRID)
    return pred, ref


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "cases.csv").open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        assert reader.fieldnames is not None
        assert reader.fieldnames[:7] == ["case", "mae", "psnr", "ssim", "ms_ssim", "me", "mae_bone"]
        assert reader.fieldnames[-3:] == ["voxels", "mask", "notes"]
        return {row["case"]: row for row in reader}


def strict_json(path: Path) -> dict[str, Any]:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    return content


def test_cases_are_paired_by_id_whatever_their_order_and_format(tmp_path: Path) -> None:
    # The predictions sort as p10, p2, p1_sct; the references as p1, p10, p2_ct.
    pred, ref = folders(tmp_path, {"p1": ("p1_sct.mha", 5), "p10": ("p10.nii.gz", 50), "p2_ct": ("p2_sct.nrrd", 7)})
    result = evaluate(pred, ref, scoring=Scoring("synthrad2023"))
    assert result.failed == {}
    assert {name: case.scores["mae"].value for name, case in result.cases.items()} == {"p1": 5, "p10": 50, "p2_ct": 7}


def test_the_pairing_rule() -> None:
    assert pair(["a_ct", "b", "c_mr"], ["c_sct", "b", "a"], "prediction") == {"a_ct": "a", "b": "b", "c_mr": "c_sct"}
    # an exact id wins over one that fits without its suffix
    assert pair(["a", "a_ct"], ["a_ct", "a"], "prediction") == {"a": "a", "a_ct": "a_ct"}
    assert pair(["a"], ["a_mask", "z_mask"], "mask", spare_allowed=True) == {"a": "a_mask"}
    # only one suffix is removed, and a suffix alone is a name
    with pytest.raises(InputError, match=r"'a_sct_ct' belongs to no reference"):
        pair(["a"], ["a_sct_ct"], "prediction")
    with pytest.raises(InputError, match="'_ct' belongs to no reference"):
        pair(["_sct"], ["_ct"], "prediction")


def test_unmatched_and_ambiguous_names_are_all_listed() -> None:
    with pytest.raises(InputError) as caught:
        pair(["a", "b", "c", "d_ct", "d_mr"], ["a", "a_sct", "d_sct", "x", "y"], "prediction")
    message = str(caught.value)
    for part in (
        "prediction 'x' belongs to no reference",
        "prediction 'y' belongs to no reference",
        "reference 'b' has no prediction",
        "reference 'c' has no prediction",
        "reference 'a' is matched by more than one prediction: 'a', 'a_sct'",
        "prediction 'd_sct' may belong to any of the references 'd_ct', 'd_mr'",
    ):
        assert part in message


def test_nothing_is_scored_or_written_before_the_names_fit(tmp_path: Path) -> None:
    pred, ref = folders(tmp_path, {"a": ("a.nii.gz", 1), "b": ("b.nii.gz", 1)})
    (pred / "b.nii.gz").rename(pred / "other.nii.gz")
    with pytest.raises(InputError, match=r"(?s)'other' belongs to no reference.*'b' has no prediction"):
        evaluate(pred, ref, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_single_files_are_paired_as_given(tmp_path: Path) -> None:
    pred, ref = folders(tmp_path, {"reference": ("quite_different.mha", 9)})
    result = evaluate(pred / "quite_different.mha", ref / "reference.nii.gz", scoring=Scoring("synthrad2023"))
    assert result.cases["reference"].scores["mae"].value == 9


def test_the_body_of_the_reference_is_the_mask_where_none_is_given(tmp_path: Path) -> None:
    pred, ref = folders(tmp_path, {"a": ("a.nii.gz", 0)})
    spoiled = np.where(BODY, ct(), 3000).astype(np.int16)  # right in the body, absurd outside
    write_volume(pred / "a.nii.gz", spoiled, GRID)
    result = evaluate(pred, ref, tmp_path / "out", scoring=Scoring("synthrad2023"))
    case = result.cases["a"]
    assert (case.mask, case.scores["mae"].value) == ("body", 0)
    assert case.voxels == np.count_nonzero(BODY)
    row = rows_of(tmp_path / "out")["a"]
    assert (row["mask"], row["voxels"]) == ("body", str(np.count_nonzero(BODY)))


def test_a_given_mask_is_used(tmp_path: Path) -> None:
    pred, ref = folders(tmp_path, {"a": ("a_sct.nii.gz", 0), "b": ("b_sct.nii.gz", 0)})
    half = np.zeros(SHAPE, np.uint8)
    half[:, :, :14] = 1
    for name in ("a_mask", "b", "spare_mask"):
        write_volume(tmp_path / "masks" / f"{name}.nii.gz", half, GRID)
    changed = ct()
    changed[:, :, 14:] += 500  # outside the mask
    changed[3, 3, 3] += 14 * 24 * 26  # one voxel inside, which carries a mean error of 1
    write_volume(pred / "a_sct.nii.gz", changed, GRID)
    result = evaluate(pred, ref, masks=tmp_path / "masks", scoring=Scoring("synthrad2023"))
    assert result.cases["a"].scores["mae"].value == 1
    assert (result.cases["a"].mask, result.cases["a"].voxels) == ("given", half.sum())
    assert result.summary["mask"] == "given"
    (tmp_path / "masks" / "a_mask.nii.gz").unlink()
    with pytest.raises(InputError, match="reference 'a' has no mask"):
        evaluate(pred, ref, masks=tmp_path / "masks")


def test_a_bad_case_fails_by_name_and_does_not_stop_the_others(tmp_path: Path) -> None:
    names = ("good", "moved", "shape", "broken", "holes")
    pred, ref = folders(tmp_path, {name: (f"{name}_sct.nii.gz", 3) for name in names})
    moved = GRID.affine.copy()
    moved[0, 3] += 1.5
    write_volume(pred / "moved_sct.nii.gz", ct(), Grid(SHAPE, moved))
    write_volume(pred / "shape_sct.nii.gz", ct()[:-1], Grid((23, 26, 28), GRID.affine))
    (pred / "broken_sct.nii.gz").write_bytes(b"this is no volume")
    holes = ct().astype(np.float32)
    holes[12, 13, 14] = np.nan
    write_volume(pred / "holes_sct.nii.gz", holes, GRID)
    result = evaluate(pred, ref, tmp_path / "out", scoring=Scoring("synthrad2023"))
    assert list(result.cases) == ["good"]
    assert set(result.failed) == {"moved", "shape", "broken", "holes"}
    assert "up to 1.5 mm apart" in result.failed["moved"]
    assert "moved_sct.nii.gz" in result.failed["moved"]
    assert "23 x 26 x 28 voxels of 3 x 3 x 3 mm against 24 x 26 x 28 voxels" in result.failed["shape"]
    rows = rows_of(tmp_path / "out")
    assert set(rows) == set(names)
    assert rows["good"]["mae"] == "3.0"
    for name in result.failed:
        assert rows[name]["notes"] == f"failed: {result.failed[name]}"
        assert all(value == "" for column, value in rows[name].items() if column not in ("case", "notes"))
    summary = strict_json(tmp_path / "out" / "summary.json")
    assert (summary["n"], summary["n_failed"]) == (1, 4)
    assert [entry["case"] for entry in summary["failed"]] == list(result.failed)


def test_whatever_a_reader_raises_costs_one_case_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pred, ref = folders(tmp_path, {"a": ("a.nii.gz", 2), "b": ("b.nii.gz", 2)})

    def fragile(path: Path) -> Any:
        if path == pred / "a.nii.gz":
            raise RuntimeError("decoder gave up")
        return read_volume(path)

    monkeypatch.setattr("medcyclegan.evaluation.case.read_volume", fragile)
    result = evaluate(pred, ref, scoring=Scoring("synthrad2023"), masks=_masks(tmp_path, "a", "b"))
    assert result.failed == {"a": "RuntimeError: decoder gave up"}
    assert list(result.cases) == ["b"]


def test_what_is_written(tmp_path: Path) -> None:
    pred, ref = folders(tmp_path, {"a": ("a.nii.gz", 4), "b": ("b.nii.gz", -8), "same": ("same.nii.gz", 0)})
    result = evaluate(pred, ref, tmp_path / "out", scoring=Scoring("native"))
    rows = rows_of(tmp_path / "out")
    assert (rows["a"]["me"], rows["b"]["me"], rows["b"]["mae"], rows["b"]["mae_bone"]) == ("4.0", "-8.0", "8.0", "8.0")
    assert float(rows["a"]["ms_ssim"]) == result.cases["a"].scores["ms_ssim"].value
    assert rows["same"]["psnr"] == "inf"
    no_air = "mae_air, me_air: the reference has no air in the mask"
    assert rows["same"]["notes"] == f"psnr: the two images are identical in the mask; {no_air}"
    assert rows["a"]["notes"] == no_air
    summary = strict_json(tmp_path / "out" / "summary.json")
    assert summary == result.summary
    assert summary["protocol"] == "native"
    assert summary["range"] == [-1024, 3071]
    assert summary["version"] == __version__
    assert list(summary["metrics"]) == list(metric_names(Scoring()))
    assert list(summary["metrics"])[:6] == ["mae", "psnr", "ssim", "ms_ssim", "me", "mae_bone"]
    assert summary["files"]["b"] == {
        "pred": str(pred / "b.nii.gz"), "ref": str(ref / "b.nii.gz"), "mask": None, "source": None
    }  # fmt: skip
    assert summary["tissues"] == {"air": [None, -200], "soft": [-200, 200], "bone": [200, None]}
    assert summary["metrics"]["mae"]["mean"] == 4
    assert summary["metrics"]["me"]["mean"] == pytest.approx(-4 / 3)
    assert summary["metrics"]["mae"]["sd"] == 4
    assert summary["metrics"]["psnr"]["mean"] is None
    assert "identical" in summary["metrics"]["psnr"]["reasons"]["mean"]
    assert summary["metrics"]["psnr"]["n"] == 3


def test_metrics_of_other_protocols_stay_empty_and_undefined_ones_say_nan(tmp_path: Path) -> None:
    pred, ref = folders(tmp_path, {"a": ("a.nii.gz", 4)})
    rim = np.zeros(SHAPE, np.uint8)
    rim[0] = 1
    write_volume(tmp_path / "a_mask.mha", rim, GRID)
    evaluate(
        pred / "a.nii.gz",
        ref / "a.nii.gz",
        tmp_path / "out",
        masks=tmp_path / "a_mask.mha",
        scoring=Scoring("synthrad2023"),
    )
    row = rows_of(tmp_path / "out")["a"]
    assert (row["mae"], row["ssim"]) == ("4.0", "nan")
    assert (row["ms_ssim"], row["me"], row["mae_bone"]) == ("", "", "")
    assert row["notes"].startswith("ssim: the mask lies wholly in the 3-voxel rim")
    statistics = strict_json(tmp_path / "out" / "summary.json")["metrics"]["ssim"]
    assert (statistics["mean"], statistics["n"], statistics["n_undefined"]) == (None, 0, 1)
    assert statistics["reasons"]["mean"] == "no case has a value"


def test_statistics_worked_by_hand() -> None:
    found = _statistics([4.0, 1.0, math.nan, 3.0, 2.0])
    assert found["mean"] == found["median"] == 2.5
    assert found["sd"] == pytest.approx(math.sqrt(5 / 3))
    assert (found["q1"], found["q3"], found["min"], found["max"]) == (1.75, 3.25, 1, 4)
    assert (found["n"], found["n_undefined"]) == (4, 1)
    assert found["ci_low"] is None
    assert found["reasons"] == dict.fromkeys(("ci_low", "ci_high"), "an interval needs at least 5 cases")
    endless = _statistics([2.0, math.inf, 1.0])
    assert (endless["median"], endless["q1"], endless["min"]) == (2, 1.5, 1)
    assert all(endless[name] is None and name in endless["reasons"] for name in ("mean", "sd", "q3", "max"))
    alone = _statistics([7.0])
    assert (alone["mean"], alone["sd"]) == (7, None)
    assert alone["reasons"]["sd"] == "one value has no standard deviation"
    many = _statistics([1.0, 2.0, 3.0, 4.0, 6.0, 7.0])
    assert 1 < many["ci_low"] < many["mean"] < many["ci_high"] < 7 and many["reasons"] == {}


def test_a_ct_without_its_intercept_is_doubted(tmp_path: Path) -> None:
    pred, ref = folders(tmp_path, {"a": ("a.nii.gz", 0), "b": ("b.nii.gz", 0)})
    write_volume(pred / "a.nii.gz", ct() + np.int16(1024), GRID)
    write_volume(ref / "b.nii.gz", ct(1) + np.int16(1024), GRID)
    result = evaluate(pred, ref, scoring=Scoring("synthrad2023"), masks=_masks(tmp_path, "a", "b"))
    first, second = result.cases["a"].notes[:2]
    assert first.startswith("prediction: no value is below -200 HU (the lowest is 14)")
    assert second.startswith("the prediction lies 1024 HU above the reference")
    assert set(result.summary["doubts"]) == {"a", "b"}
    assert result.cases["b"].notes[0].startswith("reference: no value is below -200 HU")


def test_what_the_reader_warns_of_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pred, ref = folders(tmp_path, {"a": ("a.nii.gz", 2)})

    def doubtful(path: Path) -> Any:
        if path.parent == pred:
            warnings.warn("the units are feet", UserWarning, stacklevel=2)
        return read_volume(path)

    monkeypatch.setattr("medcyclegan.evaluation.case.read_volume", doubtful)
    evaluate(pred, ref, tmp_path / "out", scoring=Scoring("synthrad2023"), masks=_masks(tmp_path, "a"))
    assert rows_of(tmp_path / "out")["a"]["notes"] == "prediction: the units are feet"


def _masks(tmp_path: Path, *names: str) -> Path:
    for name in names:
        write_volume(tmp_path / "masks" / f"{name}.nii.gz", BODY, GRID)
    return tmp_path / "masks"


def test_only_an_earlier_evaluation_is_replaced(tmp_path: Path) -> None:
    pred, ref = folders(tmp_path, {"a": ("a.nii.gz", 4)})
    out = tmp_path / "out"
    evaluate(pred, ref, out, scoring=Scoring("synthrad2023"))
    evaluate(pred, ref, out, scoring=Scoring("synthrad2025"))
    assert strict_json(out / "summary.json")["protocol"] == "synthrad2025"
    assert sorted(entry.name for entry in out.iterdir()) == ["cases.csv", "summary.json"]
    (out / "thesis.docx").write_text("precious")
    with pytest.raises(InputError, match=r"something other than an earlier evaluation: thesis\.docx"):
        evaluate(pred, ref, out, scoring=Scoring("synthrad2023"))
    assert (out / "thesis.docx").read_text() == "precious"
    assert strict_json(out / "summary.json")["protocol"] == "synthrad2025"
    with pytest.raises(InputError, match="is a file"):
        evaluate(pred, ref, out / "cases.csv")


def test_a_crash_leaves_the_earlier_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pred, ref = folders(tmp_path, {"a": ("a.nii.gz", 4)})
    out = tmp_path / "out"
    evaluate(pred, ref, out, scoring=Scoring("synthrad2023"))
    before = {entry.name: entry.read_bytes() for entry in out.iterdir()}

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medcyclegan.evaluation.case.score_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(pred, ref, out, scoring=Scoring("synthrad2023"))
    assert {entry.name: entry.read_bytes() for entry in out.iterdir()} == before


def test_what_the_killed_have_left_is_no_case_and_nothing_foreign(tmp_path: Path) -> None:
    pred, ref = folders(tmp_path, {"a": ("a_sct.nii.gz", 4)})
    out = tmp_path / "out"
    evaluate(pred, ref, out, scoring=Scoring("synthrad2023"))
    undisturbed = rows_of(out)
    left = [pred / ".partial-01234567-a_sct.nii.gz", ref / ".partial-01234567-a.nii.gz"]
    left += [out / f".{kind}-01234567-cases.csv" for kind in ("partial", "locked")]
    for path in left:
        path.write_bytes(b"half")
    for patterns in ((), ("pred={case}_sct.nii.gz", "ref={case}.nii.gz")):
        evaluate_pairs(find_cases({"pred": pred, "ref": ref}, patterns), out, Scoring("synthrad2023"))
        assert rows_of(out) == undisturbed
        assert sorted(path.name for path in out.iterdir()) == ["cases.csv", "summary.json"]


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    _, ref = folders(tmp_path, {"a": ("a.nii.gz", 4)})
    with pytest.raises(InputError, match=r"(?s)do not exist:.*pred: .*nowhere"):
        evaluate(tmp_path / "nowhere", ref)
    with pytest.raises(ValueError, match="unknown metrics"):
        score_case(ct(), ct(), None, Protocol("mine", 0, 1, ("mae", "fid")))


def test_progress_sees_every_case(tmp_path: Path) -> None:
    pred, ref = folders(tmp_path, {"a": ("a.nii.gz", 4), "b": ("b.nii.gz", 4)})
    seen: list[tuple[int, int]] = []

    class Counting:
        def track(self, items: Iterable[T], total: int, description: str) -> Iterator[T]:
            for number, item in enumerate(items, start=1):
                yield item
                seen.append((number, total))

    evaluate(pred, ref, scoring=Scoring("synthrad2023"), progress=Counting())
    assert seen == [(1, 2), (2, 2)]
