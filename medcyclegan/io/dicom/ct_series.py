"""A synthetic CT out as a DICOM CT series that a planning system imports.

Words used here. *Source*: the DICOM series that the CT was made from, if it was DICOM. *Instance*: one file, one slice.

What the series says (PS3.3 A.3, CT Image Storage). Patient, study and frame of reference are the source's, so that the
CT lies on the MR without registration; the series and every instance are new, with random UIDs, each time they are
written. Values are HU in signed 16 bits, slope 1, intercept 0. There are no private tags.

Voxels are never resampled: an instance holds a plane of the grid. Planning systems want axial planes. A source with
axial slices gives one instance per source slice, with its rows and columns. A source with sagittal or coronal slices,
and any volume that was not DICOM, is written plane by plane along the grid axis nearest to the body's long axis, feet
to head, rows to the patient's left and columns to the back: the same voxels in the same places, in another order. An
oblique grid stays oblique.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from medcyclegan.atomic import atomic_folder
from medcyclegan.errors import InputError
from medcyclegan.io.dicom.files import LIBRARY_ERRORS, holds_dicom, quiet_headers
from medcyclegan.io.dicom.series import SourceSeries, source_series
from medcyclegan.io.grid import LPS_FROM_RAS, SHEAR_COSINE, Grid

SERIES_DESCRIPTION = "synthetic CT, not for clinical use"

# Identity and study, as the source has them; those that an image must have are left empty where it has not.
_MAY_NOT_LACK = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "PatientPosition"),
)
_PATIENT_AND_STUDY = (
    *("SpecificCharacterSet", "IssuerOfPatientID", "StudyInstanceUID", "StudyDescription", "FrameOfReferenceUID"),
    *("BodyPartExamined", "Laterality", *_MAY_NOT_LACK),
)
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_ANONYMOUS = ("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence")


def write_ct_series(
    folder: str | os.PathLike[str],
    array: npt.NDArray[np.int16],
    grid: Grid,
    *,
    source: str | os.PathLike[str] | None = None,
    description: str = "",
) -> None:
    """Write a synthetic CT as a folder of CT Image Storage instances; whole or not at all.

    Args:
        folder: where to; a synthetic CT in it is replaced, anything else is refused. Its parent is made if need be.
        array: (X, Y, Z) int16, HU.
        grid: where the voxels lie; same shape as `array`, axes at right angles.
        source: the volume that the CT was made from, as `read_volume` took it. If it is DICOM, its patient, study and
            frame of reference are taken over, and its images are referred to. Otherwise the patient is "ANONYMOUS^SCT"
            with a new identifier, and study and frame of reference are new.
        description: what made the CT: model and version.

    Warns:
        UserWarning: the source names no frame of reference, or its images have no UIDs to be referred to by.

    Raises:
        InputError: the axes are sheared, `folder` holds something else, or the source cannot be read any more.
        OSError: the files could not be written.
        TypeError: another array type. ValueError: another shape.
    """
    folder = Path(folder)
    if array.dtype != np.int16:
        raise TypeError(f"a CT series is written as int16, got {array.dtype}")
    if array.shape != grid.shape:
        raise ValueError(f"array of shape {array.shape} does not fit the grid of shape {grid.shape}")
    if grid.shear > SHEAR_COSINE:
        raise InputError(
            f"{folder}: the axes of the volume are sheared, and a CT series needs right angles.",
            "Resample the source onto a grid with right angles first.",
        )
    _refuse_foreign(folder)
    origin = source_series(source) if source is not None and holds_dicom(source) else None
    array, grid, one_to_one = _axial(array, grid, origin)
    with quiet_headers():
        template = _template(origin, description, float(grid.spacing[2]))
    references = [_reference(*image) for image in origin.images] if origin else []
    if any(not (item.ReferencedSOPInstanceUID and item.ReferencedSOPClassUID) for item in references):
        warnings.warn(
            "source images have no SOPInstanceUID or SOPClassUID, so the CT series does not refer to them.",
            stacklevel=2,
        )
        references = []
    with atomic_folder(folder) as temporary:
        for k in range(grid.shape[2]):
            instance = _instance(template, array[:, :, k], grid, k)
            if references:
                instance.SourceImageSequence = Items([references[k]] if one_to_one else references)
            instance.save_as(temporary / f"{k + 1:04d}.dcm", enforce_file_format=True)


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file.", "Give a folder for the DICOM series.")
    if folder.is_dir() and (others := sorted(path.name for path in folder.iterdir() if not _is_ours(path))):
        raise InputError(
            f"{folder} holds something else than a synthetic CT ({', '.join(others[:3])}), and would be replaced.",
            "Give another folder.",
        )


def _is_ours(path: Path) -> bool:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=["SeriesDescription"])
        return str(header.get("SeriesDescription", "")) == SERIES_DESCRIPTION
    except LIBRARY_ERRORS:
        return False


def _axial(
    array: npt.NDArray[np.int16], grid: Grid, origin: SourceSeries | None
) -> tuple[npt.NDArray[np.int16], Grid, bool]:
    """The volume with axial planes as its last axis, and whether these are the source's slices, one to one."""
    turned = nib.orientations.io_orientation(grid.affine)
    same = origin is not None and grid.matches(origin.grid)
    if same and turned[2, 0] == 2:
        return array, grid, True
    turn = nib.orientations.ornt_transform(turned, nib.orientations.axcodes2ornt("LPS"))
    ordered = nib.orientations.apply_orientation(array, turn)
    affine = grid.affine @ nib.orientations.inv_ornt_aff(turn, grid.shape)
    return ordered, Grid(ordered.shape, affine), False


