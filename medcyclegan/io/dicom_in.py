"""A DICOM series in: the slices of one scan, from a folder, a zip or a file, as one array with its place in space.

Words used here. *Object*: one DICOM file. *Image*: one slice; an enhanced multi-frame object holds many. *Series*: the
objects of one SeriesInstanceUID. *Normal*: the direction across the slices, row direction x column direction. *Step*:
distance between neighboring slices along the normal. *Choice*: `PATH#DIGITS` means the series in PATH whose UID ends in
DIGITS.

Places are LPS millimetres here (PS3.3 C.7.6.2) and RAS+ in what is returned. Values are `stored * slope + intercept`
with the slope and intercept of each slice (PS3.3 C.11.1), so a CT comes in Hounsfield units. Messages name files,
series descriptions and ends of UIDs, and nothing of the patient.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, RLELossless
from scipy import ndimage

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_AIR_HU = -1024.0
_UID_DIGITS = 8  # of the end of a UID, shown in messages, or more where they are needed
# A slice may lie this far from where even steps put it: positions rounded to one decimal are off by 0.05 mm.
_OFF_MM = 0.1
_OFF_STEPS = 0.1
_SAME_PLACE_MM = 0.01
_SAME_DIRECTION = 2e-4  # 0.05 mm at 250 mm
_SHEAR_COSINE = 1e-3  # as for the other formats: below it the axes count as orthogonal
_SECONDARY_CAPTURE = {False: "1.2.840.10008.5.1.4.1.1.7", True: "1.2.840.10008.5.1.4.1.1.7.3"}  # one or many frames
_DICOMDIR = "1.2.840.10008.1.3.10"
_PIXEL_DESCRIPTION = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
# What tells apart images of the same place: echoes, time points, diffusion weightings, Dixon images.
_REPETITIONS = (
    "EchoTime",
    "ImageType",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "TriggerTime",
    "AcquisitionNumber",
    "AcquisitionTime",
)
# What pydicom and zipfile raise for files that they cannot make sense of.
_LIBRARY_ERRORS = (
    InvalidDicomError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True)
class Series:
    """What a folder or zip tells of one of its series, and nothing of the patient.

    Attributes:
        uid: SeriesInstanceUID.
        uid_end: its end, long enough to tell it from the others that were found with it.
        kind: "scan", "localizer" (a scout view for planning the scan) or "other" (no image: structures, reports, ...).
        modality: "MR", "CT", ...
        description: SeriesDescription, or an empty string.
        images: number of slices.
    """

    uid: str
    uid_end: str
    kind: str
    modality: str
    description: str
    images: int

    def __str__(self) -> str:
        kind = {"scan": "", "localizer": " (localizer)", "other": " (no images)"}[self.kind]
        return (
            f"{self.modality} '{self.description or 'without a description'}', {_count(self.images, 'image')}{kind}, "
            f"UID ...{self.uid_end}"
        )


@dataclass(frozen=True)
class SourceSeries:
    """The headers of a series, for those who write something that derives from it.

    Attributes:
        header: of the first slice, without pixels. Holds the patient's identity.
        grid: where its voxels lie as `load_series` gives them.
        images: (SOP class UID, SOP instance UID, frame number from 1 or None) of every slice, in the grid's order.
    """

    header: Dataset
    grid: Grid
    images: tuple[tuple[str, str, int | None], ...]


def split_choice(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """`PATH#DIGITS` as (PATH, DIGITS), any other path as (path, "")."""
    path = Path(path)
    name, _, digits = path.name.rpartition("#")
    if not name or not re.fullmatch(r"[0-9.]+", digits) or path.exists():
        return path, ""
    return path.with_name(name), digits


def holds_dicom(path: str | os.PathLike[str]) -> bool:
    """True if a file is DICOM, or a folder (sub-folders included) or zip holds a DICOM file."""
    path, _ = split_choice(path)
    if not path.is_dir() and path.suffix.lower() != ".zip":
        return path.is_file() and _is_dicom(_Place(path))
    try:
        return any(_is_dicom(place) for place in _places(path))
    except InputError:
        return False


def dicom_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that a DICOM input consists of: every DICOM file of a folder in order of name, or the zip or file."""
    path, _ = split_choice(path)
    return [place.path for place in _places(path) if _is_dicom(place)] if path.is_dir() else [path]


