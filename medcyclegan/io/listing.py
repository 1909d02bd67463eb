"""Find volumes in files and folders.

`list_volumes` is for processing, and refuses unusable files. `look_in` and `look_below` are for inspection, and list
unusable files with the reason.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medcyclegan.errors import InputError
from medcyclegan.io.dicom.files import dicom_files, split_choice
from medcyclegan.io.formats import describe, suffix_of
from medcyclegan.io.tree import LOST, VOLUME_SUFFIXES, Tree, case_id, join


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
    Hidden files (leading dot) and other sub-folders are left out. A broken link is a case that cannot be read, so
    that it is not overlooked.

    Raises:
        InputError: the folder is missing, is a file, holds no volume, holds two volumes of the same case id, or holds
            the files of a DICOM series beside other volumes.

    Warns:
        UserWarning: files that look like volumes of formats that cannot be read (.mgz, .nii.bz2, ...), or archives
            without DICOM, lie there and are left out; one warning per kind, with the first three names.
    """
    folder = Path(folder)
    _require_folder(folder)
    tree = Tree(folder)
    here = tree.contents(folders=True)
    lost = [path for path in here.lost if path.suffix.lower() in ("", ".zip")]
    volumes = sorted({*here.volumes, *here.series, *here.archives, *lost})
    if here.slices and volumes:
        raise InputError(
            f"{folder} holds {len(here.slices)} DICOM files beside other volumes "
            f"({', '.join(path.name for path in volumes[:3])}{', ...' if len(volumes) > 3 else ''}).",
            "Give each DICOM series a sub-folder of its own.",
        )
    if not volumes:
        volumes = [folder] if here.slices else here.pictures if not here.foreign else []
    if not volumes:
        raise InputError(
            f"{folder} holds no volume that can be read ({', '.join(VOLUME_SUFFIXES)}, DICOM); "
            f"it holds {_inventory(tree)}.",
            "Convert them to one of these formats." if here.foreign else None,
        )
    cases: dict[str, list[Path]] = {}
    for path in volumes:
        case = folder.resolve().name if path == folder else path.name if path.is_dir() else case_id(path)
        cases.setdefault(case, []).append(path)
    twins = [f"'{case}': {', '.join(p.name for p in paths)}" for case, paths in cases.items() if len(paths) > 1]
    if twins:
        raise InputError(
            f"{folder} holds more than one file for the same case id ({'; '.join(sorted(twins))}).",
            "Keep one file per case or rename the others.",
        )
    for kind in dict.fromkeys(here.foreign.values()):
        names = [path.name for path, other in here.foreign.items() if other == kind]
        warnings.warn(
            f"{folder}: {len(names)} file{'s' * (len(names) != 1)} of a format that cannot be read ({kind}) "
            f"left out: {', '.join(names[:3])}{', ...' if len(names) > 3 else '.'}",
            stacklevel=2,
        )
    return {case: cases[case][0] for case in sorted(cases)}


def volumes_at(path: Path) -> dict[str, Path]:
    """Case id -> volume: those of `list_volumes` in a folder, or the one file."""
    return list_volumes(path) if path.is_dir() else {case_id(path): path}


@dataclass
class Listing:
    """The files found for inspection.

    Attributes:
        volumes: in order of path; a DICOM series is its folder.
        unusable: path -> why it cannot be opened.
        left_out: files that are no volumes, and folders that were not searched.
    """

    volumes: list[Path] = field(default_factory=list)
    unusable: dict[Path, str] = field(default_factory=dict)
    left_out: list[Path] = field(default_factory=list)


def look_in(folder: Path) -> Listing:
    """The volumes directly in a folder, as `list_volumes` takes them: files, and sub-folders and zips that hold DICOM.

    Raises:
        InputError: the folder is missing or holds no volume at all.
    """
    _require_folder(folder)
    tree = Tree(folder, strict=False)
    here = tree.contents(folders=True)
    volumes = here.usable()
    if here.slices and volumes:
        tree.unusable[folder] = (
            "its DICOM files lie beside other volumes, and each series needs a sub-folder of its own"
        )
    return _checked(Listing(volumes or [folder] * bool(here.slices), tree.unusable, here.left_out()), folder)


def look_below(paths: Sequence[Path]) -> Listing:
    """Every volume under the given files and folders, sub-folders included; links are followed, circles are not.

    Raises:
        InputError: a path is missing, or there is no volume at all.
    """
    found = Listing()
    seen: set[Path] = set()
    for path in paths:
        if not os.path.lexists(path):
            raise InputError(f"{path} does not exist.", "Give volumes, or folders that hold volumes.")
        if not path.exists():
            found.unusable[path] = LOST
            continue
        tree, places = Tree(path, strict=False), [""]
        while places:
            place = places.pop()
            if tree.real_path(place) in seen:
                continue
            seen.add(tree.real_path(place))
            here = tree.contents(place)
            found.volumes += [*here.usable(), *([tree.path(place)] if here.slices else [])]
            found.left_out += here.left_out()
            places += [join(place, name) for name in reversed(tree.folders(place))]
        found.unusable |= tree.unusable
    found.volumes = sorted(dict.fromkeys(found.volumes))
    return _checked(found, ", ".join(map(str, paths[:3])))


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}.", "Give a folder that holds volumes.")


def _checked(found: Listing, where: Path | str) -> Listing:
    if not found.volumes and not found.unusable:
        names = ", ".join(path.name for path in found.left_out[:3])
        holds = f"it holds {names}{' and more' if len(found.left_out) > 3 else ''}" if names else "it is empty"
        raise InputError(
            f"{where} holds no volume ({', '.join(VOLUME_SUFFIXES)}, DICOM); {holds}.",
            "Give the folder that holds the volumes themselves.",
        )
    return found


def _inventory(tree: Tree) -> str:
    folders = tree.folders()
    counts = Counter(
        "sub-folder" if name in folders else Path(name).suffix.lower() for name in sorted([*folders, *tree.files()])
    )
    parts = []
    for kind, count in counts.most_common(4):
        noun = kind if kind == "sub-folder" else f"{kind} file" if kind else "file without a suffix"
        parts.append(f"{count} {noun if count == 1 else noun.replace('file', 'files', 1).replace('folder', 'folders')}")
    if len(counts) > 4:
        parts.append("other files")
    return ", ".join(parts) or "nothing"
