"""DICOM files, wherever they lie: in a folder and its sub-folders, in a zip, or alone.

Words used here. *Object*: one DICOM file. *Choice*: `PATH#DIGITS` means the series in PATH whose UID ends in DIGITS.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import IO

import pydicom
from pydicom.config import IGNORE, settings
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.valuerep import VR

from medcyclegan.errors import InputError, few

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")

# What pydicom and zipfile raise for files that they cannot make sense of.
LIBRARY_ERRORS = (
    *(InvalidDicomError, BytesLengthException, zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError),
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError),
)

_lock = threading.Lock()
_readers = 0
_mode_before = settings.reading_validation_mode
_DICOMDIR = "1.2.840.10008.1.3.10"
_VALUE_KINDS = {kind.value.encode() for kind in VR if len(kind.value) == 2}
_LONGEST = 64  # characters of a description (VR LO)
_SERIES_UID = 0x0020000E
# What tells series and images apart: a file in which one of them cannot be read is refused.
_READ_FIRST = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"),
    *("IssuerOfPatientID", "Modality", "ImageType", "PhotometricInterpretation", "Rows", "Columns"),
)


@dataclass(frozen=True)
class Place:
    """A file on disk, or a member of a zip."""

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name or self.path.name

    @property
    def folder(self) -> PurePath:
        return PurePosixPath(self.member).parent if self.member else self.path.parent

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The content, for reading."""
        if not self.member:
            with self.path.open("rb") as stream:
                yield stream
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            yield stream


@dataclass(frozen=True)
class Object:
    """One DICOM file: its header is everything before the pixels, its frames are counted from 1."""

    place: Place
    header: Dataset
    frames: int


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
        return path.is_file() and _is_dicom(Place(path))
    try:
        return any(_is_dicom(place) for place in _places(path))
    except InputError:
        return False


def dicom_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that a DICOM input consists of: every DICOM file of a folder in order of name, or the zip or file."""
    path, _ = split_choice(path)
    return [place.path for place in _places(path) if _is_dicom(place)] if path.is_dir() else [path]


def read_objects(path: Path) -> tuple[list[Object], list[str]]:
    """The headers of every DICOM file, and the names of the files that are not DICOM."""
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    objects, not_dicom, broken = [], [], []
    for place in _places(path):
        if place.name.upper() == "DICOMDIR":
            continue
        if not _is_dicom(place):
            not_dicom.append(place.name)
            continue
        try:
            with place.open() as stream:
                # Without force, files without the DICM mark are refused; with it, anything is read somehow.
                header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        except MemoryError:  # room is made for an element as long as it says it is
            broken.append(f"{place.name} (an element is longer than memory)")
            continue
        except LIBRARY_ERRORS as error:
            broken.append(f"{place.name} ({_words(error)})")
            continue
        if problem := _unusable(header):
            broken.append(f"{place.name} ({problem})")
        elif str(header.get("SOPClassUID", "")) != _DICOMDIR:
            objects.append(Object(place, header, _frames(header) or 1))
    if broken:
        raise InputError(
            f"{path}: {count(len(broken), 'file')} cannot be read as DICOM: {few(broken)}.",
            "Take what is no image out of the folder; copy or export again what is damaged.",
        )
    if not objects:
        raise InputError(f"{path} holds no DICOM image.", "Give a folder or zip that holds the files of one series.")
    return objects, not_dicom


def without_copies(objects: Sequence[Object]) -> tuple[list[Object], list[str]]:
    """The objects without those whose file is another one's byte for byte, and the names of these."""
    uids = [str(item.header.get("SOPInstanceUID") or "") for item in objects]
    times = Counter(uids)
    kept, copies, seen = [], [], set()
    for item, uid in zip(objects, uids, strict=True):
        if times[uid] > 1:
            with item.place.open() as stream:
                digest = hashlib.sha256(stream.read()).digest()
            if digest in seen:
                copies.append(item.place.name)
                continue
            seen.add(digest)
        kept.append(item)
    return kept, copies