def list_series(path: str | os.PathLike[str]) -> list[Series]:
    """Every series in a folder (sub-folders included), a zip or a file, in order of UID.

    Raises:
        InputError: there is no DICOM, or a file cannot be read.
    """
    path, _ = split_choice(path)
    with _quiet_headers():
        objects, _ = _objects(path)
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
    with _quiet_headers():
        name, slices, notes = _chosen(path)
        stack = _stacked(slices, name)
        array = _values(stack.slices, name)
    affine = stack.grid.affine
    if stack.shift is not None:
        fill = _AIR_HU if stack.slices[0].modality == "CT" else float(array.min())
        array = _unsheared(array, stack, fill)
    for note in (*notes, *stack.notes):
        warnings.warn(f"{name}: {note}", stacklevel=2)
    return array, affine, {"modality": stack.slices[0].modality}


def source_series(path: str | os.PathLike[str]) -> SourceSeries:
    """The headers of what `load_series` reads, checked in the same way; no pixel is read."""
    with _quiet_headers():
        name, slices, _ = _chosen(path)
        stack = _stacked(slices, name)
    images = tuple(
        (str(s.header.SOPClassUID), str(s.header.SOPInstanceUID), s.frame + 1 if s.enhanced else None)
        for s in stack.slices
    )
    return SourceSeries(stack.slices[0].header, stack.grid, images)


@dataclass(frozen=True)
class _Place:
    """A file on disk, or a member of a zip."""

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name or self.path.name

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        if not self.member:
            with self.path.open("rb") as stream:
                yield stream
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            yield stream


@dataclass(frozen=True)
class _Object:
    place: _Place
    header: Dataset  # everything before the pixels

    @property
    def frames(self) -> int:
        return int(self.header.get("NumberOfFrames") or 1)


@dataclass(frozen=True, eq=False)
class _Slice:
    """One image with what decides its place and its values; None where the header does not say."""

    place: _Place
    header: Dataset
    frame: int
    enhanced: bool
    modality: str
    position: npt.NDArray[np.float64] | None  # LPS mm, of the first pixel's center
    orientation: npt.NDArray[np.float64] | None  # direction of a row, then of a column
    spacing: npt.NDArray[np.float64] | None  # between rows, between columns, mm
    slope: float | None
    intercept: float | None
    unit: str  # RescaleType
    stack: str  # StackID
    repetition: dict[str, str]

    @property
    def label(self) -> str:
        return f"{self.place.name}, frame {self.frame + 1}" if self.enhanced else self.place.name


@dataclass(frozen=True, eq=False)
class _Stack:
    """Slices in order, the grid they make up, and what is to be done and said about it.

    `shift` is (slices, 2), where a tilted gantry has sheared the stack: how far each slice starts along the rows and
    columns of `grid`, in pixels.
    """

    slices: list[_Slice]
    grid: Grid
    shift: npt.NDArray[np.float64] | None
    notes: list[str]


