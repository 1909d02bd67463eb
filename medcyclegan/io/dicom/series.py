"""A DICOM series in: the slices of one scan, from a folder, a zip or a file, as one array with its place in space.

Words used here. *Series*: the objects of one SeriesInstanceUID. Messages name files, series descriptions and ends of
UIDs, and nothing of the patient.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from medcyclegan.errors import InputError, few
from medcyclegan.io.dicom.files import (
    LIBRARY_ERRORS,
    Object,
    count,
    quiet_headers,
    read_objects,
    shown,
    split_choice,
    without_copies,
)
from medcyclegan.io.dicom.padding import AIR_HU
from medcyclegan.io.dicom.pixels import unsheared, values_of
from medcyclegan.io.dicom.stack import Slice, slices_of, stacked
from medcyclegan.io.grid import Grid

_UID_DIGITS = 8  # of the end of a UID, shown in messages, or more where they are needed


@dataclass(frozen=True)
class Series:
    """The description of a series in a folder or zip, without the patient.

    Attributes:
        uid: SeriesInstanceUID, or an empty string where the header has none.
        uid_end: its end, long enough to tell it from the others that were found with it.
        kind: "scan", "localizer" (a scout view for planning the scan) or "other" (structures, reports, screenshots).
        modality: "MR", "CT", ...
        description: SeriesDescription, or an empty string.
        images: number of slices.
        scanner: manufacturer, model and field strength, or an empty string.
        patient_digest: of PatientID and its issuer, to tell whether two series are of one patient; an empty string
            where there is none. It identifies the patient to whoever knows the ids: never stored, never shown.
    """

    uid: str
    uid_end: str
    kind: str
    modality: str
    description: str
    images: int
    scanner: str = ""
    patient_digest: str = field(default="", repr=False)

    def __str__(self) -> str:
        kind = {"scan": "", "localizer": " (localizer)", "other": " (no scan)"}[self.kind]
        return (
            f"{self.modality} '{self.description or 'without a description'}', {count(self.images, 'image')}{kind}, "
            f"{f'UID ...{self.uid_end}' if self.uid else 'without a SeriesInstanceUID'}"
        )


@dataclass(frozen=True)
class SourceSeries:
    """The headers of a series, for writing a series derived from it.

    Attributes:
        header: of the first slice, without pixels. Holds the patient's identity.
        grid: where its voxels lie as `load_series` gives them.
        images: (SOP class UID, SOP instance UID, frame number from 1 or None) of every slice, in the grid's order; an
            empty UID where the header has none.
    """

    header: Dataset
    grid: Grid
    images: tuple[tuple[str, str, int | None], ...]


def list_series(path: str | os.PathLike[str]) -> list[Series]:
    """Every series in a folder (sub-folders included), a zip or a file, in order of UID.

    Raises:
        InputError: there is no DICOM, or a file cannot be read.
    """
    path, _ = split_choice(path)
    with quiet_headers():
        objects, _ = read_objects(path)
        return [series for series, _ in _grouped(objects)]


def load_series(
    path: str | os.PathLike[str],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], dict[str, Any]]:
    """Read the one series of a folder, zip or file, or the one that a choice `PATH#DIGITS` names.

    Slices are sorted along the normal. Where a tilted gantry has sheared the stack, every slice is shifted within its
    own plane by linear interpolation until the axes are orthogonal; nothing is mixed across slices.

    Returns:
        Array (columns, rows, slices) float32 in HU for CT; affine, voxel index to RAS+ mm; metadata: `modality`.

    Raises:
        InputError: there is no series or more than one; it is a localizer or no image; slices are missing, repeated,
            unevenly spaced, of several orientations, sizes, stacks or scans; there are no pixels, a file is cut short,
            or the values have no meaning that could be known.

    Warns:
        UserWarning: a tilt was corrected, or other files or series were left out.
    """
    with quiet_headers():
        name, slices, notes = _chosen(path)
        stack = stacked(slices, name)
        array, remarks = values_of(stack.slices, name)
    affine = stack.grid.affine
    if stack.shift is not None:
        fill = AIR_HU if stack.slices[0].modality == "CT" else float(array.min())
        array = unsheared(array, stack, fill)
    for note in (*notes, *stack.notes, *remarks):
        warnings.warn(f"{name}: {note}", stacklevel=2)
    return array, affine, {"modality": stack.slices[0].modality}


def source_series(path: str | os.PathLike[str]) -> SourceSeries:
    """The headers of what `load_series` reads, checked in the same way; no pixel is read."""
    with quiet_headers():
        name, slices, _ = _chosen(path)
        stack = stacked(slices, name)
    images = tuple(
        (
            str(s.header.get("SOPClassUID") or ""),
            str(s.header.get("SOPInstanceUID") or ""),
            s.frame + 1 if s.enhanced else None,
        )
        for s in stack.slices
    )
    return SourceSeries(stack.slices[0].header, stack.grid, images)


def _grouped(objects: Sequence[Object]) -> list[tuple[Series, list[Object]]]:
    # Anonymizers empty the UID: what lies in one folder without one is then taken for one series.
    groups: dict[tuple[str, PurePath | str], list[Object]] = {}
    for item in objects:
        uid = str(item.header.get("SeriesInstanceUID") or "")
        groups.setdefault((uid, "" if uid else item.place.folder), []).append(item)
    uids = {uid for uid, _ in groups}
    digits = _UID_DIGITS
    while len({uid[-digits:] for uid in uids}) < len(uids):
        digits += 1
    found = []
    for (uid, _), items in sorted(groups.items(), key=lambda group: tuple(map(str, group[0]))):
        header = items[0].header
        kinds = {_kind(item.header) for item in items}
        series = Series(
            uid=uid,
            uid_end=uid[-digits:],
            kind="scan" if "scan" in kinds else "localizer" if "localizer" in kinds else "other",
            modality=_text(header, "Modality") or "?",
            description=_text(header, "SeriesDescription"),
            images=sum(item.frames for item in items) if kinds != {"other"} else 0,
            scanner=_scanner(header),
            patient_digest=_patient_digest(header),
        )
        found.append((series, items))
    return found


def _scanner(header: Dataset) -> str:
    words = [_text(header, keyword) for keyword in ("Manufacturer", "ManufacturerModelName")]
    strength = _text(header, "MagneticFieldStrength")
    return " ".join([*(word for word in words if word), *([f"{strength} T"] if strength else [])])


def _text(header: Dataset, keyword: str) -> str:
    """A text for display only; empty where it is absent or damaged."""
    try:
        return shown(header.get(keyword) or "")
    except LIBRARY_ERRORS:
        return ""


def _patient_digest(header: Dataset) -> str:
    number = str(header.get("PatientID") or "").strip()
    issuer = str(header.get("IssuerOfPatientID") or "").strip()
    return hashlib.blake2b(f"{issuer}\n{number}".encode(), digest_size=16).hexdigest() if number else ""


def _kind(header: Dataset) -> str:
    sop_class = str(header.get("SOPClassUID") or "")
    standard_name = _class_name(header)
    # A class that is missing or unknown, as anonymizers leave it, is an image if it has rows.
    if "Image Storage" not in standard_name and (standard_name != sop_class or "Rows" not in header):
        return "other"
    if "Secondary Capture" in standard_name and "ImagePositionPatient" not in header:
        return "other"  # a screenshot, a dose report
    return "localizer" if "LOCALIZER" in _words(header, "ImageType") else "scan"


def _class_name(header: Dataset) -> str:
    """The standard's name of the SOP class, or the UID if it has none."""
    sop_class = str(header.get("SOPClassUID") or "")
    return pydicom.uid.UID(sop_class).name if sop_class else ""