def _unusable(header: Dataset) -> str:
    """Why a header cannot be used, or an empty string."""
    if not header:
        return "empty, or cut short before its first element"
    for keyword in _READ_FIRST:
        try:
            header.get(keyword)
        except LIBRARY_ERRORS:
            return f"its {keyword} cannot be read: damaged"
    # Elements stand in order of their tags: where nothing follows the place of the series' UID, the file ends there.
    if not header.get("SeriesInstanceUID") and max(header.keys()) <= _SERIES_UID:
        return "its header ends before the SeriesInstanceUID: cut short, or no DICOM"
    if not any(header.get(keyword) for keyword in ("SOPClassUID", "SeriesInstanceUID", "Rows")):
        return "it has neither UIDs nor an image: no DICOM, or damaged"
    frames = _frames(header)
    if frames is None or frames < 0:
        return f"its NumberOfFrames is {'no number' if frames is None else frames}"
    return ""


def _frames(header: Dataset) -> int | None:
    """NumberOfFrames; 1 where it is absent, empty or 0, which old writers put for a single image; None: no number."""
    try:
        return int(header.get("NumberOfFrames") or 1)
    except LIBRARY_ERRORS:
        return None


def _words(error: BaseException) -> str:
    """A library's error in our words; its own may quote the file, and so the patient."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, EOFError | zipfile.BadZipFile | zlib.error):
        return "cut short or damaged"
    return "its header is damaged, or it is no DICOM"


@contextmanager
def quiet_headers() -> Iterator[None]:
    """Silence pydicom's warnings on wrong values: they quote values, which may be the patient's.

    Several threads may read at the same time; the last one out restores what was set. (Python's own filter of warnings
    is shared by threads and not restored reliably.)
    """
    global _readers, _mode_before
    with _lock:
        if _readers == 0:
            _mode_before = settings.reading_validation_mode
            settings.reading_validation_mode = IGNORE
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                settings.reading_validation_mode = _mode_before


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shown(value: object) -> str:
    """A value of a header for a message. A damaged length swallows what follows, which may be the patient's name."""
    text = re.sub(r"[ \t\r\n]+", " ", str(value)).strip(" \0")
    return text if text.isprintable() and len(text) <= _LONGEST else "unreadable"


def _places(path: Path) -> Iterator[Place]:
    """Every file of a folder, a zip or the file itself, in order of name; hidden ones are left out."""
    if path.is_dir():
        seen = {path.resolve()}
        for folder, folders, names in os.walk(path, onerror=_raise, followlinks=True):
            inside = {name: (Path(folder) / name).resolve() for name in folders if not name.startswith(".")}
            folders[:] = sorted(name for name, real in inside.items() if real not in seen)  # links may run in circles
            seen |= set(inside.values())
            yield from (Place(Path(folder) / name) for name in sorted(names) if not name.startswith("."))
    elif path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                names = sorted(member.filename for member in members if not member.is_dir())
        except LIBRARY_ERRORS as error:  # zipfile lets an IndexError of a damaged directory through, too
            raise InputError(
                f"{path} cannot be read: it is no whole zip file ({error}).", "Copy or export it again."
            ) from error
        if any(member.flag_bits & 1 for member in members):
            raise InputError(f"{path} is encrypted.", "Unpack it and give the folder.")
        hidden = [any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts) for name in names]
        yield from (Place(path, name) for name, skip in zip(names, hidden, strict=True) if not skip)
    else:
        yield Place(path)


def _raise(error: OSError) -> None:
    """Raise for a folder that cannot be read: it could hold slices."""
    raise error


def _is_dicom(place: Place) -> bool:
    """By the mark at byte 128, or, for files that lack it, by the name or by how a data set starts."""
    if place.name.lower().endswith(DICOM_SUFFIXES):
        return True
    try:
        with place.open() as stream:
            start = stream.read(132)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError):
        return bool(place.member)  # a damaged member is named when its header is read
    return start[128:] == b"DICM" or _starts_as_data_set(start)


def _starts_as_data_set(start: bytes) -> bool:
    """True if the first element is one with which DICOM without its mark begins (PS3.5 7.1): of group 2 or 8."""
    if len(start) < 132:
        return False
    for order in ("<", ">"):
        group, element, kind, short, long = struct.unpack(f"{order}HH2sH4x", start[:12]) + struct.unpack(
            f"{order}I", start[4:8]
        )
        if group not in (2, 8) or element > 0x1200:
            continue
        if kind in _VALUE_KINDS:
            return bool(short % 2 == 0)
        if group == 8 and order == "<" and long % 2 == 0 and long <= 1024:
            return True
    return False
