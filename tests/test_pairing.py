"""Files are found by id, template, SynthRAD layout or table; whatever does not pair is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcyclegan.errors import InputError
from medcyclegan.evaluation.pairing import CaseFiles, cases_from_csv, find_cases


def touch(folder: Path, *names: str) -> Path:
    """Files are paired before they are read, so empty ones will do."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def synthrad(folder: Path, *patients: str) -> Path:
    return touch(folder, *(f"{p}/{name}.mha" for p in patients for name in ("ct", "mr", "mask")), "overview/1.png")


def test_the_synthrad_layout_brings_its_masks_and_sources(tmp_path: Path) -> None:
    ref = synthrad(tmp_path / "ref", "1ABA001", "1ABA002")
    for pred in (
        touch(tmp_path / "flat", "1ABA001.mha", "1ABA002.nii.gz"),
        touch(tmp_path / "prefix", "sct_1ABA001.mha", "sct_1ABA002.mha"),
        touch(tmp_path / "suffix", "1ABA001_sct.mha", "1ABA002_sct.mha"),
        touch(tmp_path / "folders", "1ABA001/sct.mha", "1ABA002/sct.nii.gz", "1ABA001/ct.mha"),
    ):
        found = find_cases({"pred": pred, "ref": ref})
        assert list(found.cases) == ["1ABA001", "1ABA002"]
        files = found.cases["1ABA001"]
        assert (files.ref, files.mask, files.source) == tuple(
            ref / "1ABA001" / f"{n}.mha" for n in ("ct", "mask", "mr")
        )
        assert pred in files.pred.parents
    own = touch(tmp_path / "own", "1ABA001.nrrd", "1ABA002.nrrd")
    assert find_cases({"pred": pred, "ref": ref, "mask": own}).cases["1ABA001"].mask == own / "1ABA001.nrrd"


def test_an_incomplete_synthrad_folder_is_refused_by_name(tmp_path: Path) -> None:
    ref = synthrad(tmp_path / "ref", "1ABA001", "1ABA002")
    pred = touch(tmp_path / "pred", "1ABA001.mha", "1ABA002.mha")
    (ref / "1ABA002" / "mask.mha").unlink()
    with pytest.raises(InputError, match="'1ABA002' have none"):
        find_cases({"pred": pred, "ref": ref})
    (ref / "1ABA002" / "ct.mha").unlink()
    with pytest.raises(InputError, match="no ct of '1ABA002'"):
        find_cases({"pred": pred, "ref": ref})
    # a patient folder without an sct does not pass off its ct as the prediction
    with pytest.raises(InputError):
        find_cases({"pred": synthrad(tmp_path / "copy", "1ABA001"), "ref": synthrad(tmp_path / "again", "1ABA001")})


def test_templates_tell_how_files_are_named(tmp_path: Path) -> None:
    pred = touch(tmp_path / "pred", "p1/run_7/out.mha", "p2/run_8/out.mha", "p2/run_8/other.mha")
    ref = touch(tmp_path / "ref", "CT_p1_v2.nii.gz", "CT_p2_v1.nii.gz", "notes.nii.gz")
    found = find_cases({"pred": pred, "ref": ref}, ["{case}/run_*/out.mha", "ref=CT_{case}_v*.nii.gz"])
    assert found.cases["p2"] == CaseFiles(pred / "p2/run_8/out.mha", ref / "CT_p2_v1.nii.gz")
    assert list(found.cases) == ["p1", "p2"]
    for wrong, message in (
        ("out.mha", "does not have {case} exactly once"),
        ("{case}/{case}.mha", "does not have {case} exactly once"),
        ("../{case}.mha", "leaves the folder"),
        ("mask={case}.mha", "no folder is given for mask"),
        ("{case}.nrrd", "No file in .*pred fits"),
        ("{case}/run_*/o*.mha", "(?s)more than one file of the same case.*p2: 'other.mha', 'out.mha'"),
    ):
        with pytest.raises(InputError, match=message):
            find_cases({"pred": pred, "ref": ref}, [wrong, "ref=CT_{case}_v*.nii.gz"])


def test_missing_cases_are_refused_or_listed(tmp_path: Path) -> None:
    pred, ref = touch(tmp_path / "pred", "a.mha", "z.mha"), touch(tmp_path / "ref", "a.mha", "b.mha", "c.mha")
    with pytest.raises(InputError, match=r"(?s)'z' belongs to no.*'b' has no.*'c' has no"):
        find_cases({"pred": pred, "ref": ref})
    found = find_cases({"pred": pred, "ref": ref}, allow_missing=True)
    assert (list(found.cases), found.missing, found.unmatched) == (["a"], ("b", "c"), ("z",))
    # what may be meant twice stays refused, and so does nothing at all
    touch(pred, "a_sct.mha")
    with pytest.raises(InputError, match="more than one prediction: 'a', 'a_sct'"):
        find_cases({"pred": pred, "ref": ref}, allow_missing=True)
    with pytest.raises(InputError, match="No prediction in"):
        find_cases({"pred": touch(tmp_path / "other", "q.mha"), "ref": ref}, allow_missing=True)


