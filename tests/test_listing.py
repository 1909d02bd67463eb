"""One finder: what is refused for work and what is only told, layouts and listings see the same files."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from dicom_files import stored, write_series

from medcyclegan.cohort.layouts import read_layout
from medcyclegan.errors import InputError
from medcyclegan.io.listing import list_volumes, look_below, look_in, volume_files
from medcyclegan.io.reader import read_volume
from medcyclegan.io.tree import Tree, case_id, named_volumes


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_series(tmp_path_factory.mktemp("dicom") / "s", stored())


def plant(folder: Path, names: tuple[str, ...], series: Path) -> Path:
    """Empty files, but DICOM where a name ends with "/" (a series), ".zip" or "*" (the slices themselves)."""
    folder.mkdir(parents=True)
    for name in names:
        path = folder / name.rstrip("*")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(("/", "*")):
            shutil.copytree(series, path, dirs_exist_ok=True)
        elif name.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as archive:
                archive.write(next(series.iterdir()), "1.dcm")
        else:
            path.touch()
    return folder


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *(("a.nii", "a"), ("a.nii.gz", "a"), ("/x/a.b.MHA", "a.b"), ("a.Nii.Gz", "a"), ("a.mhd", "a"), ("a.nrrd", "a")),
        *(("a.gz", "a.gz"), ("series", "series"), ("p#x", "p#x"), ("a/study.zip", "study"), ("study.DCM", "study")),
        *(("study#123.4", "study"), ("study.zip#7", "study")),
    ],
)
def test_case_id(name: str, case: str) -> None:
    assert case_id(name) == case


@pytest.mark.parametrize(
    ("names", "volumes"),
    [
        (("b.nii.gz", "a.mhd", "a.raw", "C.NRRD", ".h.nii", "notes.txt", "deep/x.nii"), "C.NRRD a.mhd b.nii.gz"),
        (("p/x/", "q.zip", "r.nii/", "s/readme.txt", "v.nii", "v.png"), "p q.zip r.nii v.nii"),
        (("*", "readme.txt", "preview.png"), "."),
        (("a.nii", "a.nii.png", "b.mgz"), "a.nii"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*left out")
def test_every_way_of_finding_sees_the_same_volumes(
    names: tuple[str, ...], volumes: str, series: Path, tmp_path: Path
) -> None:
    for domain in ("mr", "ct"):
        plant(tmp_path / domain, names, series)
    expected = [tmp_path / "mr" / name for name in volumes.split()]
    found = list_volumes(tmp_path / "mr")
    assert found == {path.name if path.is_dir() else case_id(path): path for path in expected}
    assert list(found) == sorted(found) and look_in(tmp_path / "mr").volumes == expected
    for path in expected:
        assert volume_files(path) == (sorted(path.rglob("*.dcm")) if path.is_dir() else [path])
    scans = {scan.image for scan in read_layout(tmp_path, "folders").scans if scan.kind == "mr"}
    deep = {tmp_path / "mr/deep/x.nii"} & scans  # a layout looks into the folders of patients
    assert scans - deep == {*expected}
    # Below a folder, a series is the folder that its slices lie in.
    below = {path / "x" if path.name == "p" else path for path in (*expected, *deep)}
    assert {*look_below([tmp_path / "mr"]).volumes} == below


def test_2d_images_are_cases_where_there_is_nothing_else(tmp_path: Path, series: Path) -> None:
    assert list(list_volumes(plant(tmp_path / "x", ("1.png", "2.tif", "a.txt"), series))) == ["1", "2"]


def test_what_is_refused_is_told_where_nothing_is(series: Path, tmp_path: Path) -> None:
    both = plant(tmp_path / "both", ("*", "x.nii"), series)
    (both / "circle").symlink_to(both)
    with pytest.raises(InputError, match=r"4 DICOM files beside other volumes \(x\.nii\)"):
        list_volumes(both)
    found = look_in(both)
    assert found.volumes == [both / "x.nii"] and "beside other volumes" in found.unusable[both]
    assert found.left_out == [both / "circle"]
    lost = plant(tmp_path / "lost", ("a.nii",), series)
    for name in ("b.nii", "c", "notes.txt"):
        (lost / name).symlink_to(tmp_path / "gone" / name)
    cases = list_volumes(lost)  # which are missed when they are read
    assert list(cases) == ["a", "b", "c"]
    for case in ("b", "c"):
        with pytest.raises(InputError, match=rf"{case}\S* is a link to \S*gone/{case}\S*, which does not exist"):
            read_volume(cases[case])
    assert look_in(lost).volumes == look_below([lost]).volumes == [lost / "a.nii"]
    assert {path.name for path in look_below([lost]).unusable} == {"b.nii", "c", "notes.txt"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.nii", "a.mha"), r"'a': a\.mha, a\.nii"),
        (("1.txt", "2.txt", "3.txt", "sub/x"), r"\(\.nii, \.nii\.gz, .*holds 3 \.txt files, 1 sub-folder"),
    ],
)
def test_folders_that_are_refused(names: tuple[str, ...], message: str, series: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        list_volumes(plant(tmp_path / "x", names, series))
    with pytest.raises(InputError, match="is a file"):
        list_volumes(tmp_path / "x" / names[0])
    with pytest.raises(InputError, match="does not exist"):
        list_volumes(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("t1.mgz", ".mgz"), ("t1.nii.bz2", ".nii.bz2"), ("t1.nii.gz.part", ".nii.gz.part"), ("T1.HDR", ".hdr")),
        *(("scan.nhdr", ".nhdr"), ("scan.mif.gz", ".mif.gz"), ("brain+orig.HEAD", ".head"), ("s.tar.gz", ".tar.gz")),
    ],
)
def test_formats_that_cannot_be_read_are_named(name: str, kind: str, tmp_path: Path, series: Path) -> None:
    folder = plant(tmp_path / "x", (name,), series)
    with pytest.raises(InputError, match=r"holds no volume that can be read.*Convert them"):
        list_volumes(folder)
    for other in ("a.nii", "a.json", "table.csv", "a.raw", "a.bval", "notes.txt", "table.csv.gz"):
        (folder / other).touch()
    with pytest.warns(UserWarning) as caught:
        assert list(list_volumes(folder)) == ["a"]
    assert [str(warning.message) for warning in caught] == [
        f"{folder}: 1 file of a format that cannot be read ({kind}) left out: {name}."
    ]


def test_one_warning_per_kind(tmp_path: Path, series: Path) -> None:
    folder = plant(tmp_path / "x", ("a.nii", *(f"{k}.mgz" for k in range(5)), "x.mnc"), series)
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.writestr("scan.nii", b"")
    with pytest.warns(UserWarning) as caught:
        list_volumes(folder)
    assert [str(warning.message).removeprefix(f"{folder}: ") for warning in caught] == [
        "5 files of a format that cannot be read (.mgz) left out: 0.mgz, 1.mgz, 2.mgz, ...",
        "1 file of a format that cannot be read (.zip without DICOM) left out: more.zip.",
        "1 file of a format that cannot be read (.mnc) left out: x.mnc.",
    ]


def test_a_file_is_found_once_however_it_is_reached(tmp_path: Path, series: Path) -> None:
    plant(tmp_path / "root", ("a/x.nii", "one.dcm"), series)
    (tmp_path / "root/a/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/b").symlink_to(tmp_path / "root/a")
    (tmp_path / "link").symlink_to("nowhere")
    paths = [tmp_path / "root", tmp_path / "root/a", tmp_path / "root/a/x.nii", tmp_path / "link"]
    found = look_below(paths)
    assert found.volumes == [tmp_path / "root", tmp_path / "root/a/x.nii"]
    assert list(found.unusable) == [tmp_path / "link"]
    assert list(Tree(tmp_path / "root").every_folder()) == ["", "a", "b"]


def test_volumes_of_a_name_in_any_case_and_depth(tmp_path: Path, series: Path) -> None:
    plant(tmp_path / "root", ("ct.nii", "x/y/CT.nii.gz", "x/y/mr.mha", "x/y/z/ct.mha", "x/ct.txt"), series)
    tree, root = Tree(tmp_path / "root"), tmp_path / "root"
    assert named_volumes(tree, ("ct", "mr")) == {
        "x/y": {"ct": root / "x/y/CT.nii.gz", "mr": root / "x/y/mr.mha"},
        "x/y/z": {"ct": root / "x/y/z/ct.mha"},
    }
    (root / "x/y/ct.mha").touch()
    with pytest.raises(InputError, match=r"y holds CT\.nii\.gz and ct\.mha\. Keep one"):
        named_volumes(Tree(root), ("ct",))
