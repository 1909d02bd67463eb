"""DICOM through the verbs: the format that a scan comes in changes nothing of what is made of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import RAS, stored, write_series
from typer.testing import CliRunner

from medcyclegan import config, factory, phantom
from medcyclegan.cli import app
from medcyclegan.convert import Options, convert
from medcyclegan.errors import InputError
from medcyclegan.evaluation.evaluate import evaluate
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import grid_of, read_volume
from medcyclegan.io.writer import write_volume

DATA = Path(__file__).parents[1].parent / "shared" / "data"
# LPS, 6 x 6 x 8 mm, tilted about the left-right axis by the 3-4-5 angle scaled down: exact in float32.
LPS = np.array([[6.0, 0, 0, -105.5], [0, 5.875, -1.25, -120.25], [0, 0.9375, 7.833333492279053, -60.0], [0, 0, 0, 1]])


def orthogonal(lps: np.ndarray) -> np.ndarray:
    """The nearest grid with right angles, rounded to what a NIfTI header holds."""
    turn, steps = np.linalg.qr(lps[:3, :3])
    lps = lps.copy()
    lps[:3, :3] = turn * np.diag(steps)
    return lps.astype(np.float32).astype(np.float64)


@pytest.fixture(scope="module")
def scans(cohort: phantom.Cohort, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One phantom MR, integers, in every format that is read."""
    folder = tmp_path_factory.mktemp("scans")
    source = nib.as_closest_canonical(nib.load(cohort.test_mr[0]))
    values = np.asarray(source.dataobj)
    array = np.rint(values / values.max() * 2000).astype(np.int16)[::-1, ::-1]  # RAS to LPS
    lps = orthogonal(LPS)
    grid = Grid(array.shape, RAS @ lps)
    paths = {}
    for suffix in (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"):
        paths[suffix] = folder / suffix[1:] / f"head{suffix}"
        write_volume(paths[suffix], array, grid)
    paths["dicom"] = write_series(folder / "dicom" / "head", array, lps)
    paths["zip"] = Path(shutil.make_archive(str(folder / "zip" / "head"), "zip", paths["dicom"]))
    return paths


def sct(run: Path, source: Path, output: Path, file_format: str = "nifti") -> Path:
    result = convert(run, [source], output, Options(device="cpu", file_format=file_format))
    assert not result.failed and list(result.written) == ["head"]
    return result.written["head"]


def test_every_format_in_and_out_holds_the_same_sct(scans: dict[str, Path], run: Path, tmp_path: Path) -> None:
    expected = read_volume(sct(run, scans[".nii.gz"], tmp_path / "expected"))
    assert len(np.unique(expected.numpy())) > 50
    made = {kind: sct(run, path, tmp_path / kind.strip(".")) for kind, path in scans.items()}
    made |= {
        f"to {ending}": sct(run, scans["dicom"], tmp_path / f"sct{ending}") for ending in (".nii", ".mha", ".nrrd")
    }
    series = {kind: sct(run, scans[kind], tmp_path / f"{kind}_out", "dicom") for kind in ("dicom", "zip", ".mha")}
    for kind, path in [*made.items(), *series.items()]:
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.numpy(), expected.numpy(), err_msg=kind)
        assert grid_of(volume).matches(grid_of(expected), 1e-3), kind
    for kind, folder in series.items():
        assert folder.name == "head_sct" and folder.is_dir()
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, expected.numpy()[0])
        first = pydicom.dcmread(folder / "0001.dcm")
        assert (first.PatientID == "id-4711") == (kind != ".mha")
        assert "medcyclegan" in first.SoftwareVersions
        require_standard(folder / "0001.dcm")


def require_standard(file: Path) -> None:
    """No complaint of the standard's checker, where it is installed."""
    if shutil.which("dciodvfy"):
        done = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
        assert "Error" not in done.stderr, done.stderr


