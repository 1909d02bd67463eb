"""What a conversion reads: volumes, the SynthRAD layout, and body masks by case id."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medcyclegan import InputError, load_translator, phantom
from medcyclegan.cohort.cases import Case
from medcyclegan.cohort.inputs import find_inputs
from medcyclegan.convert import Options, convert
from medcyclegan.io.reader import read_volume


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_synthrad_root_gives_the_volumes_that_the_model_takes_and_their_masks(tmp_path: Path) -> None:
    one, two = tmp_path / "Task1" / "brain" / "1BA001", tmp_path / "Task1" / "pelvis" / "1PA001"
    touch(one / "mr.mha", one / "ct.mha", one / "mask.mha", two / "mr.nii.gz", tmp_path / "overview.csv")
    assert find_inputs([tmp_path], None) == {
        "1BA001": Case("1BA001", (one / "mr.mha",), one / "mask.mha"),
        "1PA001": Case("1PA001", (two / "mr.nii.gz",)),
    }
    with pytest.raises(InputError, match=r"the model takes one CT of each case.*\n  - 1PA001: there is no ct"):
        find_inputs([tmp_path], None, modality="CT", domain="b")
    touch(two / "ct.mha", one / "cbct.mha", two / "cbct.mha")
    for domain, kind in (("a", "cbct"), ("b", "ct")):
        found = find_inputs([tmp_path], None, modality="CT", domain=domain)
        assert {given.images[0].name for given in found.values()} == {f"{kind}.mha"}
    touch(tmp_path / "Task2" / "1BA001" / "mr.mha")
    with pytest.raises(InputError, match=r"1BA001: there are 2"):
        find_inputs([tmp_path], None)
    # A folder of volumes is one whatever lies below it.
    touch(tmp_path / "p1.nii.gz")
    assert list(find_inputs([tmp_path], None)) == ["p1"]


def test_masks_belong_to_the_case_of_the_same_id(tmp_path: Path) -> None:
    mr, masks = tmp_path / "mr", tmp_path / "masks"
    touch(mr / "p1.nii.gz", mr / "p2.mha", masks / "p1.nrrd", masks / "other.nii.gz")
    with pytest.raises(InputError, match=r"matched to volumes by case id.*\n  - p2: no mask in .*masks$"):
        find_inputs([mr], masks)
    touch(masks / "p2.nii.gz")
    assert [given.body for given in find_inputs([mr], masks).values()] == [masks / "p1.nrrd", masks / "p2.nii.gz"]
    assert find_inputs([mr / "p2.mha"], masks / "p1.nrrd")["p2"].body == masks / "p1.nrrd"
    with pytest.raises(InputError, match="is one mask, and 2 volumes"):
        find_inputs([mr], masks / "p1.nrrd")
    with pytest.raises(InputError, match=r"do not exist:\n  - .*gone"):
        find_inputs([mr], tmp_path / "gone")
    # A root of the SynthRAD layout has masks, too.
    touch(tmp_path / "root" / "p1" / "mr.mha", tmp_path / "root" / "p1" / "mask.mha")
    assert find_inputs([mr / "p1.nii.gz"], tmp_path / "root")["p1"].body == tmp_path / "root" / "p1" / "mask.mha"


def test_converting_with_masks(run: Path, cohort: phantom.Cohort, tmp_path: Path) -> None:
    mr, masks, out = tmp_path / "mr", tmp_path / "masks", tmp_path / "out"
    mr.mkdir()
    masks.mkdir()
    source, mask = nib.load(cohort.test_mr[0]), nib.load(cohort.test_mask[0])
    inside = np.asarray(mask.dataobj) > 0
    # Noise as bright as tissue around the head, which no threshold tells from it.
    values = np.asarray(source.dataobj)
    noise = np.random.default_rng(0).uniform(0, values.max(), values.shape)
    for name in ("p1", "p2", "p3", "p4"):
        nib.save(
            nib.Nifti1Image(np.where(inside, values, noise).astype(np.float32), source.affine), mr / f"{name}.nii.gz"
        )
    shutil.copy(cohort.test_mask[0], masks / "p1.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(inside.shape, np.uint8), source.affine), masks / "p2.nii.gz")
    nib.save(nib.Nifti1Image(inside.astype(np.uint8)[1:], source.affine), masks / "p3.nii.gz")
    nib.save(nib.Nifti1Image(np.flip(inside, 0).astype(np.uint8), source.affine), masks / "p4.nii.gz")
    result = convert(run, [mr], out, Options(masks=masks, device="cpu"))
    assert set(result.written) == {"p1", "p4"}
    assert "the mask is empty" in result.failed["p2"] and "another grid" in result.failed["p3"]
    made = np.asarray(nib.load(result.written["p1"]).dataobj)
    assert (made[~inside] == -1024).all()
    expected = load_translator(run, device="cpu")(mr / "p1.nii.gz", body=inside).array
    assert np.array_equal(made, expected)
    entry = json.loads((out / "run.json").read_text())["cases"]["p1"]
    assert entry["mask"] == str(masks / "p1.nii.gz") and len(entry["mask_sha256"]) == 64
    # What is finished is so with this mask.
    assert set(convert(run, [mr], out, Options(masks=masks, resume=True, device="cpu")).skipped) == {"p1", "p4"}
    shutil.copy(masks / "p4.nii.gz", masks / "p1.nii.gz")
    for given in (masks, None):
        again = convert(run, [mr / "p1.nii.gz"], out, Options(masks=given, resume=True, device="cpu"))
        assert "the mask of p1 has changed since" in again.failed["p1"]
    # A mask is no place for a result.
    with pytest.raises(InputError, match="are inputs themselves"):
        convert(
            run,
            [mr / "p1.nii.gz"],
            masks / "p1.nii.gz",
            Options(masks=masks / "p1.nii.gz", overwrite=True, device="cpu"),
        )


def test_converting_a_synthrad_root_uses_its_masks(run: Path, cohort: phantom.Cohort, tmp_path: Path) -> None:
    case = tmp_path / "root" / "1BA001"
    case.mkdir(parents=True)
    for name, file in (("mr", cohort.test_mr[0]), ("ct", cohort.test_ct[0]), ("mask", cohort.test_mask[0])):
        shutil.copy(file, case / f"{name}.nii.gz")
    result = convert(run, [tmp_path / "root"], tmp_path / "out", Options(device="cpu"))
    assert result.written == {"1BA001": tmp_path / "out" / "1BA001_sct.nii.gz"}
    inside = read_volume(cohort.test_mask[0]).numpy()[0] > 0
    expected = load_translator(run, device="cpu")(cohort.test_mr[0], body=inside).array
    assert np.array_equal(np.asarray(nib.load(result.written["1BA001"]).dataobj), expected)


def test_what_is_warned_of_a_case_is_in_its_record(run: Path, cohort: phantom.Cohort, tmp_path: Path) -> None:
    image = nib.load(cohort.test_mr[0])
    image.header.set_xyzt_units("unknown")
    image.set_sform(image.affine, code=0)
    image.set_qform(image.affine, code=0)
    (tmp_path / "mr").mkdir()
    for name in ("p1", "p2"):
        nib.save(image, tmp_path / "mr" / f"{name}.nii.gz")
    shutil.copy(cohort.test_mr[0], tmp_path / "mr" / "p3.nii.gz")
    with pytest.warns(UserWarning, match=r"p1\.nii\.gz: the orientation is unknown"):
        convert(run, [tmp_path / "mr"], tmp_path / "out", Options(device="cpu"))
    cases = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]
    for name in ("p1", "p2"):
        messages = cases[name]["warnings"]
        assert any("orientation is unknown" in line for line in messages) and all(name in line for line in messages)
    assert "warnings" not in cases["p3"]
