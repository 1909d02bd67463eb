"""DICOM series for tests, written by pydicom alone: nothing of ours decides what is in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

PATIENT = "Secret^Person"
# LPS: rows to the left, columns to the back, slices to the head, slightly oblique; every number different.
TURN = np.linalg.qr(np.array([[1.0, 0.05, -0.1], [-0.04, 1.0, 0.02], [0.1, -0.03, 1.0]]))[0]
TURN = TURN * np.sign(np.diag(TURN))
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = TURN @ np.diag([0.9, 1.1, 3.0])
OBLIQUE[:3, 3] = [-12.5, -40.25, 101.0]
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


Change = Callable[[Dataset, int], None]  # of the dataset of slice k


def put(**values: object) -> Change:
    """Give elements other values; a function is called with the number of the slice."""

    def change(ds: Dataset, k: int) -> None:
        for keyword, value in values.items():
            setattr(ds, keyword, value(k) if callable(value) else value)

    return change


def lack(*keywords: str) -> Change:
    return lambda ds, k: [delattr(ds, keyword) for keyword in keywords] and None


def raw(keyword: str, value: bytes) -> Change:
    """A value that pydicom would not write."""

    def change(ds: Dataset, k: int) -> None:
        tag = pydicom.tag.Tag(keyword)
        kind = pydicom.datadict.dictionary_VR(tag)
        ds[tag] = pydicom.dataelem.RawDataElement(tag, kind, len(value), value, 0, False, True)

    return change


def edit(folder: Path, change: Change, names: str = "*.dcm") -> None:
    """Change files that are written."""
    for k, file in enumerate(sorted(folder.glob(names))):
        ds = pydicom.dcmread(file)
        change(ds, k)
        ds.save_as(file)


def stored(shape: tuple[int, int, int] = (6, 5, 4), seed: int = 0) -> np.ndarray:
    """(columns, rows, slices)."""
    return np.random.default_rng(seed).integers(0, 3000, shape).astype(np.int16)


def write_series(
    folder: Path,
    array: np.ndarray,
    lps: np.ndarray = OBLIQUE,
    *,
    modality: str = "MR",
    change: Change | None = None,
    uid: str | None = None,
    prefix: str = "im",
    positions: np.ndarray | None = None,
) -> Path:
    """Write (columns, rows, slices) as one file per slice, the last slice first by name and number.

    `change` may alter the dataset of slice k before it is written; `positions` (slices, 3) replace those of `lps`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame = uid or generate_uid(), generate_uid(), generate_uid()
    count = array.shape[2]
    for k in range(count):
        ds = Dataset()
        ds.SOPClassUID = MRImageStorage if modality == "MR" else CTImageStorage
        ds.SOPInstanceUID = generate_uid()
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, study, frame
        ds.Modality, ds.SeriesNumber, ds.SeriesDescription = modality, 7, "t1 axial"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M" if modality == "MR" else "AXIAL"]
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = PATIENT, "id-4711", "19700102", "F"
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200304", "101112", "st1", "acc1"
        ds.ReferringPhysicianName, ds.PatientPosition, ds.BodyPartExamined = "Doctor^Who", "HFS", "HEAD"
        ds.PositionReferenceIndicator = ""
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.InstanceNumber = count - k
        ds.ImagePositionPatient = text(lps[:3, 3] + k * lps[:3, 2] if positions is None else positions[k])
        spacing = np.linalg.norm(lps[:3, :2], axis=0)
        ds.ImageOrientationPatient = text((lps[:3, :2] / spacing).T.ravel())
        ds.PixelSpacing = text(spacing[::-1])
        ds.SliceThickness = 3
        if modality == "CT":
            ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        set_pixels(ds, array[:, :, k].T)
        if change is not None:
            change(ds, k)
        save(ds, folder / f"{prefix}{count - k:03d}.dcm")
    return folder


def write_enhanced(path: Path, array: np.ndarray, lps: np.ndarray = OBLIQUE, stacks: int = 1) -> Path:
    """Write (columns, rows, slices) as one enhanced MR file, frames from last to first, slope k + 1 and intercept 5."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = EnhancedMRImageStorage, generate_uid()
    ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = generate_uid(), generate_uid(), generate_uid()
    ds.Modality, ds.ImageType, ds.PatientName = "MR", ["ORIGINAL", "PRIMARY", "T1", "NONE"], PATIENT
    spacing = np.linalg.norm(lps[:3, :2], axis=0)
    shared = Dataset()
    shared.PlaneOrientationSequence = [
        item(ImageOrientationPatient=text((lps[:3, :2] / spacing).T.ravel())),
    ]
    shared.PixelMeasuresSequence = [item(PixelSpacing=text(spacing[::-1]), SliceThickness=3)]
    ds.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in range(array.shape[2])[::-1]:
        frame = Dataset()
        frame.PlanePositionSequence = [item(ImagePositionPatient=text(lps[:3, 3] + k * lps[:3, 2]))]
        frame.FrameContentSequence = [item(StackID=str(1 + k * stacks // array.shape[2]), InStackPositionNumber=k + 1)]
        frame.PixelValueTransformationSequence = [item(RescaleSlope=k + 1, RescaleIntercept=5, RescaleType="US")]
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = frames
    set_pixels(ds, array.T[::-1])
    ds.NumberOfFrames = array.shape[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    save(ds, path)
    return path


def set_pixels(ds: Dataset, pixels: np.ndarray) -> None:
    """(rows, columns) or (frames, rows, columns)."""
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, int(pixels.dtype.kind == "i")
    ds.PixelData = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
    ds["PixelData"].VR = "OW"


def save(ds: Dataset, path: Path) -> None:
    if not hasattr(ds, "file_meta"):
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pydicom.dcmwrite(path, ds, enforce_file_format=True)


def item(**values: object) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def text(values: np.ndarray) -> list[str]:
    return [pydicom.valuerep.format_number_as_ds(float(v) + 0.0) for v in values]
