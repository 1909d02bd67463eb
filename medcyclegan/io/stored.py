"""Voxels on disk: read exactly as many values as the header describes, or refuse.

Words used here. *Encoding*: how values are written: raw bytes, a compressed stream of them, or numbers as text. *Part*:
one file of values, or the piece of a file that holds them.

Bytes are counted and checksums verified before any voxel is used. Some libraries fill the missing part of a damaged
stream with whatever was in memory.
"""

from __future__ import annotations

import bz2
import math
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medcyclegan.errors import InputError

Encoding = Literal["raw", "gzip", "zlib", "bzip2", "text", "hex"]

ANOTHER_COPY = "Take another copy of it, or export it again."
GZIP_MAGIC = b"\x1f\x8b"
# zlib's window argument: 31 takes gzip, 47 gzip and zlib.
_WINDOWS = {"gzip": 31, "zlib": 47}
# What may follow the last voxel.
_PADDING = b"\0 \r\n\t"
_TAIL = 1 << 24  # bytes of it that are looked at
# What no number of a file of text holds.
_NO_NUMBER = re.compile(rb"[^0-9+\-.eEnNaAiIfF\s]")


@dataclass(frozen=True)
class Part:
    """Where voxels lie.

    Attributes:
        path: of the file.
        start: bytes of the file before them; -1 where they are its last bytes.
        length: bytes in the file that they take; None for all that follow.
        lines: lines of text to leave out from `start` on.
    """

    path: Path
    start: int = 0
    length: int | None = None
    lines: int = 0


@dataclass(frozen=True, eq=False)
class StoredVolume:
    """A volume as its header describes it; nothing is known of its values yet.

    Attributes:
        path: of the header.
        shape: voxels along the axes, the axis that runs fastest on disk first.
        dtype: of the values, with their byte order.
        affine: 4 x 4 float64, voxel index of the first three axes to RAS+ mm.
        parts: the files of values in order, each of as many.
        components: values per voxel; they run faster than any axis.
        encoding: of every part.
        skip: bytes before the first value of a part once it is decoded.
        slope, intercept: value = slope * stored + intercept.
        remarks: what is doubtful about the header, in words that follow the name of the file.
        meta: what else a volume keeps of the header.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: npt.NDArray[np.float64]
    parts: tuple[Part, ...]
    components: int = 1
    encoding: Encoding = "raw"
    skip: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    remarks: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """The header and every file of values, once each."""
        return list(dict.fromkeys((self.path, *(part.path for part in self.parts))))

    @property
    def kind(self) -> str:
        """Type of the values, such as "int16"."""
        return str(self.dtype.newbyteorder("="))


def header_error(path: str | Path, problem: str, remedy: str | None = None) -> InputError:
    """The error for a wrong header of a file, to be raised."""
    return InputError(f"{path}: its header {problem}.", remedy)


def checked(stored: StoredVolume) -> StoredVolume:
    """The same, after checking its numbers against each other and against the length of its files.

    Raises:
        InputError: a shape or geometry that cannot be, or a file of raw values that is missing, too short or too long.
    """
    name = stored.path
    shown = " x ".join(str(n) for n in stored.shape)
    if not stored.shape or min(stored.shape) < 1 or stored.components < 1:
        raise header_error(name, f"gives {shown or 'no'} voxels, which is no volume")
    if not np.isfinite(stored.affine).all():
        raise header_error(name, "places the voxels by numbers that are not finite")
    values = math.prod(stored.shape) * stored.components
    if values % len(stored.parts):
        raise InputError(f"{name}: {shown} voxels cannot lie in {len(stored.parts)} files of one size.")
    for part in stored.parts:
        if not part.path.is_file():
            raise InputError(
                f"{name}: its data are missing: there is no file {part.path}.", "Put it beside the header."
            )
        if stored.encoding == "raw" and not part.lines:
            size = part.path.stat().st_size
            found = size if part.start < 0 else size - part.start - stored.skip
            with part.path.open("rb") as stream:
                stream.seek(max(0, size - max(0, found - _needed(stored))))
                _fitting(stored, part, found, stream.read(_TAIL))
        # Deflate packs at most 1032 bytes into one.
        if stored.encoding in _WINDOWS and part.path.stat().st_size * 1032 < stored.skip + _needed(stored):
            raise InputError(
                f"{name}: it is cut short, or its shape is wrong: {part.path.stat().st_size} compressed bytes cannot "
                f"hold {_needed(stored)} bytes of voxels."
            )
    return stored


def read_voxels(stored: StoredVolume) -> tuple[npt.NDArray[Any], list[str]]:
    """Every value, of the type on disk, and what is doubtful about the files.

    Returns:
        (X, Y, Z, ...), or (components, X, Y, Z, ...) where a voxel has several; `slope` and `intercept` not applied.

    Raises:
        InputError: the files hold fewer or far more values than the header says, or are damaged.
    """
    count = math.prod(stored.shape) * stored.components // len(stored.parts)
    remarks: list[str] = []
    pieces = [_values(stored, part, count, remarks) for part in stored.parts]
    values = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    shape = stored.shape if stored.components == 1 else (stored.components, *stored.shape)
    return values.reshape(shape, order="F"), list(dict.fromkeys(remarks))


def scaled(values: npt.NDArray[Any], slope: float, intercept: float) -> npt.NDArray[np.float32]:
    """slope * values + intercept in float64, rounded once to float32, in C order; (..., Z) slice by slice."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows becomes infinite and is refused by name
        if (slope, intercept) == (1.0, 0.0):
            return np.array(values, dtype=np.float32, order="C")
        result = np.empty(values.shape, dtype=np.float32)
        for k in range(values.shape[-1]):
            result[..., k] = values[..., k].astype(np.float64) * slope + intercept
    return result