@contextmanager
def _quiet_headers() -> Iterator[None]:
    """pydicom's remarks on headers quote values, which may be the patient's: they are not passed on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _places(path: Path) -> Iterator[_Place]:
    """Every file of a folder, a zip or the file itself, in order of name; hidden ones are left out."""
    if path.is_dir():
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (_Place(Path(folder) / name) for name in sorted(names) if not name.startswith("."))
    elif path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read: it is no whole zip file ({error}).", "Copy or export it again."
            ) from error
        if any(member.flag_bits & 1 for member in members):
            raise InputError(f"{path} is encrypted.", "Unpack it and give the folder.")
        names = sorted(member.filename for member in members if not member.is_dir())
        hidden = [any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts) for name in names]
        yield from (_Place(path, name) for name, skip in zip(names, hidden, strict=True) if not skip)
    else:
        yield _Place(path)


def _is_dicom(place: _Place) -> bool:
    """By the mark at byte 128, or, for old files that lack it, by the name."""
    if place.name.lower().endswith(DICOM_SUFFIXES):
        return True
    try:
        with place.open() as stream:
            return stream.read(132)[128:] == b"DICM"
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError):
        return False


def _objects(path: Path) -> tuple[list[_Object], list[str]]:
    """The headers of every DICOM file, and the names of the files that are not DICOM."""
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    objects, strangers, broken = [], [], []
    for place in _places(path):
        if place.name.upper() == "DICOMDIR":
            continue
        if not _is_dicom(place):
            strangers.append(place.name)
            continue
        try:
            with place.open() as stream:
                # Without force, files that lack the mark are refused; with it, anything is read somehow.
                header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
            if str(header.get("SOPClassUID", "")) == _DICOMDIR:
                continue
            if not header.get("SOPClassUID") or not header.get("SeriesInstanceUID"):
                raise EOFError
            objects.append(_Object(place, header))
        except _LIBRARY_ERRORS:
            broken.append(place.name)
    if broken:
        raise InputError(
            f"{path}: {_count(len(broken), 'file')} cannot be read as DICOM (cut short while copying or exporting?): "
            f"{_few(broken)}.",
            "Copy or export the series again.",
        )
    if not objects:
        raise InputError(f"{path} holds no DICOM image.", "Give a folder or zip that holds the files of one series.")
    return objects, strangers


def _grouped(objects: Sequence[_Object]) -> list[tuple[Series, list[_Object]]]:
    groups: dict[str, list[_Object]] = {}
    for item in objects:
        groups.setdefault(str(item.header.SeriesInstanceUID), []).append(item)
    digits = _UID_DIGITS
    while len({uid[-digits:] for uid in groups}) < len(groups):
        digits += 1
    found = []
    for uid in sorted(groups):
        header = groups[uid][0].header
        kinds = {_kind(item.header) for item in groups[uid]}
        series = Series(
            uid=uid,
            uid_end=uid[-digits:],
            kind="scan" if "scan" in kinds else "localizer" if "localizer" in kinds else "other",
            modality=str(header.get("Modality") or "?"),
            description=" ".join(str(header.get("SeriesDescription") or "").split()),
            images=sum(item.frames for item in groups[uid]) if kinds != {"other"} else 0,
        )
        found.append((series, groups[uid]))
    return found


def _kind(header: Dataset) -> str:
    standard_name = pydicom.uid.UID(header.SOPClassUID).name
    if "Image Storage" not in standard_name and (standard_name != header.SOPClassUID or "Rows" not in header):
        return "other"
    return "localizer" if "LOCALIZER" in _words(header, "ImageType") else "scan"


def _chosen(path: str | os.PathLike[str]) -> tuple[str, list[_Slice], list[str]]:
    """The name for messages, the slices of the one series that is meant, and what was left out."""
    folder, digits = split_choice(path)
    objects, strangers = _objects(folder)
    found = _grouped(objects)
    listed = "; ".join(str(series) for series, _ in found)
    scans = [(series, items) for series, items in found if series.kind == "scan"]
    notes = []
    if digits:
        meant = [(series, items) for series, items in found if series.uid.endswith(digits)]
        if len(meant) != 1:
            raise InputError(
                f"{folder} holds {len(meant) or 'no'} series whose UID ends in {digits}. It holds: {listed}.",
                "Give digits that end the UID of one of them.",
            )
    elif len(scans) > 1:
        raise InputError(
            f"{folder} holds {len(scans)} series, and one is needed: {listed}.",
            f"Give the sub-folder of one series, or name it by the end of its UID: '{folder}#{scans[0][0].uid_end}'.",
        )
    else:
        meant = scans or found[:1]
        others = [series for series, _ in found if series is not meant[0][0]]
        if not scans and others:
            raise InputError(f"{folder} holds no scan: {listed}.", "Give the folder of an image series.")
        if others:
            notes.append(f"left out what is no scan: {'; '.join(map(str, others))}.")
    if strangers:
        notes.append(f"left out {_count(len(strangers), 'file')} that {_be(strangers)} not DICOM: {_few(strangers)}.")
    ((series, items),) = meant
    name = str(path)
    if series.kind == "other":
        raise InputError(
            f"{name} holds no images: {series}, {pydicom.uid.UID(items[0].header.SOPClassUID).name}; "
            "it has no pixel data of a scan.",
            "Give the folder of an image series.",
        )
    if localizers := [item.place.name for item in items if _kind(item.header) == "localizer"]:
        every = len(localizers) == len(items)
        raise InputError(
            f"{name}: {'the series is a localizer' if every else f'{len(localizers)} of the images are localizers'} "
            f"(a scout view for planning the scan): {series if every else _few(localizers)}.",
            "Give the folder of the scan itself." if every else "Take these files out of the series.",
        )
    return name, [image for item in items for image in _slices(item, name)], notes


def _slices(item: _Object, name: str) -> Iterator[_Slice]:
    header = item.header
    enhanced = "PerFrameFunctionalGroupsSequence" in header
    if not enhanced and item.frames > 1:
        raise InputError(
            f"{name}: {item.place.name} has {item.frames} frames and does not say where each of them lies.",
            "Export the series as single images or as enhanced multi-frame DICOM.",
        )
    if enhanced and len(header.PerFrameFunctionalGroupsSequence) != item.frames:
        raise InputError(
            f"{name}: {item.place.name} has {item.frames} frames and describes "
            f"{len(header.PerFrameFunctionalGroupsSequence)}.",
            "Export it again.",
        )
    for frame in range(item.frames):

        def part(sequence: str, frame: int = frame) -> Dataset:
            return _functional_group(header, frame, sequence) if enhanced else header

        rescale, content = part("PixelValueTransformationSequence"), part("FrameContentSequence")
        if "ModalityLUTSequence" in rescale:
            raise InputError(
                f"{name}: {item.place.name} maps its values through a table (Modality LUT), which is not read.",
                "Export it with RescaleSlope and RescaleIntercept.",
            )
        parts = [part("MREchoSequence"), content, part("MRDiffusionSequence"), part("MRImageFrameTypeSequence"), header]
        repetition = {
            keyword: value for keyword in _REPETITIONS for p in parts[::-1] if (value := str(p.get(keyword, "")))
        }
        if enhanced:
            repetition |= {"frame index": str(content.get("DimensionIndexValues", ""))}
        slope, intercept = _numbers(rescale, "RescaleSlope", 1), _numbers(rescale, "RescaleIntercept", 1)
        yield _Slice(
            place=item.place,
            header=header,
            frame=frame,
            enhanced=enhanced,
            modality=str(header.get("Modality") or ""),
            position=_numbers(part("PlanePositionSequence"), "ImagePositionPatient", 3),
            orientation=_numbers(part("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
            spacing=_numbers(part("PixelMeasuresSequence"), "PixelSpacing", 2),
            slope=None if slope is None else float(slope[0]),
            intercept=None if intercept is None else float(intercept[0]),
            unit=str(rescale.get("RescaleType") or ""),
            stack=str(content.get("StackID", "")),
            repetition=repetition,
        )


def _functional_group(header: Dataset, frame: int, sequence: str) -> Dataset:
    """The one item of a functional group of a frame, or of all frames (PS3.3 C.7.6.16); empty where there is none."""
    for groups in (
        header.PerFrameFunctionalGroupsSequence[frame : frame + 1],
        header.get("SharedFunctionalGroupsSequence"),
    ):
        if groups and groups[0].get(sequence):
            item = groups[0][sequence].value[0]
            return item if isinstance(item, Dataset) else Dataset()
    return Dataset()


def _stacked(slices: list[_Slice], name: str) -> _Stack:
    """Sort the slices of one series and find their grid, or refuse them with every reason."""
    problems = [*_unplaced(slices), *_unlike(slices)]
    if problems:
        raise InputError(
            f"{name}: the images do not make up one volume: {'; '.join(problems)}.",
            "Export each scan, orientation and stack as a series of its own.",
        )
    if len(slices) < 2:
        raise InputError(f"{name} holds a single slice.", "Give the folder that holds the whole series.")
    first = slices[0]
    assert first.orientation is not None and first.spacing is not None
    row, column = first.orientation[:3], first.orientation[3:]
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column), 1 + abs(row @ column)])
    if np.abs(lengths - 1).max() > 1e-3 or first.spacing.min() <= 0:
        raise InputError(
            f"{name}: rows and columns have directions or distances that cannot be (ImageOrientationPatient, "
            "PixelSpacing).",
            "Export the series again.",
        )
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    column /= np.linalg.norm(column)
    normal = np.cross(row, column)
    unsorted = np.array([s.position for s in slices], dtype=np.float64)
    order = np.argsort(unsorted @ normal, kind="stable")
    slices, places = [slices[int(k)] for k in order], unsorted[order]
    across = (places - places[0]) @ normal
    _refuse_repeated(slices, np.diff(across), name)
    notes = _missing_numbers(slices)
    span = np.arange(len(slices)) / (len(slices) - 1)
    step = float(across[-1] / (len(slices) - 1))
    sideways = (places - places[0]) @ np.stack([row, column], axis=1)
    angle = float(np.degrees(np.arctan2(np.linalg.norm(sideways[-1]), across[-1])))
    sheared = np.sin(np.radians(angle)) > _SHEAR_COSINE
    tilt = f"the gantry was tilted by {angle:.1f} degrees" if sheared else ""
    _refuse_uneven(slices, across, name, tilt)
    if (off := float(np.linalg.norm(sideways - span[:, None] * sideways[-1], axis=1).max())) > _OFF_MM:
        raise InputError(
            f"{name}: the slices are shifted sideways against each other, by up to {off:.2f} mm.",
            "Export the series again with its slices in line.",
        )
    said = _numbers(first.header, "GantryDetectorTilt", 1)
    if first.modality == "CT" and said is not None and abs(abs(float(said[0])) - angle) > 1 and abs(said[0]) > 0.5:
        notes.append(
            f"the header gives a gantry tilt of {abs(float(said[0])):.1f} degrees and the positions one of "
            f"{angle:.1f}; the positions are used."
        )
    columns, rows = int(first.header.Columns), int(first.header.Rows)
    origin, shift, axis = places[0], None, (places[-1] - places[0]) / (len(slices) - 1)
    if sheared:
        pixels = sideways / first.spacing[::-1]
        start = np.floor(pixels.min(axis=0) + 1e-6)
        columns, rows = (np.array([columns, rows]) + np.ceil(np.ptp(pixels, axis=0) - 1e-6)).astype(int).tolist()
        origin = origin + start[0] * first.spacing[1] * row + start[1] * first.spacing[0] * column
        shift, axis = pixels - start, step * normal
        notes.append(
            f"{tilt}; every slice was shifted within its own plane by linear interpolation until the axes were "
            "orthogonal."
        )
    lps = np.eye(4)
    lps[:3, :3] = np.stack([row * first.spacing[1], column * first.spacing[0], axis], axis=1)
    lps[:3, 3] = origin
    return _Stack(slices, Grid((columns, rows, len(slices)), _LPS_TO_RAS @ lps), shift, notes)


def _unplaced(slices: Sequence[_Slice]) -> Iterator[str]:
    """Headers without what a place in space needs."""
    for attribute, tag in (
        ("position", "ImagePositionPatient"),
        ("orientation", "ImageOrientationPatient"),
        ("spacing", "PixelSpacing"),
    ):
        without = [s.label for s in slices if getattr(s, attribute) is None]
        if without:
            yield f"{_count(len(without), 'image')} without a usable {tag} ({_few(without)}; cut short?)"
    without = [s.label for s in slices if not s.header.get("Rows") or not s.header.get("Columns")]
    if without:
        yield f"{_count(len(without), 'image')} without Rows and Columns ({_few(without)}; cut short?)"


def _unlike(slices: Sequence[_Slice]) -> Iterator[str]:
    """What must be the same in every slice of a stack and is not."""
    turns: list[npt.NDArray[np.float64]] = []
    planes: list[str] = []
    for s in slices:
        if s.orientation is None:
            continue
        alike = [i for i, known in enumerate(turns) if np.abs(known - s.orientation).max() <= _SAME_DIRECTION]
        if not alike:
            turns.append(s.orientation)
            alike = [len(turns) - 1]
        normal = np.cross(s.orientation[:3], s.orientation[3:])
        planes.append(f"{('sagittal', 'coronal', 'axial')[int(np.abs(normal).argmax())]} (direction {alike[0] + 1})")
    if len(turns) > 1:
        yield f"mixed orientations ({_tally(planes)})"
    for words, values in (
        ("stacks", [s.stack for s in slices]),
        ("image sizes", [f"{s.header.get('Columns')} x {s.header.get('Rows')}" for s in slices]),
        (
            "pixel spacings",
            ["unknown" if s.spacing is None else " x ".join(f"{v:.4g}" for v in s.spacing) + " mm" for s in slices],
        ),
        ("modalities", [s.modality for s in slices]),
    ):
        if len(set(values)) > 1:
            yield f"several {words} ({_tally(values)})"
    frames = {str(s.header.get("FrameOfReferenceUID", "")) for s in slices}
    if len(frames) > 1:
        yield f"{len(frames)} frames of reference (the patient may have moved between them)"


def _refuse_repeated(slices: Sequence[_Slice], steps: npt.NDArray[np.float64], name: str) -> None:
    repeated = np.flatnonzero(steps < _SAME_PLACE_MM)
    if not len(repeated):
        return
    here, there = slices[repeated[0]], slices[repeated[0] + 1]
    if not here.enhanced and here.header.get("SOPInstanceUID") == there.header.get("SOPInstanceUID"):
        more = f", and {len(repeated) - 1} more" if len(repeated) > 1 else ""
        raise InputError(
            f"{name}: the same image is there twice: {here.label} and {there.label}{more}.",
            "Keep one copy of each.",
        )
    keywords = {*here.repetition, *there.repetition}
    differing = sorted(k for k in keywords if here.repetition.get(k) != there.repetition.get(k))
    because = f" (they differ in {', '.join(differing)})" if differing else ""
    raise InputError(
        f"{name}: several images lie in the same place, for example {here.label} and {there.label}{because}: the "
        "series holds more than one volume (echoes, time points or other repetitions).",
        "Export one volume per series.",
    )


def _refuse_uneven(slices: Sequence[_Slice], across: npt.NDArray[np.float64], name: str, tilt: str) -> None:
    steps = np.diff(across)
    even = np.linspace(0, across[-1], len(slices))
    off = float(np.abs(across - even).max())
    usual = float(np.median(steps))
    if off <= min(_OFF_MM, _OFF_STEPS * usual):
        return
    tilted = f"; besides, {tilt}" if tilt else ""
    ratios = steps / usual
    whole = np.rint(ratios)
    if np.abs(ratios - whole).max() < 0.1 and whole.min() == 1:
        gaps = np.flatnonzero(whole > 1)
        after = _few([f"{slices[int(k)].label} ({_count(int(whole[k]) - 1, 'slice')})" for k in gaps])
        raise InputError(
            f"{name}: {_count(int((whole - 1).sum()), 'slice')} missing: the step is {usual:.2f} mm, but larger after "
            f"{after}{tilted}.",
            "Copy or export the whole series again.",
        )
    raise InputError(
        f"{name}: uneven slice steps ({_tally([f'{step:.2f} mm' for step in steps])}){tilted}. Slices are missing or "
        "the step was changed during the scan.",
        "Export or reconstruct the series with even steps, or split it into parts of one step each.",
    )


def _missing_numbers(slices: Sequence[_Slice]) -> list[str]:
    """A gap in the numbering tells of missing slices that the positions do not show, such as every second one."""
    if slices[0].enhanced:
        return []
    numbers = [_numbers(s.header, "InstanceNumber", 1) for s in slices]
    known = sorted({int(n[0]) for n in numbers if n is not None})
    missing = known[-1] - known[0] + 1 - len(known) if known else 0
    if len(known) != len(slices) or not missing:
        return []
    return [
        f"the images are numbered {known[0]} to {known[-1]} with {_count(missing, 'number')} left out, though the "
        "steps are even; look whether the series is complete."
    ]


def _values(slices: Sequence[_Slice], name: str) -> npt.NDArray[np.float32]:
    """(columns, rows, slices) float32: HU for CT; else by slope and intercept where the header has them."""
    _refuse_unknown_unit(slices, name)
    first = slices[0].header
    result = np.empty((len(slices), int(first.Rows), int(first.Columns)), dtype=np.float32)
    by_file: dict[_Place, list[int]] = {}
    for index, image in enumerate(slices):
        by_file.setdefault(image.place, []).append(index)
    for place, indices in by_file.items():
        stored = _stored(place, name)
        for index in indices:
            image = slices[index]
            if stored.shape[1:] != result.shape[1:] or image.frame >= len(stored):
                raise InputError(f"{name}: {place.name} has not the pixels that its header says.", "Export it again.")
            slope = 1.0 if image.slope is None else image.slope
            result[index] = stored[image.frame] * slope + (image.intercept or 0.0)
    return result.T


def _refuse_unknown_unit(slices: Sequence[_Slice], name: str) -> None:
    if slices[0].modality != "CT":
        return
    without = [s.label for s in slices if s.slope is None or s.intercept is None]
    if without:
        raise InputError(
            f"{name}: {_count(len(without), 'CT image')} without RescaleSlope or RescaleIntercept ({_few(without)}), "
            "so that the Hounsfield units are not known.",
            "Export the series again.",
        )
    other = {s.unit for s in slices} - {"", "HU", "HU_MOD", "US"}
    if other:
        raise InputError(
            f"{name}: the values are not Hounsfield units but {', '.join(sorted(other))} (RescaleType).",
            "Give a CT reconstruction in Hounsfield units.",
        )


def _stored(place: _Place, name: str) -> npt.NDArray[Any]:
    """The stored values of a file, (frames, rows, columns)."""
    remedy = "Copy or export the series again."
    try:
        with place.open() as stream:
            content = pydicom.dcmread(stream, force=True)
        if not any(keyword in content for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise InputError(f"{name}: {place.name} has no pixel data (cut short?).", remedy)
        if int(content.get("SamplesPerPixel", 1)) != 1:
            raise InputError(f"{name}: {place.name} has color pixels.", "Give images with one value per pixel.")
        syntax = _syntax(content)
        if "PixelData" in content:
            _refuse_cut(content, syntax, place, name)
        native = not syntax.is_encapsulated or syntax == RLELossless
        array = content.pixel_array if native else _decompressed(content)
    except InputError:
        raise
    except MemoryError as error:
        raise MemoryError(f"{name} does not fit into memory") from error
    except _LIBRARY_ERRORS as error:
        raise InputError(f"{name}: the pixels of {place.name} cannot be decoded.", remedy) from error
    return np.asarray(array).reshape(-1, *array.shape[-2:])


def _syntax(content: Dataset) -> pydicom.uid.UID:
    meta = getattr(content, "file_meta", FileMetaDataset())
    if "TransferSyntaxUID" not in meta:
        # Old files without a header of their own: pydicom guessed the encoding while reading.
        meta.TransferSyntaxUID = (
            ExplicitVRLittleEndian if content.original_encoding[0] is False else "1.2.840.10008.1.2"
        )
        content.file_meta = meta
    return pydicom.uid.UID(meta.TransferSyntaxUID)


def _refuse_cut(content: Dataset, syntax: pydicom.uid.UID, place: _Place, name: str) -> None:
    bits, stored, high = (int(content[k].value) for k in ("BitsAllocated", "BitsStored", "HighBit"))
    if high != stored - 1:
        raise InputError(
            f"{name}: {place.name} stores its values in bits {high - stored + 1} to {high}, which is not read.",
            "Export it again as plain 16-bit DICOM.",
        )
    if syntax.is_encapsulated:
        # A compressed image ends with a mark of its own; without it the file was cut.
        if not content["PixelData"].value:
            raise InputError(f"{name}: {place.name} is cut short.", "Copy or export the series again.")
        return
    frames = int(content.get("NumberOfFrames") or 1)
    needed = (int(content.Rows) * int(content.Columns) * frames * bits + 7) // 8
    if len(content.PixelData) < needed:
        raise InputError(
            f"{name}: {place.name} is cut short ({len(content.PixelData)} of {needed} bytes of pixels).",
            "Copy or export the series again.",
        )


def _decompressed(content: Dataset) -> npt.NDArray[Any]:
    """Stored values of a compressed image, by SimpleITK.

    Only the pixels and their description are handed on, in an object of a class that has no slope, no intercept and no
    geometry: what SimpleITK gives then are the stored values, frame by frame.
    """
    frames = int(content.get("NumberOfFrames") or 1)
    bare = Dataset()
    bare.SOPClassUID = _SECONDARY_CAPTURE[frames > 1]
    bare.SOPInstanceUID = "2.25.1"
    for keyword in _PIXEL_DESCRIPTION:
        if keyword in content:
            setattr(bare, keyword, content[keyword].value)
    bare["PixelData"] = content["PixelData"]
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = content.file_meta.TransferSyntaxUID
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pixels.dcm"
        bare.save_as(file, enforce_file_format=True)
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(file))))


def _unsheared(array: npt.NDArray[np.float32], stack: _Stack, fill: float) -> npt.NDArray[np.float32]:
    """(columns, rows, slices) of `stack.grid`: each slice moved by its shift; `fill` where no slice reaches."""
    assert stack.shift is not None
    result = np.empty(stack.grid.shape[::-1], dtype=np.float32)
    for k, shift in enumerate(stack.shift):
        ndimage.affine_transform(
            array[:, :, k].T,
            np.ones(2),
            offset=-shift[::-1],
            output_shape=result.shape[1:],
            output=result[k],
            order=1,
            mode="constant",
            cval=fill,
        )
    return result.T


def _numbers(header: Dataset, keyword: str, count: int) -> npt.NDArray[np.float64] | None:
    """`count` finite numbers, or None where the header has not got them."""
    try:
        values = np.atleast_1d(np.asarray(header.get(keyword), dtype=np.float64))
    except (ValueError, TypeError, OverflowError):
        return None
    return values if values.shape == (count,) and np.isfinite(values).all() else None


def _words(header: Dataset, keyword: str) -> list[str]:
    value = header.get(keyword) or []
    return [value.upper()] if isinstance(value, str) else [str(word).upper() for word in value]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _be(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _tally(values: Sequence[str]) -> str:
    return ", ".join(f"{count} of {value or 'none'}" for value, count in Counter(values).most_common(4))
