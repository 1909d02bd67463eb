"""The facts of one volume: plain numbers that are measured once, without judging them.

They are small (about 30 kB with a thumbnail), so that a thousand volumes can be measured by several processes and
compared with each other in one.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.headers import Header, read_header
from medcyclegan.io.reader import read_values
from medcyclegan.qc.anatomy import Anatomy, Coarse, anatomy, coarse_copy
from medcyclegan.qc.hounsfield import hu_offset, looks_like_hu

PERCENTILES = (1, 50, 99)
METAL_HU = 3000.0
# Voxels of which percentiles and distinct values are taken.
_SAMPLE = 500_000
_AIR_HU = -1024.0
_PIXELS = 96  # height of a thumbnail


@dataclass(frozen=True)
class Survey:
    """What was measured of one file; None where it could not be.

    Attributes:
        file: the volume, a file or a DICOM folder.
        problem: why it cannot be read; then all else may be None.
        remarks: what the reader warned of.
        shape: voxels along the file's axes.
        spacing: mm along right, anterior, superior, or the axes nearest to them.
        axes: such as "LPS".
        tilt_degrees: largest angle between an axis of the volume and the patient's.
        stored: type on disk, such as "int16".
        header_modality: "MR", "CT", ... as a DICOM header says.
        contrast_agent: whether a DICOM header names a contrast agent; None without such a header.
        not_finite: voxels that are NaN or infinite.
        not_finite_inside: those of them within the body or a few millimetres of it.
        constant: whether all finite voxels hold the same value.
        minimum, maximum: of the finite voxels.
        percentiles: 1st, 50th, 99th.
        distinct: number of different values, counted up to 257 in a sample.
        kind: "hu" (values look like Hounsfield units), "hu_offset" (they would, less 1024), or "other".
        padding: CT: part of the voxels below -1100 HU, which no matter has.
        metal_ml: CT: volume above 3000 HU.
        digest: of the voxels in RAS order, whatever the format and the order of the axes.
        anatomy: None where no body was found.
        no_body: why none was found.
        thumbnail: WebP, three planes side by side; empty if not asked for.
    """

    file: Path
    problem: str | None = None
    remarks: tuple[str, ...] = ()
    shape: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    axes: str | None = None
    tilt_degrees: float | None = None
    stored: str | None = None
    header_modality: str | None = None
    contrast_agent: bool | None = None
    not_finite: int = 0
    not_finite_inside: int | None = None
    constant: bool = False
    minimum: float | None = None
    maximum: float | None = None
    percentiles: tuple[float, float, float] | None = None
    distinct: int | None = None
    kind: str | None = None
    padding: float | None = None
    metal_ml: float | None = None
    digest: str | None = None
    anatomy: Anatomy | None = None
    no_body: str | None = None
    thumbnail: bytes = b""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without pictures."""
        body = self.anatomy
        head = body.head if body else None
        return {
            "file": str(self.file),
            "problem": self.problem,
            "shape": list(self.shape) if self.shape else None,
            "spacing_mm": _rounded(self.spacing),
            "axes": self.axes,
            "tilt_degrees": _rounded(self.tilt_degrees),
            "stored": self.stored,
            "header_modality": self.header_modality,
            "contrast_agent": self.contrast_agent,
            "not_finite": self.not_finite,
            "minimum": _rounded(self.minimum),
            "maximum": _rounded(self.maximum),
            "percentiles": dict(zip(map(str, PERCENTILES), _rounded(self.percentiles), strict=True))
            if self.percentiles
            else None,
            "kind": self.kind,
            "metal_ml": _rounded(self.metal_ml),
            "digest": self.digest,
            "body": {
                "extent_mm": _rounded(body.extent_mm),
                "liters": _rounded(body.liters),
                "contact_cm2": _rounded(body.contact_cm2),
                "air_hu": _rounded(body.air),
                "table": body.table,
            }
            if body
            else None,
            "head": {key: _rounded(value) for key, value in vars(head).items()} if head else None,
        }


def measure_header(file: Path) -> Survey:
    """The facts that a header tells, without the voxels: thousands of files per minute."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            header = read_header(file)
    except (InputError, OSError) as error:
        return Survey(file, problem=_problem(file, error))
    return Survey(file, remarks=_told(caught, file), **_of_header(header))


def measure(file: Path, *, thumbnail: bool = False) -> Survey:
    """All facts of a file; whatever is wrong with it becomes a fact too.

    Takes the memory of the volume as float32 and of what its reader needs. A fault that no reader foresaw is raised.

    Args:
        file: a volume in any format that `read_volume` reads.
        thumbnail: draw one.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            values, grid, _ = read_values(file)
            header = read_header(file)
    except (InputError, OSError) as error:
        return Survey(file, problem=_problem(file, error))
    return measure_values(values, grid, header, file, remarks=_told(caught, file), thumbnail=thumbnail)


