"""Cohorts from folders and datalists: pairing by id, and every mistake named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from monai.data import load_decathlon_datalist

from medcyclegan.cohort.cases import Case, from_folders
from medcyclegan.cohort.datalist import from_json
from medcyclegan.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scans = ("mr/p1.nii.gz", "mr/p2.mha", "ct/x.nii", "ct/y.nrrd", "v/a.nii", "v/b.nii")
    for name in (*scans, "masks/p2.nii.gz", "masks/p1.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_folders_of_mixed_formats_and_masks_by_id(folder: Path) -> None:
    cohort = from_folders(folder / "mr", folder / "ct", masks_a=folder / "masks")
    assert cohort.a == (
        Case("p1", (folder / "mr/p1.nii.gz",), folder / "masks/p1.nii.gz"),
        Case("p2", (folder / "mr/p2.mha",), folder / "masks/p2.nii.gz"),
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
    (folder / "pairs.csv").write_text("case,a,b,mask\nv1,v/a.nii,v/b.nii,\n")
    cohort = from_folders(folder / "mr", folder / "ct", pairs=folder / "pairs.csv")
    assert cohort.pairs == ((Case("v1", (folder / "v/a.nii",)), Case("v1", (folder / "v/b.nii",))),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,a,b\n1,x,y\n", "it needs case, a, b"),
        ("case,a,b\n1,,y\n", "rows with an empty"),
        ("case,a,b\n1,mr/p1.nii.gz,v/a.nii\n", "must not be trained on"),
        ("case,a,b\n1,v/nowhere.nii,v/a.nii\n", "there is no file"),
        ("case,a,b\n../1,v/a.nii,v/b.nii\n", "cannot be a case id"),
        ("case,a,b\n1,v/a.nii,v/b.nii\n1,v/a.nii,v/b.nii\n", "occurs more than once"),
        ("case,a,b\n1,v/a.nii,v/b.nii,junk\n", "line 2: more values than columns"),
        ("case,a,b,mask\n1,v/a.nii,v/b.nii\n", "line 2: fewer values than columns"),
        ("case,a,b\n1,v/a.nii\0,v/b.nii\n", "NUL"),
        ('case,a,b\n"1,v/a.nii,v/b.nii\n2,v/a.nii,v/b.nii\n', "quotation mark is not closed"),
        ("case,a,b\n", "holds no pair"),
        ("", "has the columns \\(none\\)"),
        ("case,a,b,a\n1,v/a.nii,v/b.nii,v/b.nii\n", "more than one column a"),
        ("case,a,b,\n1,v/a.nii,v/b.nii,x\n", "a value in a column without a name"),
        ("case,a,b\n1,v/a.nii,v/a.nii\n", "the same file stands for more than one"),
        ("case,a,b,mask\n1,v/a.nii,v/b.nii,v/b.nii\n", "its body mask and its image"),
        ("case;a;b\n1;v/a.nii;v/b.nii\n", "has the columns case;a;b"),
        ("case,a,b\n1,v/a\u00fc.nii,v/b.nii\n".encode("latin-1"), "no text in UTF-8: line 2 holds the byte 0xfc"),
    ],
)
def test_tables_of_pairs_are_read_strictly(folder: Path, text: str | bytes, message: str) -> None:
    (folder / "pairs.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        from_folders(folder / "mr", folder / "ct", pairs=folder / "pairs.csv")
    assert "\0" not in str(caught.value)


def test_tables_as_spreadsheets_write_them(folder: Path) -> None:
    (folder / "pairs.csv").write_bytes(b'\xef\xbb\xbfcase,a,b,\r\n"v1",v/a.nii,v/b.nii,\r\n,,,\r\n\r\n')
    cohort = from_folders(folder / "mr", folder / "ct", pairs=folder / "pairs.csv")
    assert cohort.pairs == ((Case("v1", (folder / "v/a.nii",)), Case("v1", (folder / "v/b.nii",))),)


def one(entry: str, **lists: str) -> str:
    more = "".join(f', "{name}": {value}' for name, value in lists.items())
    return f'{{"a": [{{"image": "mr/p1.nii.gz"{entry}}}], "b": [{{"image": "ct/x.nii"}}]{more}}}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": [{"image": "mr/p1.nii.gz"}], "b": [{"image": "ct/x.nii"}], "a": []}', "the key 'a' is given twice"),
        (one(', "image": "mr/p2.mha"'), "the key 'image' is given twice"),
        (one(', "fold": ' + "9" * 5000), "whole number beyond 64 bits"),
        (one(', "fold": 1e999'), "no finite number"),
        (one(', "fold": true'), "fold must be a whole number, got True"),
        (one("", pairs="[" * 3000), "nested more than"),
        (one("", pairs="[" * 60 + "]" * 60), "nested more than"),
        (one(', "case": "a\\u0000b"'), "holds a NUL character"),
        (one(', "case": "a\\ud800b"'), "lone surrogate"),
        (one("", val_a="null"), "val_a: must be a list"),
        (one(', "body": null'), "body: text is needed, got None"),
        (one(', "body": ""'), "body is empty"),
        (one(', "body": "mr/p1.nii.gz"'), "its body mask and its image"),
        *[
            (one(f', "case": {json.dumps(id)}'), message)
            for id, message in (
                ("a/b", "a slash or backslash"),
                ("a\\b", "a slash or backslash"),
                ("a\nb", "a line break"),
                ("a\x07b", "cannot be shown"),
                ("..", "begins or ends with a dot"),
                ("a.", "begins or ends with a dot"),
                (" ", "begins or ends with a space"),
                ("a ", "begins or ends with a space"),
                ("x" * 300, "longer than 150 bytes"),
            )
        ],
        (
            '{"a": [{"image": "mr/p1.nii.gz", "case": "A"}, {"image": "mr/p2.mha", "case": "a"}],'
            ' "b": [{"image": "ct/x.nii"}]}',
            "'A' and 'a' are the same name on many file systems",
        ),
        (
            '{"a": [{"image": "mr/p1.nii.gz"}, {"image": "mr/../mr/p1.nii.gz", "case": "q"}],'
            ' "b": [{"image": "ct/x.nii"}]}',
            "is listed more than once: case p1 of a, case q of a",
        ),
        (
            '{"a": [{"image": "mr/p1.nii.gz"}], "b": [{"image": "mr/p1.nii.gz"}]}',
            "is listed more than once: case p1 of a, case p1 of b",
        ),
        (one(', "body": "' + "y" * 5000 + '"'), "cannot be looked for: File name too long"),
        (one("", test_a='[{"image": "mr/p1.nii.gz"}]'), "mr/p1.nii.gz is in test_a too"),
        ('\ufeff{"a": 1 // no JSON', "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_datalists_are_read_strictly(folder: Path, text: str, message: str) -> None:
    (folder / "cohort.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        from_json(folder / "cohort.json")
    assert "cohort.json" in str(caught.value) and len(str(caught.value)) < 1000


def test_datalist_is_what_monai_reads(folder: Path) -> None:
    file = folder / "cohort.json"
    content = {
        "a": [{"image": "mr/p1.nii.gz", "body": "masks/p1.nii.gz"}, {"image": "mr/p2.mha", "case": "two"}],
        "b": [{"image": "ct/x.nii"}],
        "pairs": [{"case": "v1", "a": "v/a.nii", "b": "v/b.nii"}],
    }
    file.write_text(json.dumps(content))
    cohort = from_json(file)
    assert [case.id for case in cohort.a] == ["p1", "two"]
    assert cohort.a[0].body == folder / "masks/p1.nii.gz"
    listed = load_decathlon_datalist(str(file), data_list_key="a")
    assert [Path(item["image"]) for item in listed] == [case.images[0] for case in cohort.a]


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
