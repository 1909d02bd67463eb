"""DICOM files, wherever they lie: in a folder and its sub-folders, in a zip, or alone.

Words used here. *Object*: one DICOM file. *Choice*: `PATH#DIGITS` means the series in PATH whose UID ends in DIGITS.
"""

from __future__ import annotations

import os
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import pydicom
from pydicom.config import IGNORE, settings
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from medcyclegan.errors import InputError

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")

# What pydicom and zipfile raise for files that they cannot make sense of.
LIBRARY_ERRORS = (
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

_lock = threading.Lock()
_readers = 0
_mode_before = settings.reading_validation_mode
_DICOMDIR = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class Place:
    """A file on disk, or a member of a zip."""

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name or self.path.name

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
            objects.append(Object(place, header, int(header.get("NumberOfFrames") or 1)))
        except LIBRARY_ERRORS:
            broken.append(place.name)
    if broken:
        raise InputError(
            f"{path}: {count(len(broken), 'file')} cannot be read as DICOM (cut short while copying or exporting?): "
            f"{few(broken)}.",
            "Copy or export the series again.",
        )
    if not objects:
        raise InputError(f"{path} holds no DICOM image.", "Give a folder or zip that holds the files of one series.")
    return objects, strangers


@contextmanager
def quiet_headers() -> Iterator[None]:
    """pydicom's remarks on wrong values quote them, and they may be the patient's: they are not made.

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


def few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read: it is no whole zip file ({error}).", "Copy or export it again."
            ) from error
        if any(member.flag_bits & 1 for member in members):
            raise InputError(f"{path} is encrypted.", "Unpack it and give the folder.")
        names = sorted(member.filename for member in members if not member.is_dir())
        hidden = [any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts) for name in names]
        yield from (Place(path, name) for name, skip in zip(names, hidden, strict=True) if not skip)
    else:
        yield Place(path)


def _raise(error: OSError) -> None:
    """A folder that may not be read could hold slices: it is not passed over."""
    raise error


def _is_dicom(place: Place) -> bool:
    """By the mark at byte 128, or, for old files that lack it, by the name."""
    if place.name.lower().endswith(DICOM_SUFFIXES):
        return True
    try:
        with place.open() as stream:
            return stream.read(132)[128:] == b"DICM"
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError):
        return bool(place.member)  # a damaged member is named when its header is read
