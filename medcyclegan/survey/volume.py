"""The survey of one volume: plain numbers that are measured once, without judging them.

A survey is small (about 40 kB, 30 kB more with a thumbnail), so that a thousand volumes can be measured by several
processes and compared with each other in one. Preparation stores it in the record of the case. A new number is a field
here, with its measurement; raise `VERSION` then, and what was measured before is measured again.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from PIL import Image
from scipy import ndimage

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import Header, grid_of, read_header, read_values
from medcyclegan.survey.anatomy import SIGNATURES, Anatomy, Coarse, Head, anatomy_of, coarse_copy
from medcyclegan.survey.hounsfield import hu_offset, looks_like_hu

VERSION = 1  # raise it when the same volume gives other numbers, or more of them
PERCENTILES = (1, 50, 99)
METAL_HU = 3000.0
# Voxels of which percentiles and distinct values are taken.
_SAMPLE = 500_000
_AIR_HU = -1024.0
_PIXELS = 96  # height of a thumbnail


@dataclass(frozen=True)
class Survey:
    """Measurements of one volume; None where they could not be made.

    Attributes:
        file: a file or a DICOM folder.
        problem: why it cannot be read; then all else may be None.
        remarks: the reader's warnings.
        grid: shape and affine.
        stored: type on disk, such as "int16"; None of what was in memory.
        header_modality: "MR", "CT", ... as a DICOM header says.
        contrast_agent: whether a DICOM header names a contrast agent; None without such a header.
        not_finite: voxels that are NaN or infinite.
        not_finite_inside: those of them within the body or a few millimetres of it.
        minimum, maximum: of the finite voxels.
        percentiles: 1st, 50th, 99th.
        distinct: number of different values, counted up to 257 in a sample.
        kind: "hu" (values look like Hounsfield units), "hu_offset" (HU + 1024), or "other".
        padding: CT: part of the voxels below -1100 HU, which no matter has.
        metal_ml: CT: volume above 3000 HU.
        digest: BLAKE2b of the float32 voxels in RAS order and of their shape, whatever the format, the order of the
            axes and the place in space.
        anatomy: None where no body was found.
        no_body: why none was found.
        thumbnail: WebP, three planes side by side; empty if not asked for. It is not stored.
    """

    file: Path
    problem: str | None = None
    remarks: tuple[str, ...] = ()
    grid: Grid | None = None
    stored: str | None = None
    header_modality: str | None = None
    contrast_agent: bool | None = None
    not_finite: int = 0
    not_finite_inside: int | None = None
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

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """mm along right, anterior, superior, or the axes nearest to them."""
        return _three(self.grid.spacing[self.grid.ras_order]) if self.grid else None

    @property
    def axes(self) -> str | None:
        """Such as "LPS"."""
        return "".join(str(code) for code in nib.aff2axcodes(self.grid.affine)) if self.grid else None

    @property
    def tilt_degrees(self) -> float | None:
        """Largest angle between an axis of the volume and the patient's."""
        if self.grid is None:
            return None
        cosines = np.abs((self.grid.affine[:3, :3] / self.grid.spacing)[[0, 1, 2], self.grid.ras_order])
        return math.degrees(math.acos(min(1.0, float(cosines.min()))))

    @property
    def constant(self) -> bool:
        """Whether all finite voxels hold the same value."""
        return self.minimum is not None and self.minimum == self.maximum

    @property
    def single_slice(self) -> bool:
        """Whether it is a picture."""
        return self.grid is not None and self.grid.shape[2] == 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, from which `from_dict` makes exactly this survey, except for the thumbnail."""
        return {"version": VERSION, **{f.name: plain(getattr(self, f.name)) for f in fields(self)[:-1]}}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Survey:
        """The survey of `to_dict`.

        Raises:
            ValueError, KeyError, TypeError: it is none, or of another version, and has to be measured again.
        """
        values: dict[str, Any] = {name: tuples(value) for name, value in content.items()}
        if (version := values.pop("version")) != VERSION:
            raise ValueError(f"a survey of version {version}; this program measures version {VERSION}")
        if content["anatomy"] is not None:
            body = dict(zip(content["anatomy"], map(tuples, content["anatomy"].values()), strict=True))
            cube = np.frombuffer(base64.b85decode(body["signatures"]), np.int8).reshape(SIGNATURES)
            head = Head(**content["anatomy"]["head"]) if body["head"] is not None else None
            values["anatomy"] = Anatomy(**{**body, "head": head, "signatures": cube})
        grid = None if content["grid"] is None else Grid.from_dict(content["grid"])
        return cls(**{**values, "file": Path(content["file"]), "grid": grid})


def measure_header(file: Path) -> Survey:
    """The survey of a header, without the voxels: thousands of files per minute."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            header = read_header(file)
    except (InputError, OSError) as error:
        return Survey(file, problem=_problem(file, error))
    return replace(_of_header(header, file), remarks=_remarks(caught, file))


