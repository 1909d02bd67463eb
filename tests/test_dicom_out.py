"""DICOM out: what other readers find in the series, what the standard's checker says, and whose patient it is."""

from __future__ import annotations

import shutil
import subprocess
import warnings
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import OBLIQUE, RAS, edit, item, put, stored, write_enhanced, write_series
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medcyclegan.errors import InputError
from medcyclegan.io.dicom.ct_series import write_ct_series
from medcyclegan.io.dicom.series import source_series
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import grid_of, read_volume

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes (../shared/data) are absent")
needs_dciodvfy = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (Debian: dicom3tools)")

SAGITTAL = OBLIQUE[:, [1, 2, 0, 3]] @ np.diag([1, -1, 1, 1])  # rows to the back, columns to the feet, slices across


def hounsfield(shape: tuple[int, ...]) -> np.ndarray:
    values = np.random.default_rng(7).integers(-1024, 3072, shape).astype(np.int16)
    values.flat[:2] = -1024, 3071
    return values


def from_source(folder: Path, source: Path, description: str = "") -> tuple[np.ndarray, Grid]:
    """Write a CT series made from an MR series; its values and grid."""
    grid = grid_of(read_volume(source))
    array = hounsfield(grid.shape)
    write_ct_series(folder, array, grid, source=source, description=description)
    return array, grid


def written(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


def check_places(folder: Path, array: np.ndarray, grid: Grid) -> None:
    """Every voxel of every instance, by pydicom and the standard's formula, against array and affine."""
    inverse = np.linalg.inv(grid.affine)
    seen = np.zeros(array.shape, dtype=int)
    for ds in written(folder):
        turn, spacing = np.array(ds.ImageOrientationPatient, dtype=float), np.array(ds.PixelSpacing, dtype=float)
        # PS3.3 C.7.6.2.1.1: column index i along the row direction, row index j along the column direction.
        i, j = np.meshgrid(np.arange(ds.Columns), np.arange(ds.Rows))
        lps = (
            np.array(ds.ImagePositionPatient, dtype=float)
            + i[..., None] * turn[:3] * spacing[1]
            + j[..., None] * turn[3:] * spacing[0]
        )
        index = nib.affines.apply_affine(inverse, lps * [-1, -1, 1])
        nearest = np.rint(index).astype(int)
        assert np.abs((index - nearest) * grid.spacing).max() < 1e-3
        values = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        np.testing.assert_array_equal(values, array[tuple(np.moveaxis(nearest, -1, 0))])
        seen[tuple(np.moveaxis(nearest, -1, 0))] += 1
    assert (seen == 1).all()
    # Slices touch: each is as thick as the next one is far.
    places = np.array([ds.ImagePositionPatient for ds in written(folder)], dtype=float)
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0], atol=1e-4)
    np.testing.assert_allclose([float(ds.SliceThickness) for ds in written(folder)], steps[0], atol=1e-4)


def check_itk(folder: Path, array: np.ndarray, grid: Grid) -> None:
    """SimpleITK's volume, brought to the axes of `grid`, is the same."""
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(RAS @ lps), nib.orientations.io_orientation(grid.affine)
    )
    values = sitk.GetArrayFromImage(image).T
    np.testing.assert_array_equal(nib.orientations.apply_orientation(values, turn), array)
    affine = RAS @ lps @ nib.orientations.inv_ornt_aff(turn, values.shape)
    assert Grid(array.shape, affine).matches(grid, 1e-3)