def test_a_source_may_be_missing_but_a_mask_or_target_may_not(tmp_path: Path) -> None:
    pred, ref = touch(tmp_path / "pred", "a.mha", "b.mha"), touch(tmp_path / "ref", "a.mha", "b.mha")
    some = touch(tmp_path / "some", "a_mr.mha")
    found = find_cases({"pred": pred, "ref": ref, "source": some})
    assert (found.cases["a"].source, found.cases["b"].source) == (some / "a_mr.mha", None)
    for roles in (("mask",), ("target",), ("pred_labels", "ref_labels")):
        with pytest.raises(InputError, match="reference 'b' has no"):
            find_cases({"pred": pred, "ref": ref, **dict.fromkeys(roles, some)})
    both = touch(tmp_path / "both", "a.mha", "b.mha")
    with pytest.raises(InputError, match="compared in pairs"):
        find_cases({"pred": pred, "ref": ref, "pred_labels": both})


def test_a_table_names_the_files(tmp_path: Path) -> None:
    touch(tmp_path, "x.mha", "y.mha", "m.mha")
    table = tmp_path / "pairs.csv"
    table.write_text("case,pred,ref,mask\none,x.mha,y.mha,m.mha\ntwo,x.mha,y.mha,\n")
    found = cases_from_csv(table)
    assert found.cases["one"] == CaseFiles(tmp_path / "x.mha", tmp_path / "y.mha", tmp_path / "m.mha")
    assert found.cases["two"].mask is None
    table.write_text(
        "case,pred,ref\none,x.mha,y.mha\none,x.mha,y.mha\n,x.mha,y.mha\ntwo,absent.mha,y.mha\nthree,x.mha,no.mha\n"
    )
    with pytest.raises(InputError) as caught:
        cases_from_csv(table)
    for part in (
        "line 3: the case 'one' is repeated",
        "line 4: the case is empty",
        "'two' has no prediction",
        "no.mha",
    ):
        assert part in str(caught.value)
    table.write_text("case,pred,ref\none,x.mha,y.mha\ntwo,absent.mha,y.mha\nthree,,y.mha\n")
    found = cases_from_csv(table, allow_missing=True)
    assert (list(found.cases), found.missing) == (["one"], ("two", "three"))
    table.write_text("case,pred\n")
    with pytest.raises(InputError, match="It needs case, pred and ref"):
        cases_from_csv(table)
    with pytest.raises(InputError, match="there is no table of pairs"):
        cases_from_csv(tmp_path / "absent.csv")


def test_exchanged_folders_are_told_by_the_names_in_them(tmp_path: Path) -> None:
    synthetic, true = touch(tmp_path / "a", "p1_sct.nii.gz", "p2_sct.nii.gz"), touch(tmp_path / "b", "p1.mha", "p2.mha")
    assert list(find_cases({"pred": synthetic, "ref": true}).cases) == ["p1", "p2"]
    with pytest.raises(InputError, match=r"(?s)given as references, are synthetic.*Exchange the two"):
        find_cases({"pred": true, "ref": synthetic})
    with pytest.raises(InputError, match="Exchange"):
        find_cases({"pred": true / "p1.mha", "ref": synthetic / "p1_sct.nii.gz"})
    named = find_cases({"pred": true, "ref": synthetic}, ["ref={case}_sct.nii.gz"])  # the way out
    assert list(named.cases) == ["p1", "p2"]
    other = touch(tmp_path / "c", "sct_p1.mha", "sct_p2.mha")  # one model against another
    assert list(find_cases({"pred": other, "ref": synthetic}).cases) == ["p1_sct", "p2_sct"]


def test_the_synthrad_layout_at_any_depth_and_as_source(tmp_path: Path) -> None:
    root = tmp_path / "SynthRAD2023"
    synthrad(root / "Task1" / "brain", "1BA001")
    synthrad(root / "Task1" / "pelvis", "1PA001")
    pred = tmp_path / "pred"
    pred.mkdir()
    for case in ("1BA001", "1PA001"):
        (pred / f"{case}_sct.nii.gz").touch()
    found = find_cases({"pred": pred, "ref": root, "mask": root, "source": root})
    assert list(found.cases) == ["1BA001", "1PA001"]
    for files in found.cases.values():
        assert files.mask == files.ref.parent / files.mask.name and files.mask.name.startswith("mask.")
        assert files.source == files.ref.parent / files.source.name and files.source.name.startswith("mr.")
    synthrad(root / "Task2" / "brain", "1BA001")
    with pytest.raises(InputError, match=r"more than once.*\n  - 1BA001: "):
        find_cases({"pred": pred, "ref": root})
