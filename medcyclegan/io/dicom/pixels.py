"""Values of a stack of slices: `stored * slope + intercept`, with the slope and intercept of each slice (PS3.3 C.11.1).

pydicom decodes what is not compressed, deflated or run-length encoded; SimpleITK the JPEG family.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless
from scipy import ndimage

from medcyclegan.errors import InputError
from medcyclegan.io.dicom.files import LIBRARY_ERRORS, Place, count, few
from medcyclegan.io.dicom.stack import Slice, Stack

_SECONDARY_CAPTURE = {False: "1.2.840.10008.5.1.4.1.1.7", True: "1.2.840.10008.5.1.4.1.1.7.3"}  # one or many frames
_PIXEL_DESCRIPTION = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)


def values_of(slices: Sequence[Slice], name: str) -> npt.NDArray[np.float32]:
    """(columns, rows, slices) float32: HU for CT; else by slope and intercept where the header has them."""
    _refuse_unknown_unit(slices, name)
    first = slices[0].header
    result = np.empty((len(slices), int(first.Rows), int(first.Columns)), dtype=np.float32)
    by_file: dict[Place, list[int]] = {}
    for index, image in enumerate(slices):
        by_file.setdefault(image.place, []).append(index)
    for place, indices in by_file.items():
        stored = _stored(place, name)
        for index in indices:
            image = slices[index]
            if stored.shape[1:] != result.shape[1:] or image.frame >= len(stored):
                raise InputError(f"{name}: {place.name} has not the pixels that its header says.", "Export it again.")
            slope = 1.0 if image.slope is None else image.slope
            result[index] = stored[image.frame] * slope + (image.intercept or 0.0)
    return result.T


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


def _refuse_unknown_unit(slices: Sequence[Slice], name: str) -> None:
    if slices[0].modality != "CT":
        return
    without = [s.label for s in slices if s.slope is None or s.intercept is None]
    if without:
        raise InputError(
            f"{name}: {count(len(without), 'CT image')} without RescaleSlope or RescaleIntercept ({few(without)}), "
            "so that the Hounsfield units are not known.",
            "Export the series again.",
        )
    other = {s.unit for s in slices} - {"", "HU", "HU_MOD", "US"}
    if other:
        raise InputError(
            f"{name}: the values are not Hounsfield units but {', '.join(sorted(other))} (RescaleType).",
            "Give a CT reconstruction in Hounsfield units.",
        )


def _stored(place: Place, name: str) -> npt.NDArray[Any]:
    """The stored values of a file, (frames, rows, columns)."""
    remedy = "Copy or export the series again."
    try:
        with place.open() as stream:
            content = pydicom.dcmread(stream, force=True)
        if not any(keyword in content for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise InputError(f"{name}: {place.name} has no pixel data (cut short?).", remedy)
        if int(content.get("SamplesPerPixel", 1)) != 1 or content.get("PhotometricInterpretation") == "PALETTE COLOR":
            raise InputError(f"{name}: {place.name} has color pixels.", "Give images with one value per pixel.")
        syntax = _syntax(content)
        if "PixelData" in content:
            _refuse_cut(content, syntax, place, name)
        native = not syntax.is_encapsulated or syntax == RLELossless
        array = content.pixel_array if native else _decompressed(content)
    except InputError:
        raise
    except MemoryError as error:
        raise MemoryError(f"{name} does not fit into memory") from error
    except LIBRARY_ERRORS as error:
        raise InputError(f"{name}: the pixels of {place.name} cannot be decoded.", remedy) from error
    return np.asarray(array).reshape(-1, *array.shape[-2:])


def _syntax(content: Dataset) -> pydicom.uid.UID:
    meta = getattr(content, "file_meta", FileMetaDataset())
    if "TransferSyntaxUID" not in meta:
        # Old files without a header of their own: pydicom guessed the encoding while reading.
        meta.TransferSyntaxUID = (
            ExplicitVRLittleEndian if content.original_encoding[0] is False else "1.2.840.10008.1.2"
        )
        content.file_meta = meta
    return pydicom.uid.UID(meta.TransferSyntaxUID)


def _refuse_cut(content: Dataset, syntax: pydicom.uid.UID, place: Place, name: str) -> None:
    bits, stored, high = (int(content[k].value) for k in ("BitsAllocated", "BitsStored", "HighBit"))
    if high != stored - 1:
        raise InputError(
            f"{name}: {place.name} stores its values in bits {high - stored + 1} to {high}, which is not read.",
            "Export it again as plain 16-bit DICOM.",
        )
    if syntax.is_encapsulated:
        # A compressed image ends with a mark of its own; without it the file was cut.
        if not content["PixelData"].value:
            raise InputError(f"{name}: {place.name} is cut short.", "Copy or export the series again.")
        return
    frames = int(content.get("NumberOfFrames") or 1)
    needed = (int(content.Rows) * int(content.Columns) * frames * bits + 7) // 8
    if len(content.PixelData) < needed:
        raise InputError(
            f"{name}: {place.name} is cut short ({len(content.PixelData)} of {needed} bytes of pixels).",
            "Copy or export the series again.",
        )


def _decompressed(content: Dataset) -> npt.NDArray[Any]:
    """Stored values of a compressed image, by SimpleITK.

    Only the pixels and their description are handed on, in an object of a class that has no slope, no intercept and no
    geometry, and as MONOCHROME2, since SimpleITK turns the values of MONOCHROME1 around: what it gives then are the
    stored values, frame by frame.
    """
    frames = int(content.get("NumberOfFrames") or 1)
    bare = Dataset()
    bare.SOPClassUID = _SECONDARY_CAPTURE[frames > 1]
    bare.SOPInstanceUID = "2.25.1"
    for keyword in _PIXEL_DESCRIPTION:
        if keyword in content:
            setattr(bare, keyword, content[keyword].value)
    bare.PhotometricInterpretation = "MONOCHROME2"
    bare["PixelData"] = content["PixelData"]
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = content.file_meta.TransferSyntaxUID
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pixels.dcm"
        bare.save_as(file, enforce_file_format=True)
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(file))))
