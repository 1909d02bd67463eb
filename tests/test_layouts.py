"""Every folder convention from a small tree: which one it is, what is in it, and what is refused."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import stored, write_series

from medcyclegan.cohort.layouts import LAYOUTS, Found, read_layout
from medcyclegan.cohort.layouts.scan import modality_of, patient_of, patient_of_picture
from medcyclegan.errors import InputError
from medcyclegan.io.tree import Tree


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def rows(found: Found) -> set[tuple[str, ...]]:
    """(path under the root, case, patient, modality, kind, domain, split, site) of every scan."""
    return {(Path(s.image).name, s.case, s.patient, s.modality, s.kind, s.domain, s.split, s.site) for s in found.scans}


def test_folders_by_modality(tmp_path: Path) -> None:
    touch(tmp_path, "MR/p1_mr.nii.gz", "MR/p2/t1.mha", "ct/p1_ct.nii", "ct/p3/a.nrrd", "ct/p3/b.nrrd", "notes/x.nii")
    found = read_layout(tmp_path)
    assert found.layout == "folders"
    assert rows(found) == {
        ("p1_mr.nii.gz", "p1_mr", "p1", "MR", "MR", "", "", ""),
        ("t1.mha", "p2", "p2", "MR", "MR", "", "", ""),
        ("p1_ct.nii", "p1_ct", "p1", "CT", "ct", "", "", ""),
        ("a.nrrd", "p3_a", "p3", "CT", "ct", "", "", ""),
        ("b.nrrd", "p3_b", "p3", "CT", "ct", "", "", ""),
    }
    assert found.left_out == {"notes": 1}
    assert "1 in notes" in found.notes()[0]


def test_folders_by_domain(tmp_path: Path) -> None:
    found = read_layout(touch(tmp_path, "a/1.nii", "B/2.nii"))
    assert {(s.case, s.domain, s.modality) for s in found.scans} == {("1", "a", ""), ("2", "b", "")}


def test_cyclegan(tmp_path: Path) -> None:
    names = ("trainA/p1_001.png", "trainA/p1_002.png", "trainB/q_001.tif", "testA/7.png", "valB/r.TIFF")
    found = read_layout(touch(tmp_path, *names))
    assert found.layout == "cyclegan"
    assert {(s.case, s.patient, s.domain, s.split) for s in found.scans} == {
        ("p1_001", "p1", "a", "train"),
        ("p1_002", "p1", "a", "train"),
        ("q_001", "q", "b", "train"),
        ("7", "", "a", "test"),
        ("r", "r", "b", "val"),
    }


def test_pictures_beside_volumes_are_previews(tmp_path: Path) -> None:
    found = read_layout(touch(tmp_path, "trainA/p.nii", "trainA/p.png", "trainB/q.nii"))
    assert [s.image.name for s in found.scans] == ["p.nii", "q.nii"]
    assert found.left_out == {}


def test_nnunet_channels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"imagesTr/k{n}_000{c}.nii.gz" for n in (1, 2) for c in (0, 1)), "imagesTs/k3_0000.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1w", "1": "CT"}, "numTraining": 2}))
    found = read_layout(tmp_path)
    assert found.layout == "decathlon"
    assert {(s.case, s.patient, s.modality, s.kind, s.split) for s in found.scans} == {
        *((f"k{n}", f"k{n}", m, k, "train") for n in (1, 2) for m, k in (("MR", "T1w"), ("CT", "CT"))),
        ("k3", "k3", "MR", "T1w", "test"),
    }


def test_decathlon_datasets_side_by_side(tmp_path: Path) -> None:
    for folder, modality in (("Task01_Mr", "MRI"), ("Task02_Ct", "CT")):
        touch(tmp_path / folder, "imagesTr/x_1.nii.gz", "imagesTs/x_2.nii.gz", "labelsTr/x_1.nii.gz")
        listed = [{"image": "./imagesTr/x_1.nii.gz", "label": "./labelsTr/x_1.nii.gz"}]
        (tmp_path / folder / "dataset.json").write_text(json.dumps({"modality": {"0": modality}, "training": listed}))
    found = read_layout(tmp_path)
    assert {(s.case, s.modality, s.split) for s in found.scans} == {
        (f"x_{n}", m, s) for m in ("MR", "CT") for n, s in ((1, "train"), (2, "test"))
    }
    assert found.left_out == {"Task01_Mr/labelsTr": 1, "Task02_Ct/labelsTr": 1}
    (tmp_path / "Task01_Mr/imagesTr/x_1.nii.gz").unlink()
    with pytest.raises(InputError, match="lists files that are not there"):
        read_layout(tmp_path)


def test_cases_with_four_digits_are_no_channels_where_they_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/x_0001.nii.gz", "imagesTr/x_0002.nii.gz")
    listed = [{"image": f"./imagesTr/x_000{i}.nii.gz"} for i in (1, 2)]
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "training": listed}))
    assert [s.case for s in read_layout(tmp_path).scans] == ["x_0001", "x_0002"]


@pytest.mark.parametrize(
    ("content", "files", "message"),
    [
        ('{"modality": {"0": "T1", "1": "T2"}}', ["imagesTr/a.nii.gz"], "no channel suffix"),
        ('{"channel_names": {"0": "T1"}}', ["imagesTr/a_0001.nii.gz"], "is channel 1"),
        ('{"channel_names": ["T1"]}', ["imagesTr/a_0000.nii.gz"], "an object of number: name"),
        ("{", ["imagesTr/a_0000.nii.gz"], "cannot be read"),
        ("{}", ["imagesTr/readme.txt"], "no volume was found"),
    ],
)
def test_decathlon_mistakes(tmp_path: Path, content: str, files: list[str], message: str) -> None:
    touch(tmp_path, *files)
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_layout(tmp_path)


def test_synthrad(tmp_path: Path) -> None:
    names = (
        *(f"Task1/brain/1BA001/{kind}.nii.gz" for kind in ("mr", "ct", "mask")),
        "Task1/brain/1BB002/mr.nii.gz",
        *(f"Task2/TH/2THC003/{kind}.mha" for kind in ("cbct", "ct", "mask")),
        "Task1/brain/overview/1BA001.png",
    )
    found = read_layout(touch(tmp_path, *names))
    assert found.layout == "synthrad"
    assert {(s.case, s.modality, s.kind, s.domain, s.site, s.body is not None) for s in found.scans} == {
        ("1BA001", "MR", "mr", "a", "B-A", True),
        ("1BA001", "CT", "ct", "b", "B-A", True),
        ("1BB002", "MR", "mr", "a", "B-B", False),
        ("2THC003", "CT", "cbct", "a", "TH-C", True),
        ("2THC003", "CT", "ct", "b", "TH-C", True),
    }
    touch(tmp_path, "Task1/brain/1BA001/mr.mha")
    with pytest.raises(InputError, match=r"mr\.mha and mr\.nii\.gz"):
        read_layout(tmp_path)


def test_bids(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "dataset_description.json",
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_ce-gd_T1w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_run-2_T1w.nii.gz",
        "sub-01/ses-a/ct/sub-01_ses-a_ct.nii.gz",
        "sub-02/anat/sub-02_FLAIR.nii",
        "sub-02/func/sub-02_task-rest_bold.nii.gz",
        "derivatives/sub-01/anat/sub-01_T1w.nii.gz",
    )
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tsite\tscanner\nsub-01\t30\tX\tn/a\nsub-02\t4\tY\tT\n"
    )
    found = read_layout(tmp_path)
    assert found.layout == "bids"
    assert {(s.case, s.patient, s.modality, s.kind, s.site) for s in found.scans} == {
        ("sub-01_ses-a", "sub-01", "MR", "T1w", "X"),
        ("sub-01_ses-a", "sub-01", "MR", "ce-gd_T1w", "X"),
        ("sub-01_ses-b_run-2", "sub-01", "MR", "T1w", "X"),
        ("sub-01_ses-a", "sub-01", "CT", "ct", "X"),
        ("sub-02", "sub-02", "MR", "FLAIR", "Y T"),
    }
    assert found.left_out == {"derivatives/sub-01/anat": 1, "sub-02/func": 1}
    (tmp_path / "sub-02/anat/sub-02_FLAIR.nii").rename(tmp_path / "sub-02/anat/sub-09_FLAIR.nii")
    with pytest.raises(InputError, match="its name says otherwise"):
        read_layout(tmp_path)


def test_dicom_by_patient(tmp_path: Path) -> None:
    def header(description: str, number: str, scanner: str = "Ours"):
        def change(ds, k: int) -> None:
            ds.SeriesDescription, ds.PatientID, ds.Manufacturer = description, number, scanner

        return change

    array = stored()
    write_series(tmp_path / "anna/x/mr", array, change=header("T1 MPRAGE sag", "n1"))
    write_series(tmp_path / "anna/x/t2", array, change=header("t2 tse", "n1"), uid="1.2.3.4.11111111")
    write_series(tmp_path / "anna ct/y", array, modality="CT", change=header("head", "n1"))
    write_series(tmp_path / "bert", array, change=header("Ax T1 post gd", "n2", "Theirs"))
    found = read_layout(tmp_path)
    assert found.layout == "dicom"
    scans = {(s.kind, s.modality, s.patient, s.site) for s in found.scans}
    assert scans == {
        ("T1w", "MR", "anna", "Ours"),
        ("T2w", "MR", "anna", "Ours"),
        ("CT", "CT", "anna", "Ours"),
        ("T1w contrast agent", "MR", "bert", "Theirs"),
    }
    assert {Path(s.image).name for s in found.scans if s.patient == "bert"} == {"bert"}
    assert {str(s.image) for s in found.scans if s.kind == "T2w"} == {f"{tmp_path / 'anna'}#11111111"}
    assert "n1" not in repr(found), "nothing of the patient's identity"


def test_a_series_without_a_uid_cannot_be_one_of_several(tmp_path: Path) -> None:
    for name, keep in (("t1", True), ("t2", False)):
        write_series(
            tmp_path / "p1" / name,
            stored(),
            change=lambda ds, k, keep=keep: None if keep else ds.__delattr__("SeriesInstanceUID"),
        )
    write_series(tmp_path / "p2", stored(), modality="CT", change=lambda ds, k: ds.__delattr__("SeriesInstanceUID"))
    with pytest.raises(InputError, match=r"p1 holds several series, and one has no SeriesInstanceUID"):
        read_layout(tmp_path)


def test_two_dicom_folders_of_one_patient(tmp_path: Path) -> None:
    def number(value: str):
        def change(ds, k: int) -> None:
            ds.PatientID = value

        return change

    for folder, value in (("z", "one"), ("x", "two"), ("y", "one")):
        write_series(tmp_path / folder, stored(), change=number(value))
    assert {s.case: s.patient for s in read_layout(tmp_path).scans} == {"x": "x", "y": "y", "z": "y"}
    # An anonymizer that gives everybody the same number says nothing.
    for folder in ("x", "y", "z"):
        write_series(tmp_path / "same" / folder, stored(), change=number("ANON"))
    assert {s.case: s.patient for s in read_layout(tmp_path / "same").scans} == {"x": "x", "y": "y", "z": "z"}


def test_dicom_between_other_things(tmp_path: Path) -> None:
    write_series(tmp_path / "mr/p1", stored())
    touch(tmp_path, "mr/p1/preview.png", "mr/p2/t1.nii", "mr/p2/preview.png", "mr/notes.txt")
    write_series(tmp_path / "ct", stored(), modality="CT")
    write_series(tmp_path / "pet/p1", stored())
    with pytest.raises(InputError, match=r"folders .*; dicom .the folder pet holds DICOM"):
        read_layout(tmp_path)
    found = read_layout(tmp_path, "folders")
    # The series and not its preview; slices that lie in the domain's folder itself are one scan.
    assert {(s.case, s.image.relative_to(tmp_path).as_posix()) for s in found.scans} == {
        ("p1", "mr/p1"),
        ("p2", "mr/p2/t1.nii"),
        ("ct", "ct"),
    }
    assert found.left_out == {"pet": 1}
    touch(tmp_path, "ct/volume.nii")
    with pytest.raises(InputError, match="DICOM files beside volumes or folders"):
        read_layout(tmp_path, "folders")


def test_csv(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.nii", "x/2.nii", "x/m.nii")
    table = tmp_path / "cohort.csv"
    table.write_text("image,domain,patient,site,split,body\nx/1.nii,a,P,Bonn,train,x/m.nii\nx/2.nii,b,,Köln,test,\n")
    for root in (tmp_path, table):
        found = read_layout(root)
        assert found.layout == "csv"
        assert [(s.image, s.case, s.patient, s.site, s.split, s.body) for s in found.scans] == [
            (tmp_path / "x/1.nii", "1", "P", "Bonn", "train", tmp_path / "x/m.nii"),
            (tmp_path / "x/2.nii", "2", "2", "Köln", "test", None),
        ]


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ("image,domian\n1.nii,a\n", ["no column domian", "a column domain"]),
        (
            "image,domain,split\n1.nii,c,later\n,a,\n",
            ["domain is 'c'", "split is 'later'", "line 3: the image is empty"],
        ),
        ("image,domain\n1.nii,\n2.nii,a,9\n", ["line 2: neither", "line 3: more values"]),
        ("image,domain\n", ["no volume"]),
        ("file,domain\n1.nii,a\n", ["has the columns domain, file"]),
    ],
)
def test_csv_mistakes_are_all_named(tmp_path: Path, content: str, messages: list[str]) -> None:
    (tmp_path / "cohort.csv").write_text(content)
    with pytest.raises(InputError) as caught:
        read_layout(tmp_path / "cohort.csv", "csv")
    for message in messages:
        assert message in str(caught.value)


# What makes a tree of each layout, next to which a second one is ambiguous.
TREES: dict[str, tuple[str, ...]] = {
    "folders": ("mr/1.nii", "ct/2.nii"),
    "cyclegan": ("trainA/1.nii", "trainB/2.nii"),
    "decathlon": ("dataset.json", "imagesTr/1.nii"),
    "synthrad": ("brain/1BA001/mr.nii", "brain/1BA001/ct.nii"),
    "bids": ("sub-1/anat/sub-1_T1w.nii",),
    "csv": ("list.csv",),
}


def plant(root: Path, name: str) -> None:
    touch(root, *TREES[name])
    if name == "decathlon":
        (root / "dataset.json").write_text('{"modality": {"0": "MR"}}')
    if name == "csv":
        (root / "list.csv").write_text("image,domain\nmr/1.nii,a\n")


@pytest.mark.parametrize("first", TREES)
@pytest.mark.parametrize("second", TREES)
def test_each_tree_fits_one_layout_and_two_are_ambiguous(tmp_path: Path, first: str, second: str) -> None:
    plant(tmp_path, first)
    if first == second:
        assert read_layout(tmp_path).layout == first
        return
    plant(tmp_path, second)
    with pytest.raises(InputError) as caught:
        read_layout(tmp_path)
    assert f"{first} (" in str(caught.value) and f"{second} (" in str(caught.value) and "--layout" in str(caught.value)
    assert read_layout(tmp_path, first).layout == first


def test_no_layout_names_all(tmp_path: Path) -> None:
    touch(tmp_path, "stuff/x.nii")
    with pytest.raises(InputError) as caught:
        read_layout(tmp_path)
    assert "it holds stuff/" in str(caught.value) and all(name in str(caught.value) for name in LAYOUTS)
    with pytest.raises(InputError, match="there is no layout 'nnunet'"):
        read_layout(tmp_path, "nnunet")
    with pytest.raises(InputError, match="does not exist"):
        read_layout(tmp_path / "nowhere")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_named_layout_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "stuff/readme.txt")
    with pytest.raises(InputError):
        read_layout(tmp_path, name)


def test_masks_between_volumes_and_twins_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/p_mask.nii.gz", "a/p.nii.gz", "b/q.nii")
    with pytest.raises(InputError, match=r"masks or labels between(.|\n)*p_mask\.nii\.gz"):
        read_layout(tmp_path)
    (tmp_path / "a/p_mask.nii.gz").rename(tmp_path / "a/p.mha")
    with pytest.raises(InputError, match="same case id"):
        read_layout(tmp_path)


@pytest.mark.parametrize(
    ("name", "patient", "slice_of"),
    [
        ("p07_mr", "p07", "p07"),
        ("CT-p07", "p07", "p07"),
        ("p07", "p07", "p07"),
        ("t1", "t1", "t1"),
        ("mary_t1w", "mary", "mary"),
        ("smart_005", "smart_005", "smart"),
        ("p1_ct_slice_012", "p1_ct_slice_012", "p1"),
        ("0012", "0012", ""),
        ("slice12", "slice12", ""),
    ],
)
def test_patients_from_names(name: str, patient: str, slice_of: str) -> None:
    assert (patient_of(name), patient_of_picture(name)) == (patient, slice_of)


def test_modalities_from_names() -> None:
    names = ("MRI", "T1", "t2w", "CT", "cbct", "MR T1", "PET", "mr ct", "smart")
    assert [modality_of(name) for name in names] == ["MR", "MR", "MR", "CT", "CT", "MR", "", "", ""]


def test_links_in_circles_end_and_show_every_file_once(tmp_path: Path) -> None:
    touch(tmp_path, "mr/1.nii", "ct/2.nii")
    (tmp_path / "mr" / "up").symlink_to(tmp_path)
    (tmp_path / "ct" / "self").symlink_to(tmp_path / "ct")
    (tmp_path / "ct" / "loop").symlink_to(tmp_path / "ct" / "loop")
    (tmp_path / "ct" / "other").symlink_to(tmp_path / "more", target_is_directory=True)
    touch(tmp_path, "more/3.nii")
    found = read_layout(tmp_path)
    # mr/up would lead back to the root, ct/self to ct; what ct/other leads to belongs to ct.
    assert sorted(s.image.relative_to(tmp_path).as_posix() for s in found.scans) == [
        "ct/2.nii",
        "ct/other/3.nii",
        "mr/1.nii",
    ]


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "mr/1.nii", "ct/2.nii", "mr/closed/3.nii")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"mr/closed cannot be listed: Permission denied\. Allow reading it"):
        read_layout(tmp_path)


def test_a_file_that_may_not_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without a known ending are opened, to see whether they are DICOM."""
    touch(tmp_path, "p1/slice", "p2/slice")
    opened = Path.open

    def refuse(self: Path, *arguments, **named):
        if self.name == "slice":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"p1/slice cannot be read: Permission denied"):
        read_layout(tmp_path)