def _chosen(path: str | os.PathLike[str]) -> tuple[str, list[Slice], list[str]]:
    """The name for messages, the slices of the one series that is meant, and what was left out."""
    name = str(path)
    folder, digits = split_choice(path)
    objects, not_dicom = read_objects(folder)
    found = _grouped(objects)
    series, items = _meant(found, folder, digits)
    notes = []
    others = [other for other, _ in found if other is not series]
    if others and not digits:
        notes.append(f"left out what is no scan: {'; '.join(map(str, others))}.")
    if not_dicom:
        notes.append(f"left out {count(len(not_dicom), 'file')} that {_be(not_dicom)} not DICOM: {few(not_dicom)}.")
    if series.kind == "other":
        raise InputError(
            f"{name} holds no scan: {series}, {shown(_class_name(items[0].header)) or 'no SOPClassUID'}: "
            "no pixel data, or none that have a place in space.",
            "Give the folder of an image series.",
        )
    if localizers := [item.place.name for item in items if _kind(item.header) == "localizer"]:
        every = len(localizers) == len(items)
        raise InputError(
            f"{name}: {'the series is a localizer' if every else f'{len(localizers)} of the images are localizers'} "
            f"(a scout view for planning the scan): {series if every else few(localizers)}.",
            "Give the folder of the scan itself." if every else "Take these files out of the series.",
        )
    items, copies = without_copies(items)
    if copies:
        notes.append(
            f"left out {count(len(copies), 'file')} that {_be(copies)} there twice, byte for byte: {few(copies)}."
        )
    if not series.uid:
        notes.append("no SeriesInstanceUID; the images of the folder are taken as one series.")
    if unnamed := [item.place.name for item in items if "Image Storage" not in _class_name(item.header)]:
        notes.append(f"{count(len(unnamed), 'file')} without a known SOPClassUID taken as images: {few(unnamed)}.")
    try:
        return name, [image for item in items for image in slices_of(item, name)], notes
    except InputError:
        raise
    except LIBRARY_ERRORS as error:
        raise InputError(f"{name}: the headers of the series are damaged.", "Copy or export it again.") from error


def _meant(found: list[tuple[Series, list[Object]]], folder: Path, digits: str) -> tuple[Series, list[Object]]:
    """The series whose UID ends in `digits`; without them the only scan, or the only series."""
    listed = "; ".join(str(series) for series, _ in found)
    if digits:
        chosen = [(series, items) for series, items in found if series.uid.endswith(digits)]
        if len(chosen) != 1:
            raise InputError(
                f"{folder} holds {len(chosen) or 'no'} series whose UID ends in {digits}. It holds: {listed}.",
                "Give digits that end the UID of one of them.",
            )
        return chosen[0]
    scans = [(series, items) for series, items in found if series.kind == "scan"]
    if len(scans) > 1:
        raise InputError(
            f"{folder} holds {len(scans)} series, and one is needed: {listed}.",
            f"Give the sub-folder of one series, or name it by the end of its UID: '{folder}#{scans[0][0].uid_end}'.",
        )
    if not scans and len(found) > 1:
        raise InputError(f"{folder} holds no scan: {listed}.", "Give the folder of an image series.")
    return (scans or found)[0]


def _words(header: Dataset, keyword: str) -> list[str]:
    value = header.get(keyword) or []
    return [str(word).upper() for word in (value if isinstance(value, list | MultiValue) else [value])]


def _be(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