def test_the_command_line(scans: dict[str, Path], run: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(run), str(scans["dicom"].parent), "-o", str(tmp_path / "out"), "-d", "cpu", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--format", "dicom"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["written"] == {"head": str(tmp_path / "out" / "head_sct")}
    again = CliRunner().invoke(app, [*arguments, "--format", "dicom"])
    assert isinstance(again.exception, InputError) and "--overwrite" in str(again.exception)
    replaced = CliRunner().invoke(app, [*arguments, "--format", "dicom", "--overwrite"])
    assert replaced.exit_code == 0, replaced.output


@pytest.mark.parametrize(
    ("file_format", "direction", "output", "words"),
    [
        ("minc", "ab", "x", "there is no format 'minc'; allowed are nifti, mha, nrrd, dicom"),
        ("dicom", "ba", "x", "only CT is written as DICOM"),
        ("dicom", "ab", "x.nii.gz", "DICOM needs a folder"),
    ],
)
def test_formats_that_cannot_be(
    file_format: str, direction: str, output: str, words: str, scans: dict[str, Path], run: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        convert(run, [scans["dicom"]], tmp_path / output, Options(direction=direction, file_format=file_format))
    assert not list(tmp_path.iterdir())


def test_a_ct_series_is_not_taken_for_an_mr(scans: dict[str, Path], run: Path, tmp_path: Path) -> None:
    array = read_volume(scans["dicom"]).numpy()[0].astype(np.int16)
    write_series(tmp_path / "head", array, orthogonal(LPS), modality="CT")
    result = convert(run, [tmp_path / "head"], tmp_path / "out", Options(device="cpu"))
    assert "its header says that it is CT, and MR is needed" in result.failed["head"]


def test_a_bad_series_is_told_and_the_others_go_on(scans: dict[str, Path], run: Path, tmp_path: Path) -> None:
    for name in ("head", "hole"):
        shutil.copytree(scans["dicom"], tmp_path / "mr" / name)
    (tmp_path / "mr" / "hole" / "im007.dcm").unlink()
    result = convert(run, [tmp_path / "mr"], tmp_path / "out", Options(device="cpu"))
    assert list(result.written) == ["head"]
    assert "1 slice missing" in result.failed["hole"]


def test_prepare_takes_series_and_notices_changes(cohort: phantom.Cohort, tmp_path: Path) -> None:
    """A cohort of DICOM series is prepared as its NIfTI twin; a changed slice is prepared anew, an equal one is not."""
    for domain, files in (("mr", cohort.train_mr), ("ct", cohort.train_ct)):
        for file in files:
            source = nib.as_closest_canonical(nib.load(file))
            values = np.asarray(source.dataobj)
            integers = np.rint(values if domain == "ct" else values / values.max() * 2000).astype(np.int16)[::-1, ::-1]
            offset = 1024 if domain == "ct" else 0
            name = file.name.removesuffix(".nii.gz")
            lps = np.array(
                [[6.0, 0, 0, -105.5], [0, 6, 0, -120.25], [0, 0, 8, -60], [0, 0, 0, 1]]
            )  # the same in any format
            write_series(tmp_path / "dicom" / domain / name, integers + np.int16(offset), lps, modality=domain.upper())
            write_volume(tmp_path / "nifti" / domain / f"{name}.nii.gz", integers, Grid(integers.shape, RAS @ lps))

    def prepared(kind: str) -> dict[str, np.ndarray]:
        data = {"a": str(tmp_path / kind / "mr"), "b": str(tmp_path / kind / "ct")}
        result = factory.prepare(config.parse({"data": data}, "the test"), tmp_path / f"{kind}_prepared")
        assert not result.failed and not result.warnings
        return {f"{d}/{case.id}": np.asarray(case.image) for d in ("a", "b") for case in result.cases[d]}

    from_nifti, from_dicom = prepared("nifti"), prepared("dicom")
    assert list(from_nifti) == list(from_dicom) and len(from_dicom) == 4
    for case, image in from_nifti.items():
        np.testing.assert_allclose(from_dicom[case], image, atol=1e-6)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "dicom_prepared" / "a").glob("*/image.npy")}
    changed = next((tmp_path / "dicom" / "mr").iterdir())
    ds = pydicom.dcmread(changed / "im005.dcm")
    ds.PixelData = bytes(len(ds.PixelData))
    ds.save_as(changed / "im005.dcm")
    prepared("dicom")
    assert [p.parent.name for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp] == [changed.name]