def _needed(stored: StoredVolume) -> int:
    """Bytes of the values of one part."""
    return math.prod(stored.shape) * stored.components // len(stored.parts) * stored.dtype.itemsize


def _fitting(stored: StoredVolume, part: Part, found: int, tail: bytes | bytearray) -> str | None:
    """A remark on a part of `found` bytes of voxels, or None; `tail` are the bytes beyond the needed ones.

    Raises:
        InputError: there are too few, or more that are not padding: then shape, type or start of the data is wrong.
    """
    needed = _needed(stored)
    where = "" if part.path == stored.path else f" in {part.path.name}"
    if found < needed:
        raise InputError(
            f"{stored.path}: it is cut short: {max(found, 0)} of {needed} bytes of voxels are there{where}.",
            ANOTHER_COPY,
        )
    a_slice = math.prod(stored.shape[: min(2, len(stored.shape) - 1)]) * stored.components * stored.dtype.itemsize
    if found == needed or part.start < 0:
        return None
    # A file of voxels alone has no fixed start: it fits, or it is not known where they begin.
    apart = part.path != stored.path and stored.encoding == "raw"
    if found - needed >= a_slice or apart or tail.strip(_PADDING):
        raise header_error(
            stored.path,
            f"describes {needed} bytes of voxels, and {found} or more are there{where}: shape, type or start of the "
            "data is wrong, or bytes were inserted",
        )
    return f"{found - needed} bytes of padding follow the last voxel"


