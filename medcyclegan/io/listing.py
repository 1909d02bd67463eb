"""Which files are volumes, which case each is, and which files it consists of.

Words used here. *Case id*: the name of a file without the suffix of its format, or of a DICOM folder.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from pathlib import Path

from medcyclegan.errors import InputError
from medcyclegan.io.dicom.files import DICOM_SUFFIXES, dicom_files, holds_dicom, split_choice
from medcyclegan.io.formats import READERS, describe, suffix_of
from medcyclegan.io.pictures import PICTURE_SUFFIXES

VOLUME_SUFFIXES = tuple(READERS)

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


def volume_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that the volume at `path` consists of; empty if there is none.

    One, or every DICOM file of a folder, or the header (.mhd, .mha, .nrrd) and every file of voxels that it names. A
    header that cannot be understood stands alone: reading refuses it.
    """
    found = split_choice(path)[0]
    if found.is_dir():
        return dicom_files(found)
    if not found.exists():
        return []
    if suffix_of(found.name):
        try:
            return describe(found).files
        except InputError:
            pass
    return [found]


def list_volumes(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Case id -> file or folder for every volume directly in `folder`, sorted by case id.

    A sub-folder or zip that holds DICOM is one case. A folder that holds DICOM files itself is one case, that of its
    own name. 2D images (.png, .tif, .tiff) are cases where there is nothing else; beside volumes they are previews.
    Hidden files (leading dot) and other sub-folders are left out. A link to nothing is a case that cannot be read, for
    otherwise nobody would miss it.

    Raises:
        InputError: the folder is missing, is a file, holds no volume, holds two volumes of the same case id, or holds
            the files of a DICOM series beside other volumes.

    Warns:
        UserWarning: files that look like volumes of formats that cannot be read (.mgz, .nii.bz2, ...), or archives
            without DICOM, lie there and are left out; one warning per kind, with the first three names.
    """
    folder = Path(folder)
    if not folder.exists():
        raise InputError(f"{folder} does not exist.", "Give a folder that holds volumes.")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder.", "Give the folder that holds the volumes.")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found: dict[str, list[Path]] = {}
    foreign: dict[str, list[str]] = {}
    slices = 0
    for path in files:
        if (path.is_file() and suffix_of(path.name)) or _is_lost(path):
            found.setdefault(case_id(path), []).append(path)
        elif path.is_dir() or path.suffix.lower() == ".zip":
            if holds_dicom(path):
                found.setdefault(path.name if path.is_dir() else case_id(path), []).append(path)
            elif not path.is_dir():
                foreign.setdefault(".zip without DICOM", []).append(path.name)
        elif holds_dicom(path):
            slices += 1
        elif path.is_file() and (kind := _FOREIGN.search(path.name)) and kind.end() == len(path.name):
            foreign.setdefault(kind.group().lower(), []).append(path.name)
    if slices and found:
        others = sorted(path.name for paths in found.values() for path in paths)
        raise InputError(
            f"{folder} holds {slices} DICOM files beside other volumes ({', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}).",
            "Give each DICOM series a sub-folder of its own.",
        )
    if not found and not slices and not foreign:
        for path in files:
            if path.is_file() and path.name.lower().endswith(PICTURE_SUFFIXES):
                found.setdefault(case_id(path), []).append(path)
    if not found and not slices:
        raise InputError(
            f"{folder} holds no volume that can be read ({', '.join(VOLUME_SUFFIXES)}, DICOM); "
            f"it holds {_inventory(files)}.",
            "Convert them to one of these formats." if foreign else None,
        )
    twins = [f"'{case}': {', '.join(p.name for p in paths)}" for case, paths in found.items() if len(paths) > 1]
    if twins:
        raise InputError(
            f"{folder} holds more than one file for the same case id ({'; '.join(sorted(twins))}).",
            "Keep one file per case or rename the others.",
        )
    for unread, names in foreign.items():
        warnings.warn(
            f"{folder}: {len(names)} file{'s' * (len(names) != 1)} of a format that cannot be read ({unread}) "
            f"left out: {', '.join(names[:3])}{', ...' if len(names) > 3 else '.'}",
            stacklevel=2,
        )
    return {folder.resolve().name: folder} if slices else {case: found[case][0] for case in sorted(found)}


def _is_lost(path: Path) -> bool:
    """True for a link to nothing whose name may be that of a volume, or of a folder or zip of DICOM files."""
    return path.is_symlink() and not path.exists() and bool(suffix_of(path.name) or path.suffix.lower() in ("", ".zip"))


def _inventory(files: list[Path]) -> str:
    counts = Counter("sub-folder" if path.is_dir() else path.suffix.lower() for path in files)
    parts = []
    for kind, count in counts.most_common(4):
        noun = kind if kind == "sub-folder" else f"{kind} file" if kind else "file without a suffix"
        parts.append(f"{count} {noun if count == 1 else noun.replace('file', 'files', 1).replace('folder', 'folders')}")
    if len(counts) > 4:
        parts.append("other files")
    return ", ".join(parts) or "nothing"
