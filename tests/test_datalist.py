"""Cohorts from folders and datalists: pairing by id, and every mistake named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from monai.data import load_decathlon_datalist

from medcyclegan.data.datalist import Case, Pair, from_folders, from_json
from medcyclegan.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("mr/p1.nii.gz", "mr/p2.mha", "ct/x.nii", "ct/y.nrrd", "masks/p2.nii.gz", "masks/p1.nii.gz", "v/a.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_folders_of_mixed_formats_and_masks_by_id(folder: Path) -> None:
    cohort = from_folders(folder / "mr", folder / "ct", masks_a=folder / "masks")
    assert cohort.a == (
        Case("p1", folder / "mr/p1.nii.gz", folder / "masks/p1.nii.gz"),
        Case("p2", folder / "mr/p2.mha", folder / "masks/p2.nii.gz"),
    )
    assert [case.id for case in cohort.b] == ["x", "y"]


def test_masks_that_do_not_fit_are_all_named(folder: Path) -> None:
    (folder / "masks/p1.nii.gz").rename(folder / "masks/p9.nii.gz")
    with pytest.raises(InputError) as caught:
        from_folders(folder / "mr", folder / "ct", masks_a=folder / "masks")
    assert "p1: no mask" in str(caught.value) and "p9.nii.gz: no volume" in str(caught.value)


def test_same_folder_twice(folder: Path) -> None:
    with pytest.raises(InputError, match="are the same"):
        from_folders(folder / "mr", folder / "mr")


def test_pairs_csv(folder: Path) -> None:
    (folder / "pairs.csv").write_text("case,a,b,mask\nv1,v/a.nii,v/a.nii,\n")
    cohort = from_folders(folder / "mr", folder / "ct", pairs=folder / "pairs.csv")
    assert cohort.pairs == (Pair("v1", folder / "v/a.nii", folder / "v/a.nii", None),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,a,b\n1,x,y\n", "it needs case, a, b"),
        ("case,a,b\n1,,y\n", "rows with an empty"),
        ("case,a,b\n1,mr/p1.nii.gz,v/a.nii\n", "must not be trained on"),
        ("case,a,b\n1,v/nowhere.nii,v/a.nii\n", "there is no file"),
        ("case,a,b\n../1,v/a.nii,v/a.nii\n", "cannot be a case id"),
        ("case,a,b\n1,v/a.nii,v/a.nii\n1,v/a.nii,v/a.nii\n", "occurs more than once"),
    ],
)
def test_pairs_mistakes(folder: Path, text: str, message: str) -> None:
    (folder / "pairs.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        from_folders(folder / "mr", folder / "ct", pairs=folder / "pairs.csv")


def test_datalist_is_what_monai_reads(folder: Path) -> None:
    file = folder / "cohort.json"
    content = {
        "a": [{"image": "mr/p1.nii.gz", "body": "masks/p1.nii.gz"}, {"image": "mr/p2.mha", "case": "two"}],
        "b": [{"image": "ct/x.nii"}],
        "pairs": [{"case": "v1", "a": "v/a.nii", "b": "v/a.nii"}],
    }
    file.write_text(json.dumps(content))
    cohort = from_json(file)
    assert [case.id for case in cohort.a] == ["p1", "two"]
    assert cohort.a[0].body == folder / "masks/p1.nii.gz"
    listed = load_decathlon_datalist(str(file), data_list_key="a")
    assert [Path(item["image"]) for item in listed] == [case.image for case in cohort.a]


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ("{", ["not JSON"]),
        ("[]", ["must be an object"]),
        ('{"a": [], "b": [{"image": "ct/x.nii"}]}', ["a: no case"]),
        (
            '{"a": [{"img": "x"}, {"image": 3}], "b": ["x"]}',
            ["a[0]: unknown key img", "a[1]", "b[0]: must be an object"],
        ),
        ('{"a": [{"image": "mr/none.nii"}], "b": [{"image": "ct/none.nii"}]}', ["none.nii", "b: case none"]),
    ],
)
def test_datalist_mistakes_are_all_named(folder: Path, content: str, messages: list[str]) -> None:
    (folder / "cohort.json").write_text(content)
    with pytest.raises(InputError) as caught:
        from_json(folder / "cohort.json")
    for message in messages:
        assert message in str(caught.value)
