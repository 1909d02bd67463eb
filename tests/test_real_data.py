"""Real scans through prepare and convert: the right grid, or one sentence that names the file and the reason."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from medcyclegan import config, factory
from medcyclegan.convert import Options, convert
from medcyclegan.io.reader import case_id, grid_of, read_volume

DATA = Path(__file__).parents[1].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")

HEADS = {
    "mr_avg152_t1.nii.gz",
    "mr_avg152_t2.nii.gz",
    "mr_seg3d_t1.nii.gz",
    "mr_single_subject_t1.nii.gz",
    "mr_stroke_patient_t2.nii.gz",
    "mr_tumour_t1gd.nrrd",
}
REFUSED = {
    "nib_anatomical.nii": "no body was found",
    "nib_functional.nii": "20 frames",
    "nib_example_nifti2.nii.gz": "2 frames",
    "nib_resampled_anat_moved.nii": "not finite",
    "nib_standard.nii.gz": "at least 4 along each axis",
    "d2n_anatomical_001_ground_truth.nii.gz": "at least 4 along each axis",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mr/ with every MR head and every odd file, ct/ with the CT template."""
    folder = tmp_path_factory.mktemp("real")
    for name in ("mr", "ct"):
        (folder / name).mkdir()
    for file in (DATA / "heads").iterdir():
        shutil.copy(file, folder / ("ct" if file.name.startswith("ct") else "mr"))
    for file in (DATA / "odd").iterdir():
        shutil.copy(file, folder / "mr")
    return folder


def test_the_tables_above_name_every_file(folder: Path) -> None:
    assert {file.name for file in (folder / "mr").iterdir()} == HEADS | set(REFUSED)


@pytest.mark.slow
def test_prepare(folder: Path) -> None:
    given = {"data": {"a": str(folder / "mr"), "b": str(folder / "ct")}, "preparation": {"spacing": [2.0, 2.0, 2.0]}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = factory.prepare(config.parse(given, "the test"), folder / "prepared")
    assert {case.id for case in prepared.cases["a"]} == {case_id(name) for name in HEADS}
    check_refusals({name.split("/")[1]: reason for name, reason in prepared.failed.items()})
    for case in prepared.cases["a"]:
        np.testing.assert_allclose(case.grid.spacing, 2.0, atol=0.001)


@pytest.mark.slow
def test_convert(folder: Path, run: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = convert(run, [folder / "mr"], folder / "sct", Options(device="cpu"))
        check_refusals(result.failed)
        assert set(result.written) == {case_id(name) for name in HEADS}
        for name in HEADS:
            source, sct = read_volume(folder / "mr" / name), read_volume(result.written[case_id(name)])
            assert grid_of(sct).matches(grid_of(source), 1e-3), name
            values = sct.numpy()
            assert values.min() == -1024 and values.max() <= 3071 and np.array_equal(values, np.rint(values)), name


def check_refusals(failed: dict[str, str]) -> None:
    assert set(failed) == {case_id(name) for name in REFUSED}
    for name, reason in REFUSED.items():
        reason_given = failed[case_id(name)]
        assert name in reason_given and reason in reason_given and "\n" not in reason_given, reason_given
