"""DICOM in: the right values in the right place, or one sentence that names the reason and nothing of the patient."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import (
    OBLIQUE,
    PATIENT,
    RAS,
    Change,
    edit,
    item,
    lack,
    put,
    raw,
    save,
    set_pixels,
    stored,
    write_enhanced,
    write_series,
)
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless, RTStructureSetStorage, generate_uid

from medcyclegan.errors import InputError
from medcyclegan.io.dicom.decoder import Decoder
from medcyclegan.io.dicom.files import holds_dicom
from medcyclegan.io.dicom.series import list_series
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import grid_of, list_volumes, read_volume

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "dicom"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes (../shared/data) are absent")


@pytest.fixture(autouse=True)
def no_unexpected_warnings() -> None:
    warnings.simplefilter("error", UserWarning)
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")


def check(path: Path, array: np.ndarray, lps: np.ndarray = OBLIQUE) -> None:
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.numpy()[0], array)
    assert grid_of(volume).matches(Grid(array.shape, RAS @ lps), 1e-6)


class TestValuesAndPlaces:
    def test_a_series_is_sorted_by_place_and_not_by_name_or_number(self, tmp_path: Path) -> None:
        check(write_series(tmp_path / "mr", stored()), stored())

    @pytest.mark.parametrize("kind", ["CT", pytest.param("philips", marks=needs_data)])
    def test_simpleitk_reads_the_same(self, kind: str, tmp_path: Path) -> None:
        philips = kind == "philips"
        folder = DATA / "mr_philips_noise" if philips else write_series(tmp_path / "ct", stored(), modality=kind)
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
        volume = read_volume(folder)
        np.testing.assert_array_equal(volume.numpy()[0], sitk.GetArrayFromImage(image).T)
        last = np.array(volume.shape[1:]) - 1
        for index in (last * 0, last, last * [1, 0, 0], last * [0, 1, 0], last * [0, 1, 1]):
            here = volume.affine.numpy() @ [*index, 1]
            there = image.TransformIndexToPhysicalPoint(index.tolist())
            np.testing.assert_allclose(here[:3] * [-1, -1, 1], there, atol=2e-3 if philips else 1e-4)
        if philips:
            np.testing.assert_allclose(grid_of(volume).spacing, [1.0416666, 1.0416666, 0.6], atol=1e-3)

    def test_enhanced_multiframe(self, tmp_path: Path) -> None:
        expected = stored() * np.array([1, 2, 3, 4]) + 5
        check(write_enhanced(tmp_path / "mr.dcm", stored()), expected)
        check(tmp_path, expected)

    def test_zip_and_subfolders(self, tmp_path: Path) -> None:
        write_series(tmp_path / "study" / "deep" / "mr", stored())
        with zipfile.ZipFile(tmp_path / "mr.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in (tmp_path / "study").rglob("*.dcm"):
                archive.write(file, f"x/{file.name}")
            archive.writestr("__MACOSX/x/._im001.dcm", b"rubbish")
        check(tmp_path / "study", stored())
        check(tmp_path / "mr.zip", stored())

    def test_linked_folders_and_circles(self, tmp_path: Path) -> None:
        write_series(tmp_path / "real", stored())
        (tmp_path / "patient").mkdir()
        (tmp_path / "patient" / "mr").symlink_to(tmp_path / "real")
        (tmp_path / "patient" / "circle").symlink_to(tmp_path / "patient")
        check(tmp_path / "patient", stored())

    @pytest.mark.parametrize("implicit", [True, False])
    @pytest.mark.parametrize("ending", [".dcm", ""])
    def test_files_without_the_mark_at_their_start(self, ending: str, implicit: bool, tmp_path: Path) -> None:
        for file in write_series(tmp_path / "mr", stored()).iterdir():
            old = Dataset()
            old.update(pydicom.dcmread(file))
            file.unlink()
            pydicom.dcmwrite(file.with_suffix(ending), old, implicit_vr=implicit, little_endian=True)
            assert file.with_suffix(ending).read_bytes()[128:132] != b"DICM"
        (tmp_path / "mr" / "notes").write_bytes(b"\x08\x00 and more words than a hundred and thirty-two bytes hold" * 3)
        (tmp_path / "mr" / "short").write_bytes(b"\x08\x00\x05\x00CS")
        with pytest.warns(UserWarning, match="left out 2 files that are not DICOM: notes, short"):
            check(tmp_path / "mr", stored())
        assert list_volumes(tmp_path) == {"mr": tmp_path / "mr"}


VALUES = stored()
SIGNED = np.random.default_rng(0).integers(-2048, 2047, (6, 5, 4)).astype(np.int16)


def twelve_bits(ds: Dataset, k: int) -> None:
    """The sign bit of 12 stored bits is bit 11."""
    set_pixels(ds, (SIGNED[:, :, k].T & 0x0FFF).astype(np.int16))
    ds.BitsStored, ds.HighBit = 12, 11


def unstored_bits(ds: Dataset, k: int) -> None:
    """An overlay in the pixels, as it was done before 2004, in slice 1 only."""
    set_pixels(ds, (VALUES[:, :, k].T | (0x5000 if k == 1 else 0)).astype(np.uint16))
    ds.BitsStored, ds.HighBit = 12, 11


def old_overlay(ds: Dataset, k: int) -> None:
    unstored_bits(ds, k)
    ds.add_new(0x60000102, "US", 12)


SLOPES = put(RescaleSlope=lambda k: 0.5 * (k + 1), RescaleIntercept=lambda k: -100 * k)
SLOPED = VALUES * np.array([0.5, 1, 1.5, 2]) + np.array([0, -100, -200, -300])
# What is done to the files of a series -> what is read then, and said ("": nothing).
# What is done to the files of a series (an MR, or by name a CT) -> what is read then, and said ("": nothing).
READ: dict[str, tuple[Change, np.ndarray, str]] = {
    "a slope per slice": (SLOPES, SLOPED, ""),
    "intercepts of a CT": (SLOPES, SLOPED, r"RescaleIntercept differs between the slices \(1 of 0, 1 of -100, "),
    "a sign within the cell": (twelve_bits, SIGNED, ""),
    "unstored bits": (unstored_bits, VALUES, r"1 file with content in bits that BitsStored leaves out \(im003\.dcm\)"),
    "an overlay in the pixels": (old_overlay, VALUES, ""),
    "signs": (
        put(PixelRepresentation=lambda k: int(k != 1)),
        VALUES,
        r"3 of 16 .* signed, 1 of 16 of 16 bits, unsigned",
    ),
    "a falling CT": (put(RescaleSlope=-1, RescaleIntercept=100), 100 - VALUES, "RescaleSlope is negative"),
    "an unspecified unit of a CT": (put(RescaleType="US"), VALUES - 1024, r"RescaleType is US \(unspecified\)"),
    "a slope alone": (put(RescaleSlope=2), VALUES * 2, "as 0"),
    "an intercept alone": (put(RescaleIntercept=5), VALUES + 5, "as 1"),
    "inverted": (
        put(PhotometricInterpretation="MONOCHROME1"),
        VALUES,
        "mr: MONOCHROME1: viewers show its low values bright",
    ),
    "a CT tilted in words": (
        put(GantryDetectorTilt=12),
        VALUES - 1024,
        r"tilt of 12\.0 degrees and the positions one of 0\.0",
    ),
    # dcm2niix and SimpleITK read what anonymizers leave; so does the reader, and says what it took for what.
    "no series UID": (
        lack("SeriesInstanceUID"),
        VALUES,
        "no SeriesInstanceUID; the images of the folder are taken as one",
    ),
    "no class": (put(SOPClassUID=None), VALUES, r"4 files without a known SOPClassUID taken as images: im001\.dcm"),
    "a hashed class": (
        put(SOPClassUID="2.25.123456789"),
        VALUES,
        r"4 files without a known SOPClassUID taken as images",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_and_said(name: str, tmp_path: Path) -> None:
    change, expected, words = READ[name]
    folder = write_series(tmp_path / "mr", VALUES, modality="CT" if "CT" in name else "MR")
    edit(folder, lambda ds, k: change(ds, 3 - k))  # the first file is the last slice
    with pytest.warns(UserWarning, match=words) if words else nullcontext():
        check(folder, expected)


class TestCompression:
    """Signed values and the slopes are what decoders get wrong."""

    values = np.random.default_rng(0).integers(-1024, 3071, (32, 24, 4)).astype(np.int16)
    expected = values * np.array([0.5, 1, 1.5, 2])
    slopes = staticmethod(put(RescaleSlope=lambda k: 0.5 * (k + 1), RescaleIntercept=0))

    @pytest.mark.parametrize("syntax", [RLELossless, DeflatedExplicitVRLittleEndian])
    def test_what_pydicom_decodes(self, syntax: str, tmp_path: Path) -> None:
        def compress(ds: Dataset, k: int) -> None:
            if syntax == RLELossless:
                ds.compress(RLELossless, generate_instance_uid=False)
            ds.file_meta.TransferSyntaxUID = syntax

        folder = write_series(tmp_path / "ct", self.values, modality="CT", change=self.slopes)
        edit(folder, compress)
        check(folder, self.expected)

    def compressed(self, folder: Path, plane: np.ndarray, compressor: str = "JPEG") -> Dataset:
        """(columns, rows) as SimpleITK writes it."""
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(folder / "one.dcm"))
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.Execute(sitk.GetImageFromArray(plane.T))
        return pydicom.dcmread(folder / "one.dcm")

    @pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
    @pytest.mark.parametrize(("compressor", "syntax"), [("JPEG2000", "4.90"), ("JPEG", "4.70")])
    def test_what_simpleitk_decodes(self, tmp_path: Path, compressor: str, syntax: str, photometric: str) -> None:
        def compress(ds: Dataset, k: int) -> None:
            self.slopes(ds, k)
            ds.PhotometricInterpretation = photometric
            made = self.compressed(tmp_path, self.values[:, :, k], compressor)
            assert made.file_meta.TransferSyntaxUID.endswith(syntax)
            ds.file_meta, ds["PixelData"] = made.file_meta, made["PixelData"]

        write_series(tmp_path / "ct", self.values, modality="CT", change=compress)
        check(tmp_path / "ct", self.expected)
        warnings.simplefilter("ignore")
        for file in (tmp_path / "ct").iterdir():
            file.write_bytes(file.read_bytes()[:-800])
        with pytest.raises(InputError, match=r"cannot be decoded|cut short"):
            read_volume(tmp_path / "ct")

    def test_what_a_decoder_only_complains_of_is_refused(self, tmp_path: Path) -> None:
        """libjpeg prints "Corrupt JPEG data" and gives what it has."""

        def compress(ds: Dataset, k: int) -> None:
            self.slopes(ds, k)
            made = self.compressed(tmp_path, self.values[:, :, k])
            ds.file_meta, ds["PixelData"] = made.file_meta, made["PixelData"]
            if k == 2:
                half = len(ds.PixelData) // 2
                ds.PixelData = ds.PixelData[:half] + bytes(300) + ds.PixelData[half + 300 :]

        write_series(tmp_path / "ct", self.values, modality="CT", change=compress)
        with pytest.raises(InputError, match=r"compressed pixels of im002\.dcm cannot be decoded whole \(Corrupt JPEG"):
            read_volume(tmp_path / "ct")

    def test_a_decoder_that_ends_takes_nothing_along(self, tmp_path: Path) -> None:
        image = self.compressed(tmp_path, self.values[:, :, 0])
        with Decoder() as decoder:
            np.testing.assert_array_equal(decoder(image).squeeze(), self.values[:, :, 0].T)
            assert decoder._process is not None
            decoder._process.kill()
            decoder._process.wait()
            with pytest.raises(ValueError, match="the decoder gave up"):
                decoder(image)


class TestTilt:
    def tilted(
        self, folder: Path, along: str, sign: int = 1, modality: str = "CT", degrees: float = 18.5
    ) -> np.ndarray:
        """Values that are a linear function of place, on a stack sheared along its rows, its columns or both."""
        sine, cosine = np.sin(np.radians(degrees)) * sign, np.cos(np.radians(degrees))
        lps = np.eye(4)
        lps[:3, 0] = 0.5 * np.array([cosine, 0, -sine] if along == "rows" else [1, 0, 0])
        lps[:3, 1] = 0.7 * np.array([0, cosine, -sine] if along == "columns" else [0, 1, 0])
        lps[:3, 2] = [4.0 * 0.6 * sine, -4.0 * 0.8 * sine, 4.0 * cosine] if along == "both" else [0, 0, 4.0]
        lps[:3, 3] = [-10, -20, 30]
        index = np.indices((20, 30, 6)).reshape(3, -1)
        world = lps[:3, :3] @ index + lps[:3, 3:]
        gradient = np.array([20.0, -30.0, 10.0])
        values = (gradient @ world).reshape(20, 30, 6) + (2500 if modality == "MR" else 0)

        pixels = np.rint(values * 10).astype(np.uint16 if modality == "MR" else np.int16)
        change = put(GantryDetectorTilt=degrees, RescaleSlope="0.1", RescaleIntercept="0")
        write_series(folder, pixels, lps, modality=modality, change=change)
        return gradient

    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize(
        ("along", "shape"),
        [
            # Slice k moves 4 k sin(18.5 degrees) mm: 5 * 1.269 / 0.7 = 9.07 pixels along columns, so 10 rows more,
            ("columns", (20, 40, 6)),
            # and 5 * 1.269 / 0.5 = 12.7 pixels along rows;
            ("rows", (33, 30, 6)),
            # 0.6 of it along rows is 7.6, 0.8 along columns 7.25.
            ("both", (28, 38, 6)),
        ],
    )
    @pytest.mark.parametrize("modality", ["CT", "MR"])
    def test_it_is_straightened_and_said(
        self, along: str, shape: tuple[int, int, int], sign: int, modality: str, tmp_path: Path
    ) -> None:
        gradient = self.tilted(tmp_path / "ct", along, sign, modality)
        what = "the gantry was tilted" if modality == "CT" else "the stack of slices is sheared"
        with pytest.warns(UserWarning, match=rf"ct: {what} by 18\.5 degrees; every slice was shifted"):
            volume = read_volume(tmp_path / "ct")
        grid = grid_of(volume)
        unit = grid.affine[:3, :3] / grid.spacing
        np.testing.assert_allclose(unit.T @ unit, np.eye(3), atol=1e-9)
        np.testing.assert_allclose(grid.spacing, [0.5, 0.7, 4 * np.cos(np.radians(18.5))])
        assert grid.shape == shape
        array = volume.numpy()[0]
        world = RAS[:3, :3] @ nib.affines.apply_affine(grid.affine, np.indices(grid.shape).reshape(3, -1).T).T
        expected = (gradient @ world).reshape(grid.shape) + (2500 if modality == "MR" else 0)
        # Outside the slices: air in CT, and in MR the lowest value that was measured, not 0 and not air.
        fill = -1024 if modality == "CT" else array[array > 0].min()
        seen = array != fill
        assert array.min() == fill
        assert seen.sum() > 20 * 30 * 6 * 0.9
        assert np.abs(array - expected)[seen].max() < 0.06  # rounding of the stored values
        assert (array == fill).mean() > 0.15


def drop(*numbers: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for number in numbers:
            (folder / f"im{number:03d}.dcm").unlink()

    return spoil


def alter(change: Change, *numbers: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for number in numbers or range(1, 13):
            edit(folder, change, f"im{number:03d}.dcm")

    return spoil


def moved(axis: str, distance: float) -> Change:
    """By a distance in mm along the direction of "row", "column" or "normal"."""

    def change(ds: Dataset, k: int) -> None:
        turn = np.array(ds.ImageOrientationPatient, dtype=float).reshape(2, 3)
        step = {"row": turn[0], "column": turn[1], "normal": np.cross(*turn)}[axis] * distance
        ds.ImagePositionPatient = [f"{v:.8f}" for v in np.array(ds.ImagePositionPatient, dtype=float) + step]

    return change


def cut(number: int, share: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / f"im{number:03d}.dcm"
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])

    return spoil


def altered_copy(number: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        ds = pydicom.dcmread(folder / f"im{number:03d}.dcm")
        ds.SeriesDescription = "sent again"
        ds.save_as(folder / "copy.dcm")

    return spoil


def overwritten(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "im004.dcm").write_bytes(content) and None


def shifted(folder: Path) -> None:
    """The length of the first element is four bytes longer than a whole number of its values."""
    content = bytearray((folder / "im004.dcm").read_bytes())
    content[138:140] = (1070).to_bytes(2, "little")
    (folder / "im004.dcm").write_bytes(content)


def stacks(folder: Path) -> None:
    shutil.rmtree(folder)
    write_enhanced(folder / "a.dcm", stored(), stacks=2)


def echoes(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        ds = pydicom.dcmread(file)
        ds.EchoTime = 10
        ds.save_as(file)
        ds.EchoTime, ds.SOPInstanceUID = 90, generate_uid()
        ds.save_as(folder / f"second_{file.name}")


NO_NUMBER = r"RescaleSlope of im002\.dcm is not one decimal number"
LOCALIZER = put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a slice missing": (drop(5), r"1 slice missing: the step is 3\.00 mm, but larger after im006\.dcm \(1 slice\)"),
    "three slices missing": (drop(5, 8, 9), r"3 slices missing.*im010\.dcm \(2 slices\), im006\.dcm \(1 slice\)"),
    "uneven steps": (alter(moved("normal", 1.3), 1, 2, 3), r"uneven slice steps \(10 of 3\.00 mm, 1 of 4\.30 mm\)"),
    "slices off sideways": (alter(moved("row", 2.0), 6), r"shifted sideways.*2\.00 mm"),
    "two orientations": (
        alter(put(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), 3, 4),
        r"mixed orientations \(10 of axial .*2 of sagittal",
    ),
    "two sizes": (alter(put(Rows=4), 2), r"several image sizes \(11 of 6 x 5, 1 of 6 x 4\)"),
    "two pixel spacings": (alter(put(PixelSpacing=[1, 1]), 2), "several pixel spacings"),
    "two frames of reference": (alter(put(FrameOfReferenceUID="1.2.3"), 2), "2 frames of reference"),
    "two patients": (alter(put(PatientID="id-4712"), 2), r"images of 2 patients\. Export"),
    "two studies": (alter(put(StudyInstanceUID="1.2.3"), 2), r"images of 2 studies\. Export"),
    "no position": (alter(lack("ImagePositionPatient"), 2), r"1 image without a usable ImagePositionPatient \(im002"),
    "no orientation": (alter(put(ImageOrientationPatient=None)), "12 images without a usable ImageOrientationPatient"),
    "a bad orientation": (alter(put(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])), "directions or distances"),
    "no distance between pixels": (alter(put(PixelSpacing=[0, 1])), "distances that cannot be"),
    "no pixel spacing": (alter(lack("PixelSpacing")), "PixelSpacing"),
    "no pixels": (alter(lack("PixelData"), 4), r"im004\.dcm has no pixel data"),
    "pixels cut short": (cut(4, 0.98), r"im004\.dcm is cut short \(\d+ of 60 bytes"),
    "header cut short": (cut(4, 0.2), r"1 file cannot be read as DICOM.*im004\.dcm"),
    "an empty file": (cut(4, 0.0), r"im004\.dcm"),
    "localizers": (alter(LOCALIZER), "the series is a localizer"),
    "a localizer among slices": (alter(LOCALIZER, 3), r"1 of the images are localizers.*im003"),
    "an image twice": (altered_copy(3), r"the same image is there twice: (copy|im003)\.dcm and (copy|im003)\.dcm"),
    "a slope of 0": (alter(put(RescaleSlope=0), 2), r"RescaleSlope is 0 in 1 image \(im002"),
    "a slope of nearly 0": (alter(put(RescaleSlope="1e-30"), 2), r"RescaleSlope is 1e-30 in 1 image \(im002"),
    "a slope that turns in one slice": (alter(put(RescaleSlope=-1), 2), r"negative in 1 image \(im002\.dcm\) and pos"),
    "a decimal comma": (alter(raw("RescaleSlope", b"1,75"), 2), NO_NUMBER),
    "a slope of bytes": (alter(lambda ds, k: ds.add_new("RescaleSlope", "OB", b"1e30"), 2), NO_NUMBER),
    "two slopes": (alter(put(RescaleSlope=[1, 2]), 2), NO_NUMBER),
    "an intercept in words": (alter(raw("RescaleIntercept", b"none"), 2), r"RescaleIntercept of im002\.dcm is not"),
    "a slope that is not finite": (alter(raw("RescaleSlope", b"1e999 "), 2), r"RescaleSlope of im002\.dcm is not"),
    "several units": (alter(put(RescaleType="US"), 2), r"several units \(11 of no RescaleType, 1 of US\)"),
    "frames below 0": (alter(put(NumberOfFrames=-1), 1), r"im001\.dcm \(its NumberOfFrames is -1\)"),
    "frames in words": (alter(raw("NumberOfFrames", b"one "), 1), r"im001\.dcm \(its NumberOfFrames is no number\)"),
    "half the rows": (
        alter(put(Rows=2)),
        r"holds 60 bytes of pixels, and its header says 2 rows, 6 columns and 1 frame",
    ),
    "too many bits": (alter(put(BitsStored=17, HighBit=16), 3), r"im003\.dcm: BitsStored is 17 and Bi"),
    "values above bit 0": (alter(put(BitsStored=12), 3), r"im003\.dcm: the values are stored in bits 4 to 15"),
    "an unknown sign": (alter(put(PixelRepresentation=2), 3), r"im003\.dcm: PixelRepresentation is 2"),
    "no sign": (alter(lack("PixelRepresentation"), 3), r"im003\.dcm: PixelRepresentation is missing"),
    "bits that no format has": (
        alter(put(BitsAllocated=12, BitsStored=12, HighBit=11), 3),
        "BitsAllocated is 12; 8, 16",
    ),
    "no header": (overwritten(bytes(320)), r"im004\.dcm \(its header ends before the SeriesInstanceUID"),
    "bytes before the header": (shifted, r"1 file cannot be read as DICOM: im004\.dcm \("),
    "no intercept": (alter(lack("RescaleIntercept"), 1), "Hounsfield units are not known"),
    "electron density": (alter(put(RescaleType="ED")), "not Hounsfield units but ED"),
    "a lookup table": (alter(put(ModalityLUTSequence=[item(LUTExplanation="x")])), "Modality LUT"),
    "frames without places": (alter(put(NumberOfFrames=2), 1), "2 frames and does not say where"),
    "color": (alter(put(SamplesPerPixel=3), 1), "color"),
    "colors from a table": (alter(put(PhotometricInterpretation="PALETTE COLOR"), 1), "color"),
    "one slice": (drop(*range(2, 13)), "a single slice"),
    "a multi-frame with several stacks": (stacks, r"several stacks \(2 of 2, 2 of 1\)"),
    "echoes in one series": (echoes, r"the same place.*they differ in EchoTime\).*one volume per series"),
    "padding in words": (
        alter(lambda ds, k: ds.add_new(0x00280120, "LO", "x")),
        r"PixelPaddingValue of im0\d\d\.dcm is no whole number",
    ),
    "MR: a slope that one slice lacks": (
        alter(put(RescaleSlope=2, RescaleIntercept=0), *range(1, 12)),
        r"1 image without the RescaleSlope that the others have \(im012\.dcm\)",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(name: str, tmp_path: Path) -> None:
    spoil, words = REFUSALS[name]
    folder = write_series(tmp_path / "ct", stored((6, 5, 12)), modality="MR" if "MR" in name else "CT")
    read_volume(folder)
    spoil(folder)
    with pytest.raises(InputError, match=words) as caught:
        read_volume(folder)
    said = str(caught.value)
    assert str(folder) in said and "\n" not in said and said.endswith(".")
    assert "Secret" not in said and "4711" not in said and "1970" not in said


def test_every_second_slice_missing_is_warned_of(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct", stored((6, 5, 12)), modality="CT")
    drop(2, 4, 6, 8, 10, 12)(folder)
    with pytest.warns(UserWarning, match=r"numbered 1 to 11 with 5 numbers left out"):
        assert read_volume(folder).shape == (1, 6, 5, 6)


def test_invalid_headers_do_not_leak_into_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(ds: Dataset, k: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds.FrameOfReferenceUID = "1.2.Secret"

    write_series(tmp_path / "mr", stored(), change=change)
    header = pydicom.dcmread(tmp_path / "mr" / "im001.dcm")
    with pytest.warns(UserWarning, match="Secret"):  # what pydicom says when nobody stops it
        assert header.FrameOfReferenceUID
    caplog.clear()
    check(tmp_path / "mr", stored())  # a warning would be an error here
    assert not caplog.records


def test_reading_in_threads_leaves_warnings_as_they_were(tmp_path: Path) -> None:
    write_series(tmp_path / "mr", stored())
    before, mode = list(warnings.filters), pydicom.config.settings.reading_validation_mode
    with ThreadPoolExecutor(4) as pool:
        for volume in pool.map(read_volume, [tmp_path / "mr"] * 40):
            np.testing.assert_array_equal(volume.numpy()[0], stored())
    assert list(warnings.filters) == before
    assert pydicom.config.settings.reading_validation_mode == mode


def test_a_file_that_is_there_twice_byte_for_byte_is_read_once(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "mr", stored())
    shutil.copytree(folder, folder / "again")
    with pytest.warns(UserWarning, match=r"mr: left out 4 files that are there twice, byte for byte: im001\.dcm"):
        check(folder, stored())


def test_bytes_behind_the_pixels_are_said(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "mr", stored())
    file = folder / "im002.dcm"
    content = file.read_bytes()
    file.write_bytes(content[:-30] + b"\1\2" + content[-30:])
    with pytest.warns(UserWarning, match=r"1 file with bytes behind the pixels that belong to nothing \(im002\.dcm\)"):
        read_volume(folder)
    file.write_bytes(content)
    ds = pydicom.dcmread(file)
    ds.PixelData = ds.PixelData + b"\1\2"
    ds.save_as(file)
    with pytest.warns(UserWarning, match=r"1 file with bytes behind the pixels"):
        check(folder, stored())
    ds = pydicom.dcmread(folder / "im001.dcm")
    ds.add_new(0xFFFCFFFC, "OB", bytes(20))  # padding, as the standard allows it
    ds.save_as(folder / "im001.dcm")
    file.write_bytes(content)
    check(folder, stored())


def test_several_folders_without_a_series_uid_are_several_series(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_series(tmp_path / "two" / name, stored(), change=lack("SeriesInstanceUID"))
    with pytest.raises(InputError, match=r"holds 2 series.*4 images, without a SeriesInstanceUID; MR"):
        read_volume(tmp_path / "two")


class TestSeveralSeries:
    @pytest.fixture
    def study(self, tmp_path: Path) -> Path:
        for seed, prefix in ((1, "a"), (2, "b")):
            change = put(SeriesDescription=f"t{seed}")
            write_series(
                tmp_path / "s", stored(seed=seed), uid=f"1.2.3.{seed}{seed}{seed}{seed}", prefix=prefix, change=change
            )
        return tmp_path / "s"

    def structures(self, folder: Path) -> None:
        """A file of outlines."""
        ds = item(SOPClassUID=RTStructureSetStorage, SOPInstanceUID=generate_uid(), Modality="RTSTRUCT")
        ds.SeriesInstanceUID = "1.2.3.3333"
        save(ds, folder / "rs.dcm")

    def test_they_are_named(self, study: Path) -> None:
        with pytest.raises(InputError) as caught:
            read_volume(study)
        said = str(caught.value)
        assert "holds 2 series" in said and "#2.3.1111" in said
        for line in ("MR 't1', 4 images, UID ...2.3.1111", "MR 't2', 4 images, UID ...2.3.2222"):
            assert line in said
        assert PATIENT.split("^", maxsplit=1)[0] not in said
        assert [series.description for series in list_series(study)] == ["t1", "t2"]

    def test_a_description_that_swallows_the_patient_is_not_shown(self, study: Path) -> None:
        file = study / "a001.dcm"
        content = bytearray(file.read_bytes())
        place = content.index(b"\x08\x00\x3e\x10LO") + 6
        content[place : place + 2] = (content.index(PATIENT.encode()) + len(PATIENT) - place - 2).to_bytes(2, "little")
        file.write_bytes(bytes(content))
        assert PATIENT in str(pydicom.dcmread(file).SeriesDescription)
        with pytest.raises(InputError, match=r"MR 'unreadable', ") as caught:
            read_volume(study)
        assert PATIENT not in str(caught.value)

    def test_one_is_chosen_by_the_end_of_its_uid(self, study: Path) -> None:
        check(Path(f"{study}#1111"), stored(seed=1))
        check(Path(f"{study}#3.2222"), stored(seed=2))
        with pytest.raises(InputError, match=r"no series whose UID ends in 333\. It holds: MR 't1'"):
            read_volume(f"{study}#333")

    def test_equal_ends_are_shown_as_long_as_they_need_to_be(self, tmp_path: Path) -> None:
        for uid in ("1.2.77.0.0.0.0.0", "1.2.78.0.0.0.0.0"):
            write_series(tmp_path, stored(), uid=uid, prefix=uid)
        assert [series.uid_end for series in list_series(tmp_path)] == ["7.0.0.0.0.0", "8.0.0.0.0.0"]
        with pytest.raises(InputError, match=r"holds 2 series whose UID ends in 0\.0"):
            read_volume(f"{tmp_path}#0.0")

    def test_what_is_no_scan_is_left_out_and_said(self, study: Path) -> None:
        edit(study, LOCALIZER, "b*")
        self.structures(study)
        (study / "readme.txt").write_text("x")
        (study / "DICOMDIR").write_text("x")
        with pytest.warns(UserWarning) as caught:
            volume = read_volume(study)
        np.testing.assert_array_equal(volume.numpy()[0], stored(seed=1))
        said = " ".join(str(w.message) for w in caught)
        assert "(localizer)" in said and "RTSTRUCT" in said and "1 file that is not DICOM: readme.txt" in said

    def test_structures_alone_are_no_images(self, tmp_path: Path) -> None:
        self.structures(tmp_path)
        with pytest.raises(InputError, match=r"holds no scan: RTSTRUCT.*no pixel data"):
            read_volume(tmp_path)


class TestZips:
    @pytest.mark.parametrize("directory", [True, False])
    def test_a_broken_zip(self, directory: bool, tmp_path: Path) -> None:
        path = tmp_path / "a.zip"
        path.write_bytes(b"PK\x03\x04 and no more")
        if directory:  # is there and damaged: zipfile ends names at NUL
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("one.dcm", b"x")
            before, name, after = path.read_bytes().rpartition(b"one.dcm")
            path.write_bytes(before + bytes(len(name)) + after)
        assert not holds_dicom(path)
        with pytest.raises(InputError, match=r"a\.zip cannot be read: it is no whole zip file"):
            read_volume(path)


@needs_data
class TestRealSeries:
    def test_every_folder_is_tested(self) -> None:
        assert {f.name for f in DATA.iterdir()} == {"ct_gantry_tilt", "mr_philips_noise", "mr_two_orientations"}

    def test_gantry_tilt_and_uneven_steps_are_refused(self) -> None:
        words = (
            r"ct_gantry_tilt: uneven slice steps \(7 of 4\.00 mm, 5 of 7\.00 mm, 1 of 1\.08 mm\); besides, the gantry"
        )
        with pytest.raises(InputError, match=words) as caught:
            read_volume(DATA / "ct_gantry_tilt")
        assert "tilted by 18.5 degrees" in str(caught.value) and "QMNx" not in str(caught.value)

    def test_the_even_part_of_the_tilted_series_is_straightened(self, tmp_path: Path) -> None:
        for number in range(7, 15):
            shutil.copy(DATA / "ct_gantry_tilt" / f"{number:02d}.dcm", tmp_path)
        with (
            pytest.warns(UserWarning, match=r"tilted by 18\.5 degrees"),
            pytest.warns(UserWarning, match="numbered from 7; look whether the first ones are missing"),
        ):
            volume = read_volume(tmp_path)
        grid = grid_of(volume)
        np.testing.assert_allclose(grid.spacing, [0.4882812, 0.4882812, 4.0], atol=3e-3)
        # The lowest slice starts where the header says; 4.22 mm along z is 4.22 sin(18.5 degrees) = 1.339 mm in plane.
        first = pydicom.dcmread(tmp_path / "07.dcm")
        lps = RAS @ grid.affine
        assert grid.shape[:2] == (512, 512 + int(np.ceil(7 * 4.22 * np.sin(np.radians(18.5)) / 0.4882812)))
        head = np.array(first.ImagePositionPatient, dtype=float)
        index = np.linalg.solve(lps[:3, :3], head - lps[:3, 3])
        np.testing.assert_allclose(index, np.rint(index), atol=1e-4)
        x, y, z = np.rint(index).astype(int)
        assert z == 0
        stored_values = first.pixel_array.T
        np.testing.assert_array_equal(volume.numpy()[0, x : x + 512, y : y + 512, 0], stored_values)

    def test_two_orientations(self) -> None:
        with pytest.raises(InputError, match=r"mixed orientations \(2 of sagittal.*2 of axial"):
            read_volume(DATA / "mr_two_orientations")

    def test_all_at_once_are_named(self) -> None:
        with pytest.raises(InputError, match=r"holds 3 series.*14 images, UID \.\.\.14813892.*#"):
            read_volume(DATA)
        assert list(list_volumes(DATA)) == ["ct_gantry_tilt", "mr_philips_noise", "mr_two_orientations"]
