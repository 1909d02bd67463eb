"""The prepared cache: right content, reuse exactly when nothing changed, and nothing half-done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from prepared_cohorts import prepare
from scipy import ndimage

from medcyclegan import config, factory, phantom
from medcyclegan.cohort.cases import Case, Cohort, from_folders
from medcyclegan.data.examination import Source, content_hash
from medcyclegan.data.prepared import PreparedCohort, _pairs_apart, open_prepared
from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import read_volume
from medcyclegan.survey.volume import Survey
from medcyclegan.transforms.pipeline import Preparation


@pytest.fixture
def folders(cohort: phantom.Cohort, tmp_path: Path) -> tuple[Path, Path]:
    for name, files in (("mr", cohort.train_mr), ("ct", cohort.train_ct)):
        (tmp_path / name).mkdir()
        for file in files:
            shutil.copy(file, tmp_path / name)
    return tmp_path / "mr", tmp_path / "ct"


def make(folders: tuple[Path, Path], output: Path, **settings: Any) -> PreparedCohort:
    return prepare(from_folders(*folders), output, **settings)


def times(output: Path) -> dict[str, int]:
    return {str(file.relative_to(output)): file.stat().st_mtime_ns for file in output.rglob("image.npy")}


def test_cases_are_in_range_and_know_where_they_came_from(prepared: PreparedCohort) -> None:
    assert [len(prepared.cases[group]) for group in ("a", "b", "pairs_a", "pairs_b")] == [2, 2, 1, 1]
    for cases in prepared.cases.values():
        for case in cases:
            assert isinstance(case.image._stored, np.memmap)
            image, body = np.asarray(case.image), case.body
            assert image.dtype == np.float32
            assert image.shape == (1, *body.shape) and body.shape == case.grid.shape
            assert image.min() >= -1 and image.max() <= 1
            assert (image[0][~body] == -1).all()
            assert 0.1 < body.mean() < 0.9
            assert case.source_grid.shape == read_volume(case.image_files[0]).shape[1:]
    a, b = prepared.cases["pairs_a"][0], prepared.cases["pairs_b"][0]
    assert a.grid.matches(b.grid)


def test_slices_are_contiguous_on_disk(prepared: PreparedCohort) -> None:
    assert prepared.cases["a"][0].image[..., 3].flags["F_CONTIGUOUS"]


def test_default_spacing_is_the_median_in_world_directions(cohort: phantom.Cohort, prepared: PreparedCohort) -> None:
    grids = [nib.load(f) for f in (*cohort.train_mr, *cohort.train_ct, cohort.test_mr[0], cohort.test_ct[0])]
    spacings = [nib.as_closest_canonical(image).header.get_zooms()[:3] for image in grids]
    np.testing.assert_allclose(prepared.spacing, np.median(spacings, axis=0), atol=0.01)


def test_unchanged_is_reused_and_changed_is_rebuilt(folders: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "prepared"
    make(folders, output, spacing=(6, 6, 8))
    first = times(output)
    make(folders, output, spacing=(6, 6, 8))
    assert times(output) == first
    changed = folders[0] / "mr_001.nii.gz"
    image = nib.load(changed)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 1.5 + 1, image.affine), changed)
    make(folders, output, spacing=(6, 6, 8))
    second = times(output)
    assert {name for name in first if first[name] != second[name]} == {"a/mr_001/image.npy"}
    make(folders, output, spacing=(6, 6, 9))
    assert all(second[name] != time for name, time in times(output).items())


def test_cases_that_left_the_cohort_leave_the_cache(folders: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "prepared"
    make(folders, output, spacing=(6, 6, 8))
    (folders[1] / "ct_002.nii.gz").unlink()
    assert [case.id for case in make(folders, output, spacing=(6, 6, 8)).cases["b"]] == ["ct_001"]
    assert not (output / "b" / "ct_002").exists()


def test_a_bad_volume_is_listed_and_the_rest_prepared(folders: tuple[Path, Path], tmp_path: Path) -> None:
    bad = folders[0] / "mr_001.nii.gz"
    bad.write_bytes(bad.read_bytes()[:500])
    result = make(folders, tmp_path / "prepared")
    assert list(result.failed) == ["a/mr_001"] and "mr_001.nii.gz" in result.failed["a/mr_001"]
    assert [case.id for case in result.cases["a"]] == ["mr_002"]
    for file in folders[0].iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"no volume of domain a can be used:\n.*mr_001"):
        make(folders, tmp_path / "prepared")


def test_swapped_folders_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seem to be swapped"):
        make(folders[::-1], tmp_path / "prepared")


def test_one_ct_among_the_mr_is_warned_of(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.move(folders[1] / "ct_001.nii.gz", folders[0] / "ct_001.nii.gz")
    (warning,) = make(folders, tmp_path / "prepared").warnings
    assert "ct_001" in warning and "not like an MR" in warning


def test_pairs_on_different_grids_are_refused(cohort: phantom.Cohort, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"case,a,b\nhead,{cohort.test_mr[0]},{tmp_path}/moved.nii.gz\n")
    ct = nib.load(cohort.test_ct[0])
    affine = ct.affine.copy()
    affine[0, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(ct.dataobj, dtype=np.float32), affine), tmp_path / "moved.nii.gz")
    listed = from_folders(cohort.train_mr[0].parent, cohort.train_ct[0].parent, pairs=pairs)
    result = prepare(listed, tmp_path / "prepared")
    assert "5.0 mm apart" in result.failed["pairs_b/head"]
    assert result.cases["pairs_a"] == result.cases["pairs_b"] == ()


def test_pairs_whose_working_grids_differ_by_rounding_are_refused(tmp_path: Path) -> None:
    """Voxels of 0.5 and 0.50002 mm lie 0.002 mm apart at most, and 100 of them become 50 and 51 voxels of 1 mm."""
    a, b = (Grid((100, 40, 40), np.diag([step, 0.5, 0.5, 1.0])) for step in (0.5, 0.50002))
    known = {f"pairs_{d}/p": Source({}, (Survey(Path("p"), grid=grid),), (), None) for d, grid in (("a", a), ("b", b))}
    cohort = Cohort((), (), ((Case("p", (tmp_path / "a.nii",)), Case("p", (tmp_path / "b.nii",))),))
    assert not _pairs_apart(cohort, known, {"a": (Preparation("MR", (2.0, 2.0, 2.0)),)})
    failed = _pairs_apart(cohort, known, {"a": (Preparation("MR", (1.0, 1.0, 1.0)),)})
    assert list(failed) == ["pairs_b/p"] and "does not lie on the grid" in failed["pairs_b/p"]


def test_foreign_folders_are_not_touched(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.docx").touch()
    with pytest.raises(InputError, match=r"holds something else \(thesis\.docx\)"):
        make(folders, other)
    with pytest.raises(InputError, match="is not a prepared folder"):
        open_prepared(other)


def test_detached_data_counts_as_content(tmp_path: Path) -> None:
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 4, 4), np.int16)), str(tmp_path / "x.mhd"))
    before = content_hash(tmp_path / "x.mhd")
    (tmp_path / "x.raw").write_bytes(b"\x01" * 128)
    assert content_hash(tmp_path / "x.mhd") != before


def test_mr_is_inverted_towards_ct_and_only_there(cohort: phantom.Cohort, tmp_path: Path) -> None:
    """Cortical bone, dark in MR, is bright in both domains."""
    mr, ct = cohort.train_mr[0].parent, cohort.train_ct[0].parent

    def made(**settings: object) -> PreparedCohort:
        content = {"data": {"a": str(mr), "b": str(ct)}, "preparation": settings}
        return factory.prepare(config.parse(content, "the test"), tmp_path / "prepared")

    inverted, plain = made(), made(mr_inverted=False)
    assert inverted.preparations["a"][0].mr_inverted and not plain.preparations["a"][0].mr_inverted
    again = made()
    assert again.cases["a"][0].channels[0].scaler.inverted and not again.cases["b"][0].channels[0].scaler.inverted
    image, body = np.array(again.cases["a"][0].image)[0], np.array(again.cases["a"][0].body)
    straight = np.array(made(mr_inverted=False).cases["a"][0].image)[0]
    inner = ndimage.binary_erosion(body, iterations=2)  # at the border both are mixed with the background, -1
    assert again.preparations["a"][0].mr_floor == -0.5 and again.preparations["b"][0].mr_floor == -0.5
    # [-1, 1] turned around and brought to [-0.5, 1]
    np.testing.assert_allclose(image[inner], -0.5 + 0.75 * (1 - straight[inner]), atol=1.75 * 0.5 / 32767)
    assert (image[~body] == -1).all() and (straight[~body] == -1).all()