def measure_file(file: Path, *, thumbnail: bool = False) -> Survey:
    """The survey of a file; if the file cannot be used, the survey says why.

    Takes the memory of the volume as float32 and of what its reader needs. A fault that no reader foresaw is raised.

    Args:
        file: a volume in any format that `read_volume` reads.
        thumbnail: draw one.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            values, _, _ = read_values(file)
            header = read_header(file)
    except (InputError, OSError) as error:
        return Survey(file, problem=_problem(file, error))
    survey = measure_values(values, header, file, thumbnail=thumbnail)
    return replace(survey, remarks=_remarks(caught, file))


def measure_volume(
    volume: MetaTensor, *, body: npt.NDArray[np.bool_] | None = None, modality: str | None = None, anatomy: bool = True
) -> Survey:
    """The survey of a volume (1, X, Y, Z) from `read_volume`; arguments as in `measure_values`."""
    header = Header(grid_of(volume), "", volume.meta.get("modality"))
    file = Path(str(volume.meta.get("filename_or_obj") or "the volume"))
    survey = measure_values(volume.numpy()[0], header, file, body=body, modality=modality, anatomy=anatomy)
    return replace(survey, stored=None)


def measure_values(
    values: npt.NDArray[np.floating],
    header: Header,
    file: Path,
    *,
    body: npt.NDArray[np.bool_] | None = None,
    modality: str | None = None,
    anatomy: bool = True,
    thumbnail: bool = False,
) -> Survey:
    """The survey of voxels that are read already.

    Args:
        values: (X, Y, Z), any values.
        header: of the file.
        file: named in the survey.
        body: (X, Y, Z), where the body is known; else it is looked for.
        modality: "MR" or "CT", for finding the body; by default what the values look like.
        anatomy: measure the body; without it there is no thumbnail either.
        thumbnail: draw one.
    """
    affine = header.grid.affine
    orientation = nib.orientations.io_orientation(affine)
    finite = np.isfinite(values)
    missing = values.size - int(np.count_nonzero(finite))
    survey = replace(
        _of_header(header, file),
        not_finite=missing,
        digest=_digest(np.asarray(nib.orientations.apply_orientation(values, orientation))),
    )
    if missing == values.size:
        return survey
    low, high = (float(f(values, where=finite, initial=start)) for f, start in ((np.min, np.inf), (np.max, -np.inf)))
    survey = replace(survey, minimum=low, maximum=high)
    if survey.constant:
        return survey
    if missing:
        kind = "hu" if looks_like_hu(np.where(finite, values, low)) else "other"
        values = np.where(finite, values, np.float32(_AIR_HU if kind == "hu" else low))
    kind = "hu" if looks_like_hu(values) else "hu_offset" if hu_offset(values) is not None else "other"
    sample = values.ravel(order="K")[:: max(1, values.size // _SAMPLE)]
    survey = replace(
        survey,
        percentiles=_three(np.percentile(sample, PERCENTILES)),
        distinct=min(257, len(np.unique(sample))),
        kind=kind,
    )
    offset = 1024.0 if kind == "hu_offset" else 0.0
    if kind != "other":
        voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
        survey = replace(
            survey,
            metal_ml=float(np.count_nonzero(values >= METAL_HU + offset) * voxel_ml),
            padding=float(np.mean(sample - offset < -1100)),
        )
    if not anatomy:
        return survey
    coarse = coarse_copy(values, affine)
    if kind != "other":
        coarse = Coarse(np.clip(coarse.values - np.float32(offset), -1100, None), coarse.spacing)
    known = None if body is None else coarse_copy(body.astype(np.float32), affine).values > 0.5
    middle = None
    try:
        found, inside = anatomy_of(coarse, modality or ("MR" if kind == "other" else "CT"), known)
        survey = replace(survey, anatomy=found)
        middle = [float(center) for center in ndimage.center_of_mass(inside)]
        if missing:
            turned = np.asarray(nib.orientations.apply_orientation(~finite, orientation))
            survey = replace(survey, not_finite_inside=_count_inside(turned, inside))
    except InputError as error:
        survey = replace(survey, no_body=str(error))
    return replace(survey, thumbnail=_thumbnail(coarse, middle, kind)) if thumbnail else survey


def _of_header(header: Header, file: Path) -> Survey:
    return Survey(
        file,
        grid=header.grid,
        stored=header.stored,
        header_modality=header.modality,
        contrast_agent=header.contrast_agent,
    )


def _three(values: npt.NDArray[np.floating]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _problem(file: Path, error: InputError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{file} cannot be read: {error.strerror or error}. Check that you may read it, or copy it again."
    return str(error)


def _remarks(caught: list[warnings.WarningMessage], file: Path) -> tuple[str, ...]:
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
    """Number of voxels of `wrong` in the body, whose coarse mask is dilated by one coarse voxel to be safe."""
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


def plain(value: Any) -> Any:
    """A dataclass as JSON data: tuples become lists, an int8 array becomes text."""
    if isinstance(value, Grid):
        return value.to_dict()
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, np.ndarray):
        return base64.b85encode(np.ascontiguousarray(value, np.int8).tobytes()).decode()
    if isinstance(value, Path):
        return str(value)
    return [plain(part) for part in value] if isinstance(value, tuple) else value


def tuples(value: Any) -> Any:
    """JSON lists back to tuples."""
    return tuple(tuples(part) for part in value) if isinstance(value, list) else value