class TestFromDicom:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        return write_series(tmp_path / "mr", stored())

    def test_one_instance_per_source_slice(self, source: Path, tmp_path: Path) -> None:
        array, grid = from_source(tmp_path / "ct", source)
        check_places(tmp_path / "ct", array, grid)
        check_itk(tmp_path / "ct", array, grid)
        by_uid = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, source.iterdir())}
        made = written(tmp_path / "ct")
        assert len(made) == len(by_uid) == 4
        for ds in made:
            (reference,) = ds.SourceImageSequence
            mr = by_uid[reference.ReferencedSOPInstanceUID]
            assert reference.ReferencedSOPClassUID == mr.SOPClassUID
            for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
                np.testing.assert_allclose(ds[keyword].value, mr[keyword].value, atol=1e-6)
        again = read_volume(tmp_path / "ct")
        np.testing.assert_array_equal(again.numpy()[0], array)
        assert grid_of(again).matches(grid, 1e-3)

    def test_identity_is_the_sources_and_series_is_new(self, source: Path, tmp_path: Path) -> None:
        for name in ("one", "two"):
            from_source(tmp_path / name, source, "medcyclegan 9.9, model x")
        mr, one, two = (written(folder) for folder in (source, tmp_path / "one", tmp_path / "two"))
        same = (
            "PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime StudyID "
            "AccessionNumber FrameOfReferenceUID PatientPosition ReferringPhysicianName BodyPartExamined"
        )
        for keyword in same.split():
            assert {str(ds[keyword].value) for ds in one} == {str(mr[0][keyword].value)}, keyword
        assert len({ds.SeriesInstanceUID for ds in [*mr, *one, *two]}) == 3
        assert len({ds.SOPInstanceUID for ds in [*mr, *one, *two]}) == 12
        for ds in one:
            assert ds.SOPClassUID == ds.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
            assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
            assert (ds.Modality, ds.ImageType) == ("CT", ["DERIVED", "SECONDARY", "AXIAL"])
            assert ds.SeriesDescription == "synthetic CT, not for clinical use"
            assert "medcyclegan 9.9, model x" in ds.DerivationDescription
            assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation) == (16, 16, 15, 1)
            assert (float(ds.RescaleSlope), float(ds.RescaleIntercept)) == (1, 0)
            assert not [element for element in ds.iterall() if element.tag.is_private]
        assert [ds.InstanceNumber for ds in one] == [1, 2, 3, 4]

    def test_the_series_number_and_the_history_follow_the_sources(self, tmp_path: Path) -> None:
        code = item(CodeValue="113100", CodingSchemeDesignator="DCM", CodeMeaning="Basic Profile")
        history = put(PatientIdentityRemoved="YES", LossyImageCompression="01", LossyImageCompressionRatio="8")
        for by_code in (True, False):
            source = write_series(tmp_path / f"mr{by_code}", stored(), change=history)
            if by_code:
                edit(source, put(DeidentificationMethodCodeSequence=[code]))
            from_source(tmp_path / f"ct{by_code}", source)
            for ds in written(tmp_path / f"ct{by_code}"):
                assert (ds.SeriesNumber, ds.PatientIdentityRemoved) == (9007, "YES")
                assert (ds.LossyImageCompression, ds.LossyImageCompressionRatio) == ("01", 8)
                codes = ds.get("DeidentificationMethodCodeSequence")
                assert (codes[0].CodeValue == "113100") if by_code else codes is None
                assert by_code or ds.DeidentificationMethod == "not stated in the source series"

    def test_sagittal_slices_become_axial_ones(self, tmp_path: Path) -> None:
        source = write_series(tmp_path / "mr", stored(), SAGITTAL)
        grid = grid_of(read_volume(source))
        assert nib.aff2axcodes(grid.affine) == ("P", "I", "R")
        array = hounsfield(grid.shape)
        write_ct_series(tmp_path / "ct", array, grid, source=source)
        made = written(tmp_path / "ct")
        assert len(made) == 5 and all(len(ds.SourceImageSequence) == 4 for ds in made)
        for ds in made:
            normal = np.cross(ds.ImageOrientationPatient[:3], ds.ImageOrientationPatient[3:])
            assert normal[2] > 0.95 and ds.ImageOrientationPatient[0] > 0.95
        check_places(tmp_path / "ct", array, grid)
        check_itk(tmp_path / "ct", array, grid)

    @pytest.mark.parametrize(
        ("charset", "patient"), [("ISO_IR 100", "Müller^Jörg"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎")]
    )
    def test_names_in_other_alphabets_stay_as_they_are(
        self, charset: str | list[str], patient: str, tmp_path: Path
    ) -> None:
        change = put(SpecificCharacterSet=charset, PatientName=patient)
        from_source(tmp_path / "ct", write_series(tmp_path / "mr", stored(), change=change))
        assert str(written(tmp_path / "ct")[0].PatientName) == patient

    def test_what_is_wrong_or_lacking_in_the_source_stops_nothing(self, tmp_path: Path) -> None:
        def change(ds: Dataset, k: int) -> None:
            del ds.FrameOfReferenceUID, ds.PatientPosition, ds.StudyID, ds.BodyPartExamined
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ds.add_new("PatientBirthDate", "DA", "spring1970")
                ds.add_new("SeriesNumber", "IS", "")

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = write_series(tmp_path / "mr", stored(), change=change)
        with pytest.warns(UserWarning, match="no FrameOfReferenceUID") as caught:
            from_source(tmp_path / "ct", source)
        assert len(caught) == 1
        made = written(tmp_path / "ct")
        assert len({ds.FrameOfReferenceUID for ds in made}) == 1
        assert made[0].PatientPosition == ""

    def test_what_cannot_be_read_in_the_source_is_left_out_and_said(self, tmp_path: Path) -> None:
        source = write_series(tmp_path / "mr", stored())
        for file in source.iterdir():
            content = file.read_bytes()
            file.write_bytes(content.replace(b"\x08\x00\x50\x00SH\x04\x00acc1", b"\x08\x00\x50\x00FD\x04\x00acc1"))
        with pytest.warns(UserWarning, match="AccessionNumber of the source cannot be read; they are empty or new"):
            from_source(tmp_path / "ct", source)
        assert written(tmp_path / "ct")[0].AccessionNumber == ""

    def test_images_without_uids_are_not_referred_to(self, tmp_path: Path) -> None:
        def change(ds: Dataset, k: int) -> None:
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            del ds.SOPInstanceUID

        source = write_series(tmp_path / "mr", stored(), change=change)
        with pytest.warns(UserWarning, match="no SOPInstanceUID"):
            from_source(tmp_path / "ct", source)
        made = written(tmp_path / "ct")
        assert len(made) == 4 and not any("SourceImageSequence" in ds for ds in made)

    def test_frames_of_a_multiframe_are_referred_to(self, tmp_path: Path) -> None:
        from_source(tmp_path / "ct", write_enhanced(tmp_path / "mr.dcm", stored()))
        # The file has its frames from the last slice to the first.
        assert [ds.SourceImageSequence[0].ReferencedFrameNumber for ds in written(tmp_path / "ct")] == [4, 3, 2, 1]

    def test_a_zip_and_a_choice_are_sources_too(self, source: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "mr.zip", "w") as archive:
            for file in source.iterdir():
                archive.write(file, file.name)
        uid = source_series(source).header.SeriesInstanceUID
        for path in (tmp_path / "mr.zip", Path(f"{source}#{uid[-4:]}")):
            from_source(tmp_path / "ct", path)
            assert written(tmp_path / "ct")[0].PatientID == "id-4711"


class TestFromElsewhere:
    def test_patient_study_and_frame_are_new_and_nobody_elses(self, tmp_path: Path) -> None:
        grid = Grid((6, 5, 4), RAS @ OBLIQUE)
        for name in ("one", "two"):
            write_ct_series(tmp_path / name, hounsfield(grid.shape), grid, source=tmp_path / "x.nii")
        one, two = (written(tmp_path / name)[0] for name in ("one", "two"))
        assert str(one.PatientName) == "ANONYMOUS^SCT" and one.PatientID
        for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID"):
            assert one[keyword].value != two[keyword].value, keyword
        assert "SourceImageSequence" not in one

    @pytest.mark.parametrize("codes", ["RAS", "LPS", "PIL", "ASR", "SRA", "IPR"])
    def test_any_axis_order_becomes_axial(self, codes: str, tmp_path: Path) -> None:
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(codes)
        )
        array = hounsfield((6, 5, 4))
        turned = nib.orientations.apply_orientation(array, turn)
        grid = Grid(turned.shape, RAS @ OBLIQUE @ nib.orientations.inv_ornt_aff(turn, array.shape))
        assert "".join(nib.aff2axcodes(grid.affine)) == codes
        write_ct_series(tmp_path / "ct", turned, grid)
        check_places(tmp_path / "ct", turned, grid)
        check_itk(tmp_path / "ct", turned, grid)
        np.testing.assert_array_equal(read_volume(tmp_path / "ct").numpy()[0], array)

    def test_positions_of_a_large_volume_do_not_drift(self, tmp_path: Path) -> None:
        affine = RAS @ OBLIQUE @ np.diag([0.123456789, 0.3, 1 / 3, 1])
        grid = Grid((3, 4, 300), affine.astype(np.float32).astype(np.float64))
        array = hounsfield(grid.shape)
        write_ct_series(tmp_path / "ct", array, grid)
        check_places(tmp_path / "ct", array, grid)


class TestRefusals:
    grid = Grid((6, 5, 4), RAS @ OBLIQUE)

    def test_sheared_axes(self, tmp_path: Path) -> None:
        affine = RAS @ OBLIQUE
        affine[:3, 2] += affine[:3, 1] * 0.5
        with pytest.raises(InputError, match="sheared"):
            write_ct_series(tmp_path / "ct", hounsfield((6, 5, 4)), Grid((6, 5, 4), affine))

    def test_programming_errors(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="int16"):
            write_ct_series(tmp_path / "ct", hounsfield((6, 5, 4)).astype(np.float32), self.grid)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="does not fit"):
            write_ct_series(tmp_path / "ct", hounsfield((6, 5, 3)), self.grid)
        assert not (tmp_path / "ct").exists()

    def test_a_folder_with_something_else_is_not_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("x")
        with pytest.raises(InputError, match=r"thesis\.txt.*Give another folder"):
            write_ct_series(tmp_path, hounsfield((6, 5, 4)), self.grid)
        source = write_series(tmp_path / "mr", stored())
        with pytest.raises(InputError, match=r"mr holds something else than a synthetic CT \(im001\.dcm"):
            write_ct_series(source, hounsfield((6, 5, 4)), self.grid, source=source)
        with pytest.raises(InputError, match="is a file"):
            write_ct_series(tmp_path / "thesis.txt", hounsfield((6, 5, 4)), self.grid)

    def test_a_failure_leaves_what_was_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_ct_series(tmp_path / "ct", hounsfield((6, 5, 4)), self.grid)
        before = [file.read_bytes() for file in sorted((tmp_path / "ct").iterdir())]
        save, calls = Dataset.save_as, []

        def failing(self: Dataset, *args: object, **kwargs: object) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise OSError("disk")
            save(self, *args, **kwargs)

        monkeypatch.setattr(Dataset, "save_as", failing)
        with pytest.raises(OSError, match="disk"):
            write_ct_series(tmp_path / "ct", hounsfield((6, 5, 4)), self.grid)
        assert [file.read_bytes() for file in sorted((tmp_path / "ct").iterdir())] == before
        assert [p.name for p in tmp_path.iterdir()] == ["ct"]


