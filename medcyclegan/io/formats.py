"""The file formats of volumes, each with the reader of its header; `stored` reads the voxels."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from medcyclegan.errors import InputError
from medcyclegan.io import metaimage, nifti, nrrd
from medcyclegan.io.stored import StoredVolume

READERS: dict[str, Callable[[Path], StoredVolume]] = {
    ".nii": nifti.read_header,
    ".nii.gz": nifti.read_header,
    ".mha": metaimage.read_header,
    ".mhd": metaimage.read_header,
    ".nrrd": nrrd.read_header,
}


def suffix_of(name: str | os.PathLike[str]) -> str:
    """The suffix of a format at the end of a file's name, as it is written there, or an empty string."""
    name = Path(name).name
    for suffix in sorted(READERS, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[len(name) - len(suffix) :]
    return ""


def describe(path: Path) -> StoredVolume:
    """The header of a file in any format.

    Raises:
        InputError: it cannot be read, or says what cannot be.
    """
    suffix = suffix_of(path.name).lower()
    if suffix not in READERS:
        raise InputError(f"{path}: not a volume format that can be read.", f"Give one of {', '.join(READERS)}.")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes).")
        return READERS[suffix](path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
