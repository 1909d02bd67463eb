"""Values of a stack of slices: `stored * slope + intercept`, with the slope and intercept of each slice (PS3.3 C.11.1).

pydicom decodes what is not compressed, deflated or run-length encoded; SimpleITK the JPEG family: see `decoder`.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless
from scipy import ndimage

from medcyclegan.errors import InputError, few
from medcyclegan.io.dicom.decoder import Decoder
from medcyclegan.io.dicom.files import LIBRARY_ERRORS, Place, count, shown
from medcyclegan.io.dicom.padding import fill_padding, padding
from medcyclegan.io.dicom.stack import Slice, Stack

_SMALLEST_SLOPE = 1e-12  # maps of diffusion in m2/s need 1e-9
_AGAIN = "Copy or export the series again."
_PIXEL_DATA = 0x7FE00010
_LAYOUT = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
_BEHIND_THE_PIXELS = (0xFFFAFFFA, 0xFFFCFFFC)


def values_of(slices: Sequence[Slice], name: str) -> tuple[npt.NDArray[np.float32], list[str]]:
    """(columns, rows, slices) float32: HU for CT; else by slope and intercept where the header has them; and notes.

    Padding was not measured and has no value: see `padding`.
    """
    notes = _scaling(slices, name)
    first = slices[0].header
    result = np.empty((len(slices), int(first.Rows), int(first.Columns)), dtype=np.float32)
    padded: npt.NDArray[np.bool_] | None = None
    layouts, beyond, longer = Counter[str](), [], []
    by_file: dict[Place, list[int]] = {}
    for index, image in enumerate(slices):
        by_file.setdefault(image.place, []).append(index)
    with Decoder() as decoder:
        for place, indices in by_file.items():
            stored = _stored(place, name, decoder)
            layouts[stored.layout] += 1
            if stored.beyond:
                beyond.append(place.name)
            if stored.rest:
                longer.append(place.name)
            if stored.values.shape[1:] != result.shape[1:]:
                raise InputError(f"{name}: {place.name} has not the pixels that its header says.", "Export it again.")
            for index in indices:
                image = slices[index]
                slope = 1.0 if image.slope is None else image.slope
                with np.errstate(over="ignore"):  # what overflows becomes infinite and is refused by name
                    result[index] = stored.values[image.frame] * slope + (image.intercept or 0.0)
                if stored.padded is not None:
                    padded = np.zeros(result.shape, bool) if padded is None else padded
                    padded[index] = stored.padded[image.frame]
    if len(layouts) > 1:
        kinds = ", ".join(f"{number} of {layout}" for layout, number in layouts.most_common())
        notes.append(f"the files store their pixels in several ways ({kinds}); each is read as its header says.")
    if beyond:
        notes.append(
            f"{count(len(beyond), 'file')} with content in bits that BitsStored leaves out ({few(beyond)}); only the "
            "stored bits are read. If BitsStored is wrong, so are the values."
        )
    if longer:
        notes.append(
            f"{count(len(longer), 'file')} with bytes behind the pixels that belong to nothing ({few(longer)}); were "
            "bytes inserted, the pixels are shifted."
        )
    if padded is not None:
        notes += fill_padding(result, padded, slices[0].modality)
    return result.T, notes


def unsheared(array: npt.NDArray[np.float32], stack: Stack, fill: float) -> npt.NDArray[np.float32]:
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


def _scaling(slices: Sequence[Slice], name: str) -> list[str]:
    """Refuse slopes, intercepts and units that leave the values unknown; gives notes on unusual ones."""
    ct = slices[0].modality == "CT"
    if ct and (without := [s.label for s in slices if s.slope is None or s.intercept is None]):
        raise InputError(
            f"{name}: {count(len(without), 'CT image')} without RescaleSlope or RescaleIntercept ({few(without)}), "
            "so that the Hounsfield units are not known.",
            "Export the series again.",
        )
    for keyword, values in (
        ("RescaleSlope", [s.slope for s in slices]),
        ("RescaleIntercept", [s.intercept for s in slices]),
    ):
        without = [s.label for s, value in zip(slices, values, strict=True) if value is None]
        if 0 < len(without) < len(slices):
            raise InputError(
                f"{name}: {count(len(without), 'image')} without the {keyword} that the others have ({few(without)}), "
                "so that their values do not compare.",
                "Export the series again.",
            )
    if flat := [s.label for s in slices if s.slope is not None and abs(s.slope) < _SMALLEST_SLOPE]:
        least = min(abs(s.slope) for s in slices if s.slope is not None)
        raise InputError(
            f"{name}: RescaleSlope is {least:g} in {count(len(flat), 'image')} ({few(flat)}), which makes all values "
            "the same.",
            "Export the series again.",
        )
    other = {s.unit for s in slices} - {"", "HU", "HU_MOD", "US"}
    if ct and other:
        raise InputError(
            f"{name}: the values are not Hounsfield units but {', '.join(map(shown, sorted(other)))} (RescaleType).",
            "Give a CT reconstruction in Hounsfield units.",
        )
    falling = [s.label for s in slices if s.slope is not None and s.slope < 0]
    if 0 < len(falling) < len(slices):
        raise InputError(
            f"{name}: RescaleSlope is negative in {count(len(falling), 'image')} ({few(falling)}) and positive in the "
            "others: light and dark change from slice to slice.",
            "Export the series again.",
        )
    notes = []
    offsets = Counter(s.intercept for s in slices)
    if ct and len(offsets) > 1:
        listed = ", ".join(f"{number} of {offset:g}" for offset, number in offsets.most_common(3))
        notes.append(f"RescaleIntercept differs between the slices ({listed}), which is unusual in CT.")
    if falling:
        notes.append("RescaleSlope is negative, which is unusual; values are slope x stored + intercept all the same.")
    if ct and slices[0].unit == "US":
        notes.append("RescaleType is US (unspecified): the header does not say that the values are Hounsfield units.")
    if slices[0].slope is None and slices[0].intercept is not None:
        notes.append("there is a RescaleIntercept without a RescaleSlope; the slope is taken as 1.")
    if slices[0].slope is not None and slices[0].intercept is None:
        notes.append("there is a RescaleSlope without a RescaleIntercept; the intercept is taken as 0.")
    return notes


@dataclass(frozen=True, eq=False)
class _Stored:
    """What a file stores: (frames, rows, columns) values, which of them are padding (None: none), how they lie in bits.

    `beyond`: bits outside BitsStored hold something other than copies of the sign or zeros; `rest`: bytes that are no
    element follow the pixels.
    """

    values: npt.NDArray[Any]
    padded: npt.NDArray[np.bool_] | None
    layout: str
    beyond: bool
    rest: bool


def _stored(place: Place, name: str, decoder: Decoder) -> _Stored:
    """The stored values of a file."""
    try:
        return _read(place, name, decoder)
    except InputError:
        raise
    except MemoryError as error:
        raise MemoryError(f"{name} does not fit into memory") from error
    except LIBRARY_ERRORS as error:
        raise InputError(f"{name}: the pixels of {place.name} cannot be decoded.", _AGAIN) from error


def _read(place: Place, name: str, decoder: Decoder) -> _Stored:
    with place.open() as stream:
        file = stream.read()
    content = pydicom.dcmread(io.BytesIO(file), force=True)
    if not any(keyword in content for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise InputError(f"{name}: {place.name} has no pixel data (cut short?).", _AGAIN)
    if int(content.get("SamplesPerPixel", 1)) != 1 or content.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise InputError(f"{name}: {place.name} has color pixels.", "Give images with one value per pixel.")
    syntax = _syntax(content)
    if "PixelData" not in content:
        return _Stored(_frames_of(content.pixel_array), None, "floating point", False, False)
    if problem := layout_problem(content):
        raise InputError(f"{name}: {place.name}: {problem}.", "Correct the header, or export the image again.")
    rest = _has_rest(content, syntax, len(file))
    rest |= _cut_to_length(content, syntax, place, name)
    allocated, bits, signed = content.BitsAllocated, content.BitsStored, bool(content.PixelRepresentation)
    if syntax.is_encapsulated and syntax != RLELossless:
        try:
            cells = values = _frames_of(decoder(content))
        except ValueError as error:
            raise InputError(
                f"{name}: the compressed pixels of {place.name} cannot be decoded whole ({error}).",
                "Copy it again, or export it without compression.",
            ) from error
    else:
        # As if every bit were stored: padding may lie in those that are not.
        content.BitsStored, content.HighBit = allocated, allocated - 1
        cells = _frames_of(content.pixel_array)
        values = stored_bits(cells, bits)
    if len(values) != max(1, int(content.get("NumberOfFrames") or 1)):
        raise InputError(f"{name}: {place.name} has {count(len(values), 'frame')}, its header says another number.")
    try:
        padded = padding(content, cells, values, signed)
    except ValueError as error:
        raise InputError(
            f"{name}: {error} of {place.name} is no whole number, so that padding cannot be told from what was "
            "measured.",
            "Correct it in the header.",
        ) from error
    unused = cells != stored_bits(cells, bits)
    if padded is not None:
        unused &= ~padded
    # Overlays in the pixel cells are retired, and known from their OverlayBitPosition (60xx,0102).
    overlay = any((group, 0x0102) in content for group in range(0x6000, 0x6020, 2))
    beyond = bool(unused.any()) and not overlay and bool((cells[unused] >> bits).any())
    layout = f"{bits} of {allocated} bits, {'signed' if signed else 'unsigned'}"
    return _Stored(values, padded, layout, beyond, rest)


def _frames_of(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(array).reshape(-1, *array.shape[-2:])


def stored_bits(cells: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    """The lowest `bits` bits of pixel cells, with their sign if the cells have one; other bits mean nothing."""
    unused = 8 * cells.itemsize - bits
    return np.asarray((cells << unused) >> unused) if unused else cells


def layout_problem(content: Dataset) -> str:
    """Why the pixels cannot be told from the header (PS3.3 C.7.6.3), or an empty string."""
    found = {keyword: content.get(keyword) for keyword in _LAYOUT}
    for keyword, value in found.items():
        if not isinstance(value, int):
            return f"{keyword} is {'missing' if value is None else 'no number'}"
    rows, columns, allocated, bits, high, sign = found.values()
    checks = (
        (min(rows, columns) >= 1, "Rows or Columns is not above 0"),
        (allocated in (8, 16, 32), f"BitsAllocated is {allocated}; 8, 16 or 32 can be read"),
        (1 <= bits <= allocated, f"BitsStored is {bits} and BitsAllocated {allocated}: no value fits"),
        (
            high == bits - 1,
            f"the values are stored in bits {high - bits + 1} to {high}, which is not read; they must begin at bit 0",
        ),
        (sign in (0, 1), f"PixelRepresentation is {sign}; 0 (unsigned) and 1 (signed) can be"),
    )
    return next((problem for sound, problem in checks if not sound), "")


def _syntax(content: Dataset) -> pydicom.uid.UID:
    meta = getattr(content, "file_meta", FileMetaDataset())
    if "TransferSyntaxUID" not in meta:
        # Old files without a header of their own: pydicom guessed the encoding while reading.
        meta.TransferSyntaxUID = (
            ExplicitVRLittleEndian if content.original_encoding[0] is False else "1.2.840.10008.1.2"
        )
        content.file_meta = meta
    return pydicom.uid.UID(meta.TransferSyntaxUID)


def _has_rest(content: Dataset, syntax: pydicom.uid.UID, size: int) -> bool:
    """Whether something follows plain pixels that is no element: padding and signatures alone may (PS3.10 7.2)."""
    last = max(content.keys())
    if last > _PIXEL_DATA:
        return last not in _BEHIND_THE_PIXELS
    pixels = content["PixelData"]
    return not (syntax.is_encapsulated or syntax.is_deflated) and size > (pixels.file_tell or 0) + len(pixels.value)


def _cut_to_length(content: Dataset, syntax: pydicom.uid.UID, place: Place, name: str) -> bool:
    """Refuse pixels that are too few, or more by a row, for what the header says; True if some bytes were cut off."""
    pixels = content["PixelData"].value
    if syntax.is_encapsulated:
        # A compressed image ends with a mark of its own; without it the file was cut.
        if not pixels:
            raise InputError(f"{name}: {place.name} is cut short.", _AGAIN)
        return False
    frames = int(content.get("NumberOfFrames") or 1)
    row = int(content.Columns) * content.BitsAllocated // 8
    needed = int(content.Rows) * row * frames
    if len(pixels) < needed:
        raise InputError(
            f"{name}: {place.name} is cut short ({len(pixels)} of {needed} bytes of pixels).",
            _AGAIN,
        )
    if len(pixels) >= needed + max(row, 2):
        raise InputError(
            f"{name}: {place.name} holds {len(pixels)} bytes of pixels, and its header says {content.Rows} rows, "
            f"{content.Columns} columns and {count(frames, 'frame')}, which are {needed}: one of them is wrong.",
            "Correct the header, or export the series again.",
        )
    content["PixelData"].value = pixels[:needed]
    return len(pixels) > needed + needed % 2
