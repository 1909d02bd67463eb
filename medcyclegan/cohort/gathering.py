"""Which files are volumes, told without refusing the rest: what cannot be used is listed with its reason.

`io.reader.list_volumes` is for work and stops at the first thing that it cannot use; this is for looking.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medcyclegan.errors import InputError
from medcyclegan.io.dicom.files import DICOM_SUFFIXES, holds_dicom
from medcyclegan.io.reader import VOLUME_SUFFIXES, case_id


@dataclass
class Gathered:
    """What was found.

    Attributes:
        volumes: in order of path; a DICOM series is its folder.
        unusable: path -> why it cannot even be looked at.
        left_out: files that are no volumes, and folders that were not searched.
    """

    volumes: list[Path] = field(default_factory=list)
    unusable: dict[Path, str] = field(default_factory=dict)
    left_out: list[Path] = field(default_factory=list)


def gather_folder(folder: Path) -> Gathered:
    """The volumes directly in a folder, as `prepare` takes them: files, and sub-folders and zips that hold DICOM.

    Raises:
        InputError: the folder is missing or holds no volume at all.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}.", "Give a folder that holds volumes.")
    found = Gathered()
    if _own_slices(folder):
        found.volumes.append(folder)
    for path in _listed(folder, found):
        _sort_in(path, found, inside_series=found.volumes[:1] == [folder])
    if folder in found.volumes and len(found.volumes) > 1:
        found.volumes.remove(folder)
        found.unusable[folder] = (
            "its DICOM files lie beside other volumes, and each series needs a sub-folder of its own"
        )
    return _checked(found, folder)


def gather_paths(paths: Sequence[Path]) -> Gathered:
    """Every volume under the given files and folders, sub-folders included; links are followed, circles are not.

    Raises:
        InputError: a path is missing, or there is no volume at all.
    """
    found = Gathered()
    seen: set[Path] = set()
    for path in paths:
        if not os.path.lexists(path):
            raise InputError(f"{path} does not exist.", "Give volumes, or folders that hold volumes.")
        _search(path, found, seen)
    found.volumes = sorted(dict.fromkeys(found.volumes))
    return _checked(found, ", ".join(map(str, paths[:3])))


def _search(path: Path, found: Gathered, seen: set[Path]) -> None:
    if not path.is_dir():
        _sort_in(path, found, inside_series=False)
        return
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        real = folder.resolve()
        if real in seen:
            continue
        seen.add(real)
        series = _own_slices(folder)
        if series:
            found.volumes.append(folder)
        for entry in _listed(folder, found):
            if entry.is_dir():
                waiting.append(entry)
            else:
                _sort_in(entry, found, inside_series=series)


def _sort_in(path: Path, found: Gathered, *, inside_series: bool) -> None:
    try:
        path.stat()
        if path.is_dir() or path.suffix.lower() == ".zip":
            (found.volumes if holds_dicom(path) else found.left_out).append(path)
        elif path.name.lower().endswith(VOLUME_SUFFIXES) and case_id(path) != path.name:
            found.volumes.append(path)
        elif not inside_series or not holds_dicom(path):
            found.left_out.append(path)
    except RuntimeError as error:  # pathlib's word for links that run in a circle, before Python 3.13
        found.unusable[path] = f"{error}".splitlines()[0]
    except OSError as error:
        found.unusable[path] = (
            "it is a link that leads nowhere or in a circle" if _broken(path) else str(error.strerror or error)
        )


def _broken(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _listed(folder: Path, found: Gathered) -> Iterator[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        found.unusable[folder] = str(error.strerror or error)
        return
    yield from files


def _own_slices(folder: Path) -> bool:
    """Whether DICOM files lie directly in a folder; volumes of other formats beside them do not hide them."""
    try:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith(".") or not entry.is_file():
                continue
            name = entry.name.lower()
            if name.endswith(DICOM_SUFFIXES):
                return True
            if not name.endswith((*VOLUME_SUFFIXES, ".zip")) and holds_dicom(entry.path):
                return True
    except OSError:
        pass  # what cannot be read is reported where the folder is listed
    return False


def _checked(found: Gathered, where: Path | str) -> Gathered:
    if not found.volumes and not found.unusable:
        names = ", ".join(path.name for path in found.left_out[:3])
        holds = f"it holds {names}{' and more' if len(found.left_out) > 3 else ''}" if names else "it is empty"
        raise InputError(
            f"{where} holds no volume ({', '.join(VOLUME_SUFFIXES)}, DICOM); {holds}.",
            "Give the folder that holds the volumes themselves.",
        )
    return found
