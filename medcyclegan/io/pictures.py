"""2D images in: PNG and TIFF files as one-slice volumes of gray levels.

A picture has no place in space. It is taken for an axial slice as radiologists look at it: columns run to the patient's
left, rows to the back; a pixel is 1 mm wide and the slice 1 mm thick, whatever resolution the file claims, since that
is the printer's. Its values are the stored gray levels: 0 to 255 or to 65535 for unsigned pixels, anything for signed
and floating ones.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from PIL import Image, TiffImagePlugin

from medcyclegan.errors import InputError
from medcyclegan.io.grid import RAS_FROM_LPS

PICTURE_SUFFIXES = (".png", ".tif", ".tiff")

# ITU-R BT.601: what a gray picture of a color one is, as Pillow and ITK make it.
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class GrayLevels:
    """How the pixels of 2D images are read; not used for volumes.

    Attributes:
        window: HU of gray level 0 and of the brightest, 255 or 65535; None leaves gray levels, which are no CT.
        gray: turn color into gray (ITU-R BT.601); without it, color is refused.
    """

    window: tuple[float, float] | None = None
    gray: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and not self.window[0] < self.window[1]:
            raise InputError(f"the window of the pictures is {self.window}; two rising HU are needed.")


def load_picture(
    path: Path, levels: GrayLevels | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], dict[str, Any]]:
    """Read a picture.

    Returns:
        Array (columns, rows, 1) float32; affine, voxel index to RAS+ mm; metadata: `picture`, the type of the pixels,
        and `unit`, "HU" where a window or signed or floating pixels make it so, else "gray levels".

    Raises:
        InputError: several pages, color whose channels differ (unless `gray`), transparency that hides something, or a
            TIFF that is turned, inverted or of values without a meaning.
    """
    levels = levels or GrayLevels()
    _require_plain(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read: {_reason(error)}.") from error
    size = [n for n in image.GetSize() if n > 1]
    if len(size) != 2:
        raise InputError(
            f"{path}: a picture has two axes of at least 2 pixels, this has "
            f"{' x '.join(str(n) for n in image.GetSize())}.",
            "Give one file per slice, or a volume.",
        )
    array = np.squeeze(sitk.GetArrayFromImage(image))  # (rows, columns) or (rows, columns, components)
    pixel = array.dtype
    values = _one_channel(array.astype(np.float64), pixel, path, levels.gray) if array.ndim == 3 else array
    values = values.astype(np.float32)
    unit = "HU" if np.issubdtype(pixel, np.floating) or np.issubdtype(pixel, np.signedinteger) else "gray levels"
    if levels.window is not None and unit == "gray levels":
        low, high = levels.window
        values = (low + values * ((high - low) / np.iinfo(pixel).max)).astype(np.float32)
        unit = "HU"
    return values.T[:, :, None], RAS_FROM_LPS.copy(), {"picture": str(pixel), "unit": unit}


# TIFF 6.0: tag -> its values that are read as they are stored, the default first, and what it is called.
_PLAIN = {
    258: ((8, 16, 32, 64), "BitsPerSample"),
    262: ((1, 2, 3), "PhotometricInterpretation"),
    274: ((1,), "Orientation"),
    339: ((1, 2, 3), "SampleFormat"),
}
_NEEDED = {256: "ImageWidth", 257: "ImageLength", 258: "BitsPerSample", 262: "PhotometricInterpretation"}


def _require_plain(path: Path) -> None:
    """Refuse what ITK reads in silence as another picture: mirrored, inverted, partly hidden."""
    try:
        with Image.open(path) as picture:
            hidden = picture.info.get("transparency") if picture.mode in ("L", "I", "I;16") else None
            if isinstance(hidden, int) and (np.asarray(picture) == hidden).any():
                raise InputError(f"{path}: parts of the picture are transparent.", "Save it without transparency.")
            tags = dict(picture.tag_v2) if isinstance(picture, TiffImagePlugin.TiffImageFile) else None
            _ = getattr(picture, "n_frames", 1)  # looks for further pages, which may be cut off
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        LookupError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {error}.", "Save it again as PNG.") from None
    if tags is None:
        return
    try:
        twice = _tags_twice(path)
    except struct.error:
        raise InputError(f"{path} cannot be read: the TIFF is cut short within its directory.") from None
    if twice:
        raise InputError(f"{path}: the TIFF gives tag {twice[0]} twice.", "Save it again.")
    if lost := [name for tag, name in _NEEDED.items() if tag not in tags]:
        raise InputError(f"{path}: the TIFF does not say its {', '.join(lost)}.", "Save it again.")
    for tag, (allowed, name) in _PLAIN.items():
        value = tags.get(tag, allowed[0])
        if not set(value if isinstance(value, tuple) else (value,)) <= set(allowed):
            raise InputError(
                f"{path}: the TIFF has {name} {value}, and {', '.join(map(str, allowed))} can be read.",
                "Save it again as a plain TIFF or PNG.",
            )


def _tags_twice(path: Path) -> list[int]:
    """Tags that the first directory of a TIFF has more than once: each reader takes another one of them."""
    content = path.read_bytes()
    order = "<" if content[:2] == b"II" else ">"
    if struct.unpack_from(f"{order}H", content, 2) != (42,):
        return []  # BigTIFF
    (at,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, at)
    tags = [struct.unpack_from(f"{order}H", content, at + 2 + 12 * k)[0] for k in range(count)]
    return [tag for tag, times in Counter(tags).items() if times > 1]


def _one_channel(array: npt.NDArray[np.float64], pixel: np.dtype[Any], path: Path, gray: bool) -> np.ndarray:
    """(rows, columns) from (rows, columns, 2 to 4): gray with or without transparency, or color."""
    components = array.shape[2]
    if components in (2, 4):
        opaque = np.iinfo(pixel).max if np.issubdtype(pixel, np.integer) else 1.0
        if (array[..., -1] != opaque).any():
            raise InputError(f"{path}: parts of the picture are transparent.", "Save it without transparency.")
        array = array[..., :-1]
    if array.shape[2] == 1 or (array == array[..., :1]).all():
        return np.asarray(array[..., 0])
    if not gray:
        raise InputError(
            f"{path}: a color picture.",
            "Give gray ones, or let preparation turn color into gray (--set data.picture_gray=true).",
        )
    return np.asarray(array @ _LUMA)


def _reason(error: RuntimeError) -> str:
    """The sentence of SimpleITK's error that helps, on one line."""
    text = str(error)
    if "sitk::ERROR:" in text or "ITK ERROR:" in text:
        text = re.split(r"(?:sitk::|ITK )ERROR:", text)[-1]
        text = re.sub(r"\w+\(0x[0-9a-f]+\):", "", text)
        if "Unable to determine ImageIO reader" in text:
            return "its content is not of the format that its name says"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