def measure_values(
    values: npt.NDArray[np.floating],
    grid: Grid,
    header: Header,
    file: Path,
    *,
    remarks: tuple[str, ...] = (),
    thumbnail: bool = False,
) -> Survey:
    """The facts of voxels that are read already.

    Args:
        values: (X, Y, Z), any values.
        grid: of the values.
        header: of the file.
        file: named in the facts.
        remarks: of the reader.
        thumbnail: draw one.
    """
    told: dict[str, Any] = _of_header(header)
    orientation = nib.orientations.io_orientation(grid.affine)
    digest = _digest(np.asarray(nib.orientations.apply_orientation(values, orientation)))
    finite = np.isfinite(values)
    missing = values.size - int(np.count_nonzero(finite))
    told |= {"not_finite": missing, "digest": digest}
    if missing == values.size:
        return Survey(file, remarks=remarks, **told)
    low, high = (float(f(values, where=finite, initial=start)) for f, start in ((np.min, np.inf), (np.max, -np.inf)))
    told |= {"minimum": low, "maximum": high, "constant": low == high}
    if low == high:
        return Survey(file, remarks=remarks, **told)
    if missing:
        kind = "hu" if looks_like_hu(np.where(finite, values, low)) else "other"
        values = np.where(finite, values, np.float32(_AIR_HU if kind == "hu" else low))
    kind = "hu" if looks_like_hu(values) else "hu_offset" if hu_offset(values) is not None else "other"
    sample = values.ravel(order="K")[:: max(1, values.size // _SAMPLE)]
    percentiles = [float(value) for value in np.percentile(sample, PERCENTILES)]
    told |= {
        "percentiles": (percentiles[0], percentiles[1], percentiles[2]),
        "distinct": min(257, len(np.unique(sample))),
        "kind": kind,
    }
    offset = 1024.0 if kind == "hu_offset" else 0.0
    if kind != "other":
        voxel_ml = abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000
        told["metal_ml"] = float(np.count_nonzero(values >= METAL_HU + offset) * voxel_ml)
        told["padding"] = float(np.mean(sample - offset < -1100))
    coarse = coarse_copy(values, grid.affine)
    if kind != "other":
        coarse = Coarse(np.clip(coarse.values - np.float32(offset), -1100, None), coarse.spacing)
    middle = None
    try:
        found, body = anatomy(coarse, "MR" if kind == "other" else "CT")
        told["anatomy"] = found
        middle = [float(center) for center in ndimage.center_of_mass(body)]
        if missing:
            turned = np.asarray(nib.orientations.apply_orientation(~finite, orientation))
            told["not_finite_inside"] = _count_inside(turned, body)
    except InputError as error:
        told["no_body"] = str(error)
    if thumbnail:
        told["thumbnail"] = _thumbnail(coarse, middle, kind)
    return Survey(file, remarks=remarks, **told)


def _of_header(header: Header) -> dict[str, Any]:
    affine = header.grid.affine
    order = np.argsort(nib.orientations.io_orientation(affine)[:, 0])
    spacing = header.grid.spacing[order]
    cosines = np.abs((affine[:3, :3] / header.grid.spacing)[[0, 1, 2], order])
    return {
        "shape": header.grid.shape,
        "spacing": (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        "axes": "".join(str(code) for code in nib.aff2axcodes(affine)),
        "tilt_degrees": math.degrees(math.acos(min(1.0, float(cosines.min())))),
        "stored": header.stored,
        "header_modality": header.modality,
        "contrast_agent": header.contrast_agent,
    }


def _problem(file: Path, error: InputError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{file} cannot be read: {error.strerror or error}. Check that you may read it, or copy it again."
    return str(error)


def _told(caught: list[warnings.WarningMessage], file: Path) -> tuple[str, ...]:
    """The reader's own warnings, once each, without the name of the file that they begin with."""
    own = [
        str(w.message) for w in caught if issubclass(w.category, UserWarning) and str(w.message).startswith(str(file))
    ]
    return tuple(dict.fromkeys(text.removeprefix(f"{file}: ") for text in own))


def _digest(turned: npt.NDArray[Any]) -> str:
    digest = hashlib.blake2b(repr(turned.shape).encode(), digest_size=16)
    for start in range(0, turned.shape[0], 16):
        # Adding 0 makes -0 the same as 0.
        digest.update((turned[start : start + 16].astype(np.float32) + np.float32(0)).tobytes())
    return digest.hexdigest()


def _count_inside(wrong: npt.NDArray[np.bool_], body: npt.NDArray[np.bool_]) -> int:
    """How many voxels of `wrong` lie in the body, whose coarse mask is made one coarse voxel larger to be safe."""
    larger = np.asarray(ndimage.binary_dilation(body, np.ones((3, 3, 3), np.bool_)))
    index = np.argwhere(wrong)
    factors = np.array(wrong.shape) // np.array(body.shape)
    places = np.minimum(index // factors, np.array(body.shape) - 1)
    return int(larger[tuple(places.T)].sum())


def _thumbnail(coarse: Coarse, middle: list[float] | None, kind: str) -> bytes:
    """Axial, coronal and sagittal slice through the body's center, radiological, as one small WebP."""
    values, spacing = coarse.values, coarse.spacing
    low, high = (-200.0, 1000.0) if kind != "other" else np.percentile(values, (1, 99.5))
    gray = (255 * np.clip((values - low) / (high - low if high > low else 1), 0, 1)).astype(np.uint8)
    at = [n // 2 for n in gray.shape] if middle is None else [round(center) for center in middle]
    tiles = []
    for cut, across, up in ((2, 0, 1), (1, 0, 2), (0, 1, 2)):
        picture = np.take(gray, at[cut], axis=cut).T[::-1, ::-1]
        height, width = picture.shape[0] * spacing[up], picture.shape[1] * spacing[across]
        size = (max(1, min(2 * _PIXELS, round(_PIXELS * width / height))), _PIXELS)
        tiles.append(np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size)))
    stream = io.BytesIO()
    Image.fromarray(np.concatenate(tiles, axis=1)).save(stream, format="WEBP", quality=60)
    return stream.getvalue()


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