def test_unicode_and_spaces(tmp_path: Path) -> None:
    composed, apart = unicodedata.normalize("NFC", "Zoë Müller"), unicodedata.normalize("NFD", "Zoë Müller")
    touch(tmp_path / "my cohort ü", f"mr/{composed} mr.nii.gz", f"ct/{apart} ct.nii.gz")
    found = read_layout(tmp_path / "my cohort ü")
    assert {s.patient for s in found.scans} == {composed}
    assert all(s.image.exists() for s in found.scans)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "mr/1.nii", "ct/2.nii")
    try:
        (tmp_path / "ct" / os.fsdecode(b"bad\xff.nii")).touch()
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(InputError, match="is not text"):
        read_layout(tmp_path)


def test_ten_thousand_files(tmp_path: Path) -> None:
    for domain in ("trainA", "trainB"):
        (tmp_path / domain).mkdir()
        for i in range(5000):
            (tmp_path / domain / f"p{i // 10:04d}_{i % 10:03d}.png").touch()
    found = read_layout(tmp_path)
    assert len(found.scans) == 10_000
    assert len({s.patient for s in found.scans}) == 500


def test_results_do_not_depend_on_the_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *(f"{d}/p{i}/{k}.nii" for d in ("mr", "ct") for i in range(4) for k in "xy"))
    before = read_layout(tmp_path)
    scandir = os.scandir

    class Reversed:
        def __init__(self, path) -> None:
            with scandir(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert read_layout(tmp_path) == before


def test_a_file_as_root_is_a_table_or_nothing(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((2, 2, 2), np.uint8))
    sitk.WriteImage(image, str(tmp_path / "x.nii"))
    with pytest.raises(InputError, match="fits no layout"):
        read_layout(tmp_path / "x.nii")
    assert Tree(tmp_path / "x.nii").files() == ["x.nii"]
