"""One prepared case on disk, with digests that detect damage and mix-ups.

    <case>/case.json    the record: grids, channels, the key, a checksum of each array, and a digest of all that
    <case>/image.npy    int16, [-1, 1] times 32767, (C, X, Y, Z), an axial slice with all its channels contiguous
    <case>/body.npy     bool, (X, Y, Z)

Words used here. *Record*: a JSON file with a digest of its own content. *Key*: hashes of a case's files
and the settings. The checksums are CRC-32: they notice damage (every changed bit, and every changed run of up to 32
bits), not malice.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from medcyclegan.atomic import write_json
from medcyclegan.data.slices import Slices, measure_slices
from medcyclegan.data.stored_image import StoredImage, encode
from medcyclegan.documents import read_json
from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.survey.features import Features
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.pipeline import Channel, Preparation, PreparedCase

FILES = {"case.json", "image.npy", "body.npy", "registration.png"}  # what a case's folder may hold
_BLOCK = 1 << 22  # bytes read at once


@dataclass(frozen=True)
class StoredCase:
    """A prepared case on disk; its arrays are opened on use and not read into memory."""

    id: str
    folder: Path
    grid: Grid
    source_grid: Grid
    channels: tuple[Channel, ...]
    image_files: tuple[Path, ...]  # of each channel
    features: Features
    slices: Slices
    blanked_ml: float = 0.0  # of an MR that was defaced, mL
    key: str = ""  # digest of its files and settings
    checksums: Mapping[str, int] = field(default_factory=dict)  # "image.npy", "body.npy" -> CRC-32 of the file

    @property
    def image(self) -> StoredImage:
        """(C, X, Y, Z), float32 in [-1, 1] wherever it is indexed, memory-mapped."""
        shape = (len(self.channels), *self.grid.shape)
        return StoredImage(_mapped(self.folder / "image.npy", np.dtype(np.int16), shape))

    @property
    def body(self) -> npt.NDArray[np.bool_]:
        """(X, Y, Z), memory-mapped."""
        return _mapped(self.folder / "body.npy", np.dtype(np.bool_), self.grid.shape)

    @property
    def size(self) -> int:
        """Of both arrays, bytes."""
        return sum((self.folder / name).stat().st_size for name in self.checksums)

    def damage(self) -> Iterator[str]:
        """Damage of the arrays, found by reading all of them; empty if there is none."""
        for name, wanted in self.checksums.items():
            try:
                found = checksum(self.folder / name)
            except InputError as error:
                yield str(error)
                continue
            if found != wanted:
                yield f"{self.folder / name} is damaged or was changed: its checksum is another."


def save_case(prepared: PreparedCase, folder: Path, about: Mapping[str, Any]) -> None:
    """Write image, body and the record.

    Args:
        prepared: the case.
        folder: an empty one.
        about: what else the record says: id, image_files, key, features, surveys.
    """
    # Fortran order makes an axial slice [..., k], with all its channels, one contiguous piece of the file.
    stored = encode(prepared.image)
    as_read = np.asarray(StoredImage(stored))
    np.save(folder / "image.npy", np.asfortranarray(stored))
    np.save(folder / "body.npy", np.asfortranarray(prepared.body))
    write_record(
        folder / "case.json",
        {
            **about,
            "grid": prepared.grid.to_dict(),
            "source_grid": prepared.source_grid.to_dict(),
            "channels": [_to_dict(channel) for channel in prepared.channels],
            "slices": measure_slices([as_read], prepared.body).to_dict(),
            "blanked_ml": prepared.blanked_ml,
            "checksums": {name: checksum(folder / name) for name in ("image.npy", "body.npy")},
        },
    )


def _to_dict(channel: Channel) -> dict[str, Any]:
    return {
        "preparation": asdict(channel.preparation),
        "scaler": channel.scaler.to_dict(),
        "covered": round(channel.covered, 4),
        "apart_mm": round(channel.apart_mm, 2) if math.isfinite(channel.apart_mm) else None,
    }


def _channel(content: Mapping[str, Any]) -> Channel:
    return Channel(
        Preparation(**content["preparation"]),
        Scaler.from_dict(content["scaler"]),
        float(content["covered"]),
        math.nan if content["apart_mm"] is None else float(content["apart_mm"]),
    )


def open_case(folder: Path) -> StoredCase:
    """Open a case; only headers and sizes of its arrays are read.

    Raises:
        InputError: it is missing, unreadable or visibly damaged.
    """
    content = read_record(folder / "case.json")
    try:
        case = StoredCase(
            id=content["id"],
            folder=folder,
            grid=Grid.from_dict(content["grid"]),
            source_grid=Grid.from_dict(content["source_grid"]),
            channels=tuple(_channel(channel) for channel in content["channels"]),
            image_files=tuple(Path(file) for file in content["image_files"]),
            features=Features.from_dict(content["features"]),
            slices=Slices.from_dict(content["slices"]),
            blanked_ml=float(content["blanked_ml"]),
            key=key_digest(content["key"]),
            checksums={name: int(content["checksums"][name]) for name in ("image.npy", "body.npy")},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'case.json'} is damaged ({type(error).__name__}: {error}).") from None
    _ = case.image, case.body
    return case


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain data as JSON with a digest of itself, atomically."""
    write_json(path, {**content, "digest": key_digest(content)})


def read_record(path: Path) -> dict[str, Any]:
    """Read what `write_record` wrote, without the digest.

    Raises:
        InputError: it is missing, cannot be read, or is not what was written.
    """
    content = read_json(path, f"record {path}")
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged or was changed: it is no object.")
    digest = content.pop("digest", None)
    if digest != key_digest(content):
        raise InputError(f"{path} is damaged or was changed: its digest is another.")
    return content


def key_digest(key: Any) -> str:
    """BLAKE2b of plain data."""
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()


def checksum(path: Path) -> int:
    """CRC-32 of a file.

    Raises:
        InputError: it cannot be read.
    """
    value = 0
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                value = isal_zlib.crc32(block, value)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    return value


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The memory-mapped array of a .npy file.

    Raises:
        InputError: it cannot be read, or is of another type, shape or length.
    """
    try:
        with path.open("rb") as stream:
            major, _ = np.lib.format.read_magic(stream)
            read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            found, in_fortran_order, kind = read_header(stream)
            if (found, kind) != (shape, dtype):
                raise InputError(f"{path} is damaged: it is {kind} {found}, and {dtype} {shape} was written.")
            start, size = stream.tell(), path.stat().st_size
            if size != start + math.prod(shape) * dtype.itemsize:
                raise InputError(f"{path} is damaged: it has {size} bytes, which is not what its shape needs.")
        return np.memmap(path, dtype, "r", start, shape, "F" if in_fortran_order else "C")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # numpy raises many kinds for a damaged header
        raise InputError(f"{path} is damaged: its header cannot be read ({error}).") from None