def test_evaluate_grades_series(scans: dict[str, Path], run: Path, cohort: phantom.Cohort, tmp_path: Path) -> None:
    ct = nib.as_closest_canonical(nib.load(cohort.test_ct[0]))
    reference = np.rint(np.asarray(ct.dataobj)).astype(np.int16)[::-1, ::-1]
    lps = orthogonal(LPS)
    write_series(tmp_path / "ct" / "head", reference + np.int16(1024), lps, modality="CT")
    write_volume(tmp_path / "nifti" / "head.nii.gz", reference, Grid(reference.shape, RAS @ lps))
    sct(run, scans["dicom"], tmp_path / "sct", "dicom")
    sct(run, scans["dicom"], tmp_path / "sct_nifti")
    expected = evaluate(tmp_path / "sct_nifti", tmp_path / "nifti", tmp_path / "one")
    folders = evaluate(tmp_path / "sct", tmp_path / "ct", tmp_path / "two")
    single = evaluate(tmp_path / "sct" / "head_sct", tmp_path / "ct" / "head", tmp_path / "three")
    maes = [result.summary["metrics"]["mae"]["mean"] for result in (expected, folders, single)]
    assert maes[0] > 1 and maes == [maes[0]] * 3


def test_zip_of_several_series_through_convert(scans: dict[str, Path], run: Path, tmp_path: Path) -> None:
    array = read_volume(scans["dicom"]).numpy()[0].astype(np.int16)
    with zipfile.ZipFile(tmp_path / "head.zip", "w") as archive:
        for tail in ("1111", "2222"):
            folder = write_series(tmp_path / tail, array + np.int16(int(tail[0])), orthogonal(LPS), uid=f"1.2.3.{tail}")
            for file in folder.iterdir():
                archive.write(file, f"{tail}_{file.name}")
    failed = convert(run, [tmp_path / "head.zip"], tmp_path / "out", Options(device="cpu")).failed
    assert "holds 2 series" in failed["head"]
    assert sct(run, Path(f"{tmp_path}/head.zip#2222"), tmp_path / "out").name == "head_sct.nii.gz"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_a_real_head_as_dicom(run: Path, tmp_path: Path) -> None:
    """A real T1 head written as a DICOM series gives the sCT that its NIfTI gives, and a series without faults."""
    source = nib.load(DATA / "heads" / "mr_avg152_t1.nii.gz")
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(source.affine), nib.orientations.axcodes2ornt("LPS")
    )
    turned = source.as_reoriented(turn)
    array = np.rint(turned.get_fdata()).astype(np.int16)
    write_volume(tmp_path / "nifti" / "head.nii.gz", array, Grid(array.shape, turned.affine))
    write_series(tmp_path / "dicom" / "head", array, RAS @ turned.affine)
    expected = read_volume(sct(run, tmp_path / "nifti" / "head.nii.gz", tmp_path / "one"))
    folder = sct(run, tmp_path / "dicom" / "head", tmp_path / "two", "dicom")
    made = read_volume(folder)
    np.testing.assert_array_equal(made.numpy(), expected.numpy())
    assert grid_of(made).matches(grid_of(expected), 1e-3)
    for file in sorted(folder.iterdir())[::10]:
        require_standard(file)


@pytest.mark.parametrize("kinds", [("MR", "MR"), ("MR", "MR", "CT")], ids=["one domain", "several kinds of MR"])
def test_a_layout_that_is_no_clear_cohort_is_inspected_as_volumes(kinds: tuple[str, ...], tmp_path: Path) -> None:
    for number, modality in enumerate(kinds):
        folder = tmp_path / "patients" / f"P{number}" / "scan"
        name = "t1" if number != 1 or len(kinds) == 2 else "t2"

        def change(ds: pydicom.Dataset, k: int, name: str = name) -> None:
            ds.SeriesDescription = name

        write_series(folder, stored(seed=number), modality=modality, change=change)
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "patients"), "--json"])
    assert [volume["domain"] for volume in json.loads(result.stdout)["volumes"]] == [""] * len(kinds)
    assert "looked at as volumes of no domain: the cohort of" in result.stderr
    named = CliRunner().invoke(app, ["inspect", str(tmp_path / "patients"), "--contrast-a", "t3"])
    assert isinstance(named.exception, InputError) and not named.stdout
