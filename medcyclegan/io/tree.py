"""The files under a folder by name and kind; each folder is listed once and sorted, the same on every machine.

Words used here. *Case id*: the name of a file without the suffix of its format, or of a DICOM folder. *Place*: a folder
below the root of a tree, relative to it and with `/` between the parts; "" is the root itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medcyclegan.errors import InputError
from medcyclegan.io.dicom.files import DICOM_SUFFIXES, holds_dicom, split_choice
from medcyclegan.io.formats import READERS, suffix_of
from medcyclegan.io.pictures import PICTURE_SUFFIXES

VOLUME_SUFFIXES = tuple(READERS)
LOST = "it is a link that leads nowhere or in a circle"
_MOST = 2_000_000  # files; links that lead to each other multiply what they show
_SHOWN = 8

# Names of volumes, and of archives that may hold some, that no reader here takes.
_FOREIGN = re.compile(
    r"\.(nii|mha|mhd|nrrd|dcm)\..+|\.(mgh|mgz|nhdr|hdr|img|nia|mnc2?|minc|gipl|mif|mih|par|rec|head|brik|vtk|vti|isq|aim"
    r"|lsm|ndpi|czi|npy|npz|mat|h5|hdf5|tar|tgz|7z|rar)(\.(gz|bz2|xz|zst|lz4|zip))?",
    re.IGNORECASE,
)


def case_id(path: str | os.PathLike[str]) -> str:
    """The file name without the suffix of its format, in any letter case; other names are returned as they are.

    DICOM: `study.zip`, `study.dcm` and the choice `study#123` of a series are all the case `study`.
    """
    name = split_choice(path)[0].name
    for suffix in (suffix_of(name), ".zip", *DICOM_SUFFIXES, *PICTURE_SUFFIXES):
        if suffix and name.lower().endswith(suffix.lower()) and len(name) > len(suffix):
            return name[: len(name) - len(suffix)]
    return name


def is_volume(name: str) -> bool:
    """True for the name of a volume in one file."""
    return name.lower().endswith(VOLUME_SUFFIXES) and not name.startswith(".")


def is_picture(name: str) -> bool:
    """True for the name of a 2D image."""
    return name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith(".")


def join(*parts: str) -> str:
    """One place from its parts; empty ones are left out."""
    return "/".join(part for part in parts if part)


@dataclass
class Contents:
    """What lies directly in a folder, each list in order of name; hidden files (leading dot) are left out.

    Attributes:
        volumes: files in a format of volumes; links to nothing of such a name are among them.
        series: folders that hold DICOM, there or below.
        archives: zips that hold DICOM.
        slices: DICOM files.
        pictures: 2D images.
        foreign: volume or archive that cannot be read -> its format.
        others: what is none of these.
        lost: links that lead nowhere or in a circle.
    """

    volumes: list[Path] = field(default_factory=list)
    series: list[Path] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)
    slices: list[Path] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    foreign: dict[Path, str] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)
    lost: list[Path] = field(default_factory=list)

    def usable(self) -> list[Path]:
        """The volumes that can be looked at, in order of name; a DICOM file is part of one."""
        return sorted({*self.volumes, *self.series, *self.archives} - {*self.lost})

    def left_out(self) -> list[Path]:
        return sorted([*self.pictures, *self.foreign, *self.others])


class Tree:
    """The names of the files and folders below `root`, sorted; hidden ones (leading dot) are left out.

    A folder is listed when it is first asked for, and once. Links are followed, except to a folder that they lie in:
    what such a circle shows is in the tree already.

    Args:
        root: a folder, or one file.
        strict: refuse what cannot be listed or opened; otherwise it is noted in `unusable`.

    Attributes:
        unusable: path -> why it cannot be looked at.

    Raises:
        InputError: there is no `root`; and later, a folder cannot be listed, a file cannot be opened, or there are more
            than two million files.
    """

    def __init__(self, root: Path, *, strict: bool = True) -> None:
        if not root.exists():
            raise InputError(f"{root} does not exist.", "Give a folder that holds volumes, or a CSV that lists them.")
        self.root = root
        self.strict = strict
        self.unusable: dict[Path, str] = {}
        self._real: dict[str, tuple[Path, ...]] = {"": (root.resolve(),)}  # of a place, after those that it lies in
        self._folders: dict[str, list[str]] = {}
        self._circles: dict[str, list[Path]] = {}
        self._files: dict[str, list[str]] = {} if root.is_dir() else {"": [root.name]}
        self._count = 0

    def folders(self, place: str = "") -> list[str]:
        """The names of the folders directly in `place`."""
        self.files(place)
        return self._folders.get(place, [])

    def files(self, place: str = "") -> list[str]:
        """The names of the files directly in `place`; none where there is no such folder."""
        if place not in self._files:
            if place:
                self.files(place.rpartition("/")[0])
            if place in self._real:
                self._list(place)
        return self._files.get(place, [])

    def every_folder(self, place: str = "") -> Iterator[str]:
        """`place` and every folder below it."""
        yield place
        for name in self.folders(place):
            yield from self.every_folder(join(place, name))

    def path(self, place: str) -> Path:
        return self.root / place if place and self.root.is_dir() else self.root

    def real_path(self, place: str) -> Path:
        """Where a folder of the tree lies, without links."""
        return self._real[place][-1]

    def shown(self) -> str:
        """What lies directly in the root, for messages."""
        names = [f"{name}/" for name in self.folders()] + self.files()
        return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")

    def contents(self, place: str = "", *, folders: bool = False) -> Contents:
        """What lies directly in `place`, by what it is; the folders in it where they are asked for."""
        found = Contents()
        if folders:
            for inside in (join(place, name) for name in self.folders(place)):
                (found.series if self.holds_dicom(inside) else found.others).append(self.path(inside))
            found.others += self._circles.get(place, [])
        for name in self.files(place):
            path = self.path(join(place, name))
            if lost := not path.exists():
                found.lost.append(path)
                self.unusable[path] = LOST
            if is_volume(name) and (lost or path.is_file()):
                found.volumes.append(path)
            elif lost:
                continue
            elif is_picture(name):
                found.pictures.append(path)
            elif self.holds_dicom(join(place, name)):
                (found.archives if path.suffix.lower() == ".zip" else found.slices).append(path)
            elif path.suffix.lower() == ".zip":
                found.foreign[path] = ".zip without DICOM"
            elif (kind := _FOREIGN.search(name)) and kind.end() == len(name):
                found.foreign[path] = kind.group().lower()
            else:
                found.others.append(path)
        found.others = [path for path in found.others if path not in self.unusable]
        return found

    def holds_dicom(self, place: str) -> bool:
        """True if the file at a place is DICOM, or the folder or zip there holds a DICOM file."""
        path = self.path(place)
        try:
            return holds_dicom(path)
        except OSError as error:
            if self.strict:
                raise InputError(
                    f"{error.filename or path} cannot be read: {error.strerror or error}.",
                    "Allow reading it, or move it away.",
                ) from None
            self.unusable[path] = str(error.strerror or error)
            return False

    def _list(self, place: str) -> None:
        folder, above = self.path(place), self._real[place]
        self._files[place], self._folders[place] = [], []
        try:
            with os.scandir(folder) as entries:
                found = sorted(
                    (entry.name, _is_folder(entry), entry.is_symlink())
                    for entry in entries
                    if not entry.name.startswith(".")
                )
        except OSError as error:
            if self.strict:
                raise InputError(
                    f"the folder {folder} cannot be listed: {error.strerror}.",
                    "Allow reading it, or move it away from this root: it could hold volumes of a patient.",
                ) from None
            self.unusable[folder] = str(error.strerror or error)
            return
        self._count += len(found)
        if self._count > _MOST:
            raise InputError(f"{self.root} holds more than {_MOST} files.", "Give a narrower folder.")
        for name, is_folder, is_link in found:
            if not is_folder:
                self._files[place].append(name)
                continue
            real = (folder / name).resolve() if is_link else above[-1] / name
            if real in above:
                self._circles.setdefault(place, []).append(folder / name)
                continue
            self._folders[place].append(name)
            self._real[join(place, name)] = (*above, real)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself counts as an unreadable file


def named_volumes(tree: Tree, names: Collection[str]) -> dict[str, dict[str, Path]]:
    """Place -> name -> file, of every folder below the root that holds volumes of these names, in any letter case.

    Raises:
        InputError: two volumes of a folder have the same name.
    """
    found: dict[str, dict[str, Path]] = {}
    for place in tree.every_folder():
        for file in tree.files(place):
            name = case_id(file).lower()
            if not place or not is_volume(file) or name not in names:
                continue
            named = found.setdefault(place, {})
            if name in named:
                raise InputError(f"{tree.path(place)} holds {named[name].name} and {file}.", "Keep one of them.")
            named[name] = tree.path(join(place, file))
    return found