def _template(origin: SourceSeries | None, description: str, step: float) -> Dataset:
    """Everything that all instances share."""
    now = datetime.now()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    new = Dataset()
    new.SpecificCharacterSet = "ISO_IR 100"
    for keyword in _MAY_NOT_LACK:
        setattr(new, keyword, "")
    if origin is None:
        new.PatientName = "ANONYMOUS^SCT"
        # Planning systems take equal identifiers for the same patient.
        new.PatientID = f"SCT-{generate_uid(prefix=None)[-12:]}"
        new.StudyDate, new.StudyTime, new.StudyID = date, time, "1"
    else:
        known, unreadable = _readable(origin.header, (*_PATIENT_AND_STUDY, *_ANONYMOUS, *_LOSSY))
        if unreadable:
            warnings.warn(
                f"{', '.join(unreadable)} of the source cannot be read; they are empty or new in the CT series.",
                stacklevel=3,
            )
        for keyword in _PATIENT_AND_STUDY:
            if keyword in known:
                new[keyword] = known[keyword]
        _copy_history(known, new)
    if origin and "FrameOfReferenceUID" not in new:
        warnings.warn(
            "the source has no FrameOfReferenceUID, so the CT series gets a new one: planning systems will not take "
            "the two as aligned.",
            stacklevel=3,
        )
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if keyword not in new:
            setattr(new, keyword, _new_uid())
    if "BodyPartExamined" not in new:
        new.Laterality = ""
    new.SOPClassUID = CTImageStorage
    new.Modality = "CT"
    new.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    new.SeriesInstanceUID = _new_uid()
    new.SeriesDescription = SERIES_DESCRIPTION
    new.SeriesNumber = _series_number(origin)
    new.SeriesDate = new.ContentDate = new.InstanceCreationDate = date
    new.SeriesTime = new.ContentTime = new.InstanceCreationTime = time
    new.Manufacturer = "medcyclegan"
    new.ManufacturerModelName = "medcyclegan"
    new.SoftwareVersions = _ascii(description, 64) or "unknown"
    made_from = f"{origin.header.get('Modality') or 'image'} series" if origin else "volume without DICOM identity"
    new.DerivationDescription = _ascii(
        f"Synthetic CT in Hounsfield units, estimated by a neural network from one {made_from}; not for clinical use. "
        f"{description}",
        1024,
    )
    new.BurnedInAnnotation = "NO"
    new.AcquisitionNumber = None
    new.KVP = None
    new.SliceThickness = _decimal(step)
    new.SamplesPerPixel = 1
    new.PhotometricInterpretation = "MONOCHROME2"
    new.BitsAllocated, new.BitsStored, new.HighBit, new.PixelRepresentation = 16, 16, 15, 1
    new.RescaleSlope, new.RescaleIntercept, new.RescaleType = "1", "0", "HU"
    new.WindowCenter, new.WindowWidth = "40", "400"
    return new