def complaints(folder: Path) -> list[str]:
    """Every error that the standard's checker has about the first instances."""
    lines = []
    for file in sorted(folder.iterdir())[:5]:  # of 240 thin planes a few
        done = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True, text=True, check=False)
        assert "CTImage" in done.stderr, done.stderr
        lines += [line for line in done.stderr.splitlines() if line.startswith("Error")]
    return lines


@needs_dciodvfy
class TestStandard:
    def test_the_checker_finds_errors_where_there_are_some(self, tmp_path: Path) -> None:
        write_ct_series(tmp_path / "ct", hounsfield((6, 5, 4)), TestRefusals.grid)
        ds = written(tmp_path / "ct")[0]
        del ds.RescaleIntercept
        ds.save_as(tmp_path / "ct" / "0001.dcm")
        assert any("RescaleIntercept" in line for line in complaints(tmp_path / "ct"))

    @pytest.mark.parametrize("lps", [OBLIQUE, SAGITTAL], ids=["axial", "sagittal"])
    def test_series_from_dicom(self, lps: np.ndarray, tmp_path: Path) -> None:
        from_source(tmp_path / "ct", write_series(tmp_path / "mr", stored(), lps), "medcyclegan 9.9")
        assert complaints(tmp_path / "ct") == []

    def test_series_from_a_multiframe_and_from_no_dicom(self, tmp_path: Path) -> None:
        array, grid = from_source(tmp_path / "one", write_enhanced(tmp_path / "mr.dcm", stored()))
        write_ct_series(tmp_path / "two", array, grid)
        assert complaints(tmp_path / "one") == complaints(tmp_path / "two") == []

    @needs_data
    @pytest.mark.parametrize(
        ("folder", "files"),
        [
            ("mr_philips_noise", "IM-*.dcm"),
            ("ct_gantry_tilt", "0[789].dcm"),
            ("mr_two_orientations", "IM-0001-000?-0001.dcm"),  # one of them
        ],
    )
    def test_series_from_scanners(self, folder: str, files: str, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.mkdir()
        for file in (DATA / "dicom" / folder).glob(files):
            shutil.copy(file, source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one has a tilted gantry
            array, grid = from_source(tmp_path / "ct", source, "medcyclegan 9.9")
        check_places(tmp_path / "ct", array, grid)
        assert complaints(tmp_path / "ct") == []

    @needs_data
    def test_series_from_a_nifti_head(self, tmp_path: Path) -> None:
        volume = read_volume(DATA / "heads" / "mr_stroke_patient_t2.nii.gz")
        grid = grid_of(volume)
        array = hounsfield(grid.shape)
        write_ct_series(tmp_path / "ct", array, grid)
        check_places(tmp_path / "ct", array, grid)
        check_itk(tmp_path / "ct", array, grid)
        assert complaints(tmp_path / "ct") == []
