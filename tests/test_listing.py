"""One finder: what is refused for work and what is only told, layouts and listings see the same files."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from dicom_files import stored, write_series

from medcyclegan.cohort.layouts import read_layout
from medcyclegan.errors import InputError
from medcyclegan.io.listing import list_volumes, look_below, look_in
from medcyclegan.io.tree import Tree, named_volumes


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
    assert sorted(list_volumes(tmp_path / "mr").values()) == look_in(tmp_path / "mr").volumes == expected
    scans = {scan.image for scan in read_layout(tmp_path, "folders").scans if scan.kind == "mr"}
    deep = {tmp_path / "mr/deep/x.nii"} & scans  # a layout looks into the folders of patients
    assert scans - deep == {*expected}
    # Below a folder, a series is the folder that its slices lie in.
    below = {path / "x" if path.name == "p" else path for path in (*expected, *deep)}
    assert {*look_below([tmp_path / "mr"]).volumes} == below


def test_what_is_refused_is_told_where_nothing_is(series: Path, tmp_path: Path) -> None:
    both = plant(tmp_path / "both", ("*", "x.nii"), series)
    (both / "circle").symlink_to(both)
    with pytest.raises(InputError, match="4 DICOM files beside other volumes"):
        list_volumes(both)
    found = look_in(both)
    assert found.volumes == [both / "x.nii"] and "beside other volumes" in found.unusable[both]
    assert found.left_out == [both / "circle"]
    lost = plant(tmp_path / "lost", ("a.nii",), series)
    for name in ("b.nii", "c", "notes.txt"):
        (lost / name).symlink_to("nowhere")
    assert list(list_volumes(lost)) == ["a", "b", "c"]  # which are missed when they are read
    assert look_in(lost).volumes == look_below([lost]).volumes == [lost / "a.nii"]
    assert {path.name for path in look_below([lost]).unusable} == {"b.nii", "c", "notes.txt"}


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