def _readable(header: Dataset, keywords: Sequence[str]) -> tuple[Dataset, list[str]]:
    """Those elements of a header that are there and not empty, and the names of those that cannot be read."""
    known, unreadable = Dataset(), []
    for keyword in keywords:
        try:
            if header.get(keyword):
                known[keyword] = header[keyword]
        except LIBRARY_ERRORS:
            unreadable.append(keyword)
    return known, unreadable


def _copy_history(header: Dataset, new: Dataset) -> None:
    """That the source was made anonymous or lossy remains true of what derives from it."""
    if str(header.get("PatientIdentityRemoved", "")) == "YES":
        new.PatientIdentityRemoved = "YES"
        if not header.get("DeidentificationMethodCodeSequence"):
            new.DeidentificationMethod = header.get("DeidentificationMethod") or "not stated in the source series"
        else:
            new["DeidentificationMethodCodeSequence"] = header["DeidentificationMethodCodeSequence"]
    new.LossyImageCompression = "00"
    if str(header.get("LossyImageCompression", "")) == "01":
        for keyword in _LOSSY:
            if header.get(keyword):
                new[keyword] = header[keyword]


def _instance(template: Dataset, plane: npt.NDArray[np.int16], grid: Grid, k: int) -> Dataset:
    """One slice; `plane` is (columns, rows)."""
    lps = LPS_FROM_RAS @ grid.affine
    directions = lps[:3, :3] / grid.spacing
    row = directions[:, 0]
    # Directions have to be orthogonal to the last digit, which an affine of 32-bit numbers is not.
    column = directions[:, 1] - (directions[:, 1] @ row) * row
    column /= np.linalg.norm(column)
    new = Dataset()
    new.update(template)
    new.SOPInstanceUID = _new_uid()
    new.InstanceNumber = k + 1
    new.ImagePositionPatient = [_decimal(value) for value in lps[:3, 3] + k * lps[:3, 2]]
    new.ImageOrientationPatient = [_decimal(value) for value in (*row, *column)]
    new.PixelSpacing = [_decimal(value) for value in grid.spacing[1::-1]]
    new.Columns, new.Rows = plane.shape
    new.PixelData = np.ascontiguousarray(plane.T, dtype="<i2").tobytes()
    new["PixelData"].VR = "OW"
    new.file_meta = FileMetaDataset()
    new.file_meta.MediaStorageSOPClassUID = new.SOPClassUID
    new.file_meta.MediaStorageSOPInstanceUID = new.SOPInstanceUID
    new.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return new


def _reference(sop_class: str, sop_instance: str, frame: int | None) -> Dataset:
    purpose = Dataset()
    purpose.CodeValue = "121322"
    purpose.CodingSchemeDesignator = "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class
    item.ReferencedSOPInstanceUID = sop_instance
    if frame is not None:
        item.ReferencedFrameNumber = frame
    item.PurposeOfReferenceCodeSequence = Items([purpose])
    return item


def _series_number(origin: SourceSeries | None) -> int:
    """Behind the source's and away from the scanner's own numbers."""
    try:
        return 9000 + int(origin.header.get("SeriesNumber") or 0) if origin else 1
    except LIBRARY_ERRORS:
        return 9000


def _new_uid() -> str:
    return str(generate_uid(prefix=None))


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2)."""
    return format_number_as_ds(float(value) + 0.0)


def _ascii(text: str, length: int) -> str:
    return text.encode("ascii", "replace").decode().replace("\\", "/")[:length].strip()