def _values(stored: StoredVolume, part: Part, count: int, remarks: list[str]) -> npt.NDArray[Any]:
    """`count` values of one part."""
    needed = stored.skip + _needed(stored)
    size = part.path.stat().st_size
    with part.path.open("rb") as stream:
        stream.seek(part.start if part.start >= 0 else max(0, size - needed))
        for _ in range(part.lines):
            if not stream.readline(1 << 20).endswith(b"\n"):
                raise InputError(f"{stored.path}: {part.path.name} has fewer lines than its header leaves out.")
        # Never more than there is: Python sets aside what is asked for.
        data = stream.read(min(size, needed) if stored.encoding == "raw" else size)
        beyond, tail = size - stream.tell(), stream.read(_TAIL)
    rest = b""
    if part.length is not None:
        if part.length > len(data):
            raise InputError(
                f"{stored.path}: it is cut short: {len(data)} of {part.length} compressed bytes are there.",
                ANOTHER_COPY,
            )
        data, rest = data[: part.length], data[part.length :]
    if stored.encoding == "text":
        return _from_text(data, count, stored)
    values: bytes | bytearray = data
    if stored.encoding != "raw":
        values, more = _decoded(data, stored, stored.skip + 2 * _needed(stored))
        rest, beyond, tail = more + rest, 0, bytes(values[needed:])
    if rest.strip(_PADDING):
        remarks.append(f"{len(rest)} bytes after the end of the compressed data are left out")
    if padding := _fitting(stored, part, len(values) - stored.skip + beyond, tail):
        remarks.append(padding)
    return np.frombuffer(values, dtype=stored.dtype, count=count, offset=stored.skip)


def _decoded(data: bytes, stored: StoredVolume, most: int) -> tuple[bytes | bytearray, bytes]:
    """What compressed or hexadecimal data hold, up to one byte more than `most`; and the bytes behind them."""
    try:
        if stored.encoding == "hex":
            return bytes.fromhex(data.decode("ascii")), b""
        if stored.encoding == "bzip2":
            return _unzipped(data, most)
        return _inflated(data, _WINDOWS[stored.encoding], most)
    except EOFError:
        raise InputError(f"{stored.path}: its compressed data end too early.", ANOTHER_COPY) from None
    except (zlib.error, OSError, ValueError) as error:
        checksum = "their checksum (CRC-32 or Adler-32) does not match" if "data check" in str(error) else error
        raise InputError(f"{stored.path}: its data are damaged: {checksum}.", ANOTHER_COPY) from None


def _inflated(data: bytes, window: int, most: int) -> tuple[bytearray, bytes]:
    """What gzip or zlib bytes hold, each member with its checksum, up to one more than `most`; and what follows."""
    result = bytearray()
    engine = zlib.decompressobj(window)
    while True:
        result += engine.decompress(data, most + 1 - len(result))
        data = engine.unused_data if engine.eof else engine.unconsumed_tail
        if len(result) > most or (engine.eof and not data.startswith(GZIP_MAGIC)):
            return result, data if engine.eof else b""
        if engine.eof:
            engine = zlib.decompressobj(window)
        elif not data:
            raise EOFError


def _unzipped(data: bytes, most: int) -> tuple[bytearray, bytes]:
    """Like `_inflated`, of one bzip2 stream."""
    engine = bz2.BZ2Decompressor()
    result = bytearray(engine.decompress(data, most + 1))
    while not engine.eof and len(result) <= most:
        if engine.needs_input:
            raise EOFError
        result += engine.decompress(b"", most + 1 - len(result))
    return result, engine.unused_data


def _from_text(data: bytes, count: int, stored: StoredVolume) -> npt.NDArray[Any]:
    words = data.split()
    if len(words) != count:
        raise InputError(f"{stored.path}: {len(words)} numbers are there, and its header describes {count}.")
    dtype = stored.dtype.newbyteorder("=")
    try:
        if _NO_NUMBER.search(data):
            raise ValueError
        if np.issubdtype(dtype, np.floating):
            return np.array([float(word) for word in words], dtype=dtype)
        values = [int(word) for word in words]
        if min(values) < np.iinfo(dtype).min or max(values) > np.iinfo(dtype).max:
            raise ValueError
    except ValueError:
        raise InputError(f"{stored.path}: its voxels are text, and not all of it is numbers of type {dtype}.") from None
    return np.array(values, dtype=dtype)
