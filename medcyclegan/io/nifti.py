"""NIfTI-1 and NIfTI-2 in a single file: the header as the standard reads it, and its geometry for results.

Words used here. *Coded*: the header says what its orientation matrices mean only where `sform_code` or `qform_code` is
above 0. *Fields*: the geometry of a header under the standard's own names, as MONAI's reader keeps them too.

The standard is nifti1.h (R. W. Cox et al., 2003). Other readers silently repair contradictions, each in its own
way; here they are refused, or read as the standard says, with a warning.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medcyclegan.errors import InputError
from medcyclegan.io.grid import DISAGREEMENT_MM, UNIT_LENGTH, Grid
from medcyclegan.io.stored import ANOTHER_COPY, GZIP_MAGIC, Part, StoredVolume, checked, header_error

# What places the voxels. `pixdim` begins with qfac and three voxel sizes; three bits of `xyzt_units` are the unit.
GEOMETRY = (
    *("sform_code", "qform_code", "xyzt_units", "pixdim", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)

_VERSIONS = {
    348: (nib.nifti1.header_dtype, b"n+1\0", 352),
    540: (nib.nifti2.header_dtype, b"n+2\0\r\n\x1a\n", 544),
}
_TYPES = {
    2: np.uint8,
    4: np.int16,
    8: np.int32,
    16: np.float32,
    64: np.float64,
    256: np.int8,
    512: np.uint16,
    768: np.uint32,
    1024: np.int64,
    1280: np.uint64,
}
_COMPLEX, _COLOR = (32, 1792, 2048), (128, 2304)
# mm in the unit of a header; 0 is no unit, which every program takes for mm.
_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
# A unit that makes the volume shorter or longer than these is wrong if mm give a plausible body.
_LENGTHS_MM, _BODY_MM = (1.0, 1e4), (10.0, 2000.0)
# Codes from "unknown" to "other template".
_CODES = range(6)
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)


def read_header(path: Path) -> StoredVolume:
    """The header of a .nii or .nii.gz file; the content decides whether it is compressed.

    Raises:
        InputError: it is no NIfTI, or contradicts the standard or itself.
    """
    with path.open("rb") as stream:
        packed = stream.read(2) == GZIP_MAGIC
    try:
        return _header(path, packed)
    except InputError:
        if packed:
            _require_intact(path)  # a damaged stream explains any header
        raise


def _header(path: Path, packed: bool) -> StoredVolume:
    with gzip.open(path) if packed else path.open("rb") as stream:
        try:
            start = stream.read(max(_VERSIONS))
        except _DAMAGE as error:
            raise InputError(f"{path}: its compressed data are damaged: {error}.", ANOTHER_COPY) from None
    fields, least = _fields(start, path)
    remarks = []
    if packed != path.name.lower().endswith(".gz"):
        remarks.append(f"it is {'' if packed else 'not '}compressed, other than its name says")
    dim = [int(n) for n in fields["dim"]]
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise header_error(path, f"gives the dimensions {dim}, which are none")
    shape = tuple(dim[1 : dim[0] + 1])
    offset = float(fields["vox_offset"])
    if not offset.is_integer() or not least <= offset < 2**53:
        raise header_error(
            path, f"lets the voxels begin at byte {offset:g} (vox_offset), and they begin at {least} or later"
        )
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0:  # nifti1.h: "If the scl_slope field is nonzero, then each voxel value should be scaled"
        if intercept != 0:
            remarks.append(
                f"its slope is 0, which means unscaled: the intercept of {intercept:g} is not added, though ITK adds it"
            )
        slope, intercept = 1.0, 0.0
    if not np.isfinite([slope, intercept]).all():
        raise header_error(
            path,
            f"scales the voxels by slope {slope:g} and intercept {intercept:g} (scl_slope, scl_inter), so that their "
            "values are unknown",
            "Set slope 1 and intercept 0 if the values are stored as they are.",
        )
    kept = {key: _plain(fields[key]) for key in GEOMETRY}
    # Of other shapes nothing more is asked: they are refused for what they are.
    affine, doubts = geometry(kept, shape, str(path)) if len(shape) >= 3 else (np.eye(4), [])
    return checked(
        StoredVolume(
            path=path,
            shape=shape,
            dtype=_dtype(fields, path),
            affine=affine,
            parts=(Part(path) if packed else Part(path, start=int(offset)),),
            encoding="gzip" if packed else "raw",
            skip=int(offset) if packed else 0,
            slope=slope,
            intercept=intercept,
            remarks=(*remarks, *doubts),
            meta=kept,
        )
    )


@np.errstate(all="ignore")  # what overflows is not finite, and refused
def geometry(fields: Mapping[str, Any], shape: tuple[int, ...], name: str) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Where the voxels lie: by the sform if it is coded, else by the qform, else by the voxel size alone.

    Args:
        fields: those of `GEOMETRY`.
        shape: voxels along at least three axes.
        name: of the file.

    Returns:
        The affine, voxel index to RAS+ mm, and what is doubtful about it.

    Raises:
        InputError: the geometry that counts cannot be understood.
    """
    codes = {key: int(fields[key]) for key in ("sform_code", "qform_code")}
    for key, code in codes.items():
        if code not in _CODES:
            raise header_error(name, f"has {key} {code}; the standard knows 0 to {_CODES[-1]}")
    unit = int(fields["xyzt_units"]) & 7
    if unit not in _UNITS:
        raise header_error(name, f"gives lengths in unit {unit}; the standard knows 0 to {max(_UNITS)}")
    sform = np.vstack([*(np.asarray(fields[f"srow_{axis}"], dtype=np.float64) for axis in "xyz"), [0, 0, 0, 1]])
    size = np.asarray(fields["pixdim"], dtype=np.float64)[1:4]
    shown = " x ".join(f"{s:g}" for s in size)
    remarks = []
    if codes["sform_code"]:
        affine = sform
        if contradiction := _contradiction(fields, sform, shape, name):
            remarks.append(f"{contradiction}; the sform is used")
    else:
        if not (np.isfinite(size).all() and (size != 0).all()):
            raise header_error(name, f"gives a voxel size of {shown} (pixdim)")
        if (size < 0).any():
            remarks.append(
                f"its header gives a negative voxel size ({shown}); it is taken without "
                "its sign, as nibabel does, and ITK mirrors that axis: check left and right"
            )
        if codes["qform_code"]:
            affine = _qform(fields, name)
        else:
            affine = np.diag([*(np.abs(size) * [-1, 1, 1]), 1.0])
            affine[:3, 3] = -affine[:3, :3] @ (np.array(shape[:3]) - 1) / 2  # as nibabel places it
            remarks.append(unknown_orientation("neither sform nor qform is coded"))
    longest = float((np.linalg.norm(affine[:3, :3], axis=0) * shape[:3]).max())
    if not _LENGTHS_MM[0] <= longest * _UNITS[unit] <= _LENGTHS_MM[1] and _BODY_MM[0] <= longest <= _BODY_MM[1]:
        remarks.append(
            f"by the unit in its header ({'meter' if unit == 1 else 'micrometer'}) it would be "
            f"{longest * _UNITS[unit]:.3g} mm long; its lengths are taken for mm"
        )
    else:
        affine[:3] *= _UNITS[unit]
    return affine, remarks


def whole(fields: Mapping[str, Any]) -> bool:
    """Whether `fields` hold the whole geometry of a header, and not the codes alone or nothing."""
    return all(key in fields for key in GEOMETRY)


def kept_fields(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """Those of a volume's metadata that `write_volume` takes as `nifti`; None if it does not come from NIfTI."""
    if "sform_code" not in meta or "qform_code" not in meta:
        return None
    keys = GEOMETRY if whole(meta) else ("sform_code", "qform_code")
    return {key: _plain(np.asarray(meta[key])) for key in keys}


def unknown_orientation(because: str) -> str:
    """The remark that a header does not say which side is which."""
    return f"the orientation is unknown ({because}): left and right cannot be told apart"


def _require_intact(path: Path) -> None:
    """Refuse a compressed file that does not fit its checksum."""
    with gzip.open(path) as stream:
        try:
            while stream.read(1 << 20):
                pass
        except _DAMAGE as error:
            if "Not a gzipped file" not in str(error):  # which only follows a whole stream
                raise InputError(f"{path}: its compressed data are damaged: {error}.", ANOTHER_COPY) from None


def _fields(start: bytes, path: Path) -> tuple[Any, int]:
    """The header's fields, none of them mended, and the first byte at which voxels may begin."""
    for size, (dtype, magic, least) in _VERSIONS.items():
        for order in ("<", ">"):
            if start[:4] != np.array(size, f"{order}i4").tobytes():
                continue
            if len(start) < size:
                raise InputError(
                    f"{path}: it is cut short: {len(start)} of {size} bytes of its header are there.", ANOTHER_COPY
                )
            fields = np.frombuffer(start, dtype.newbyteorder(order), count=1)[0]
            found = start[4:12] if size == 540 else start[344:348]
            if found == magic:
                return fields, least
            if found[:3] in (b"ni1", b"ni2"):
                raise InputError(f"{path}: it is the header of a NIfTI pair, whose voxels lie in an .img file.")
            raise header_error(path, f"bears the mark {found!r}; a single NIfTI file has {magic!r}")
    raise InputError(f"{path} cannot be read: its content is not NIfTI.")


def _dtype(fields: Any, path: Path) -> np.dtype[Any]:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code in _COMPLEX:
        raise InputError(f"{path}: complex values.", "Give the magnitude image.")
    if code in _COLOR:
        raise InputError(f"{path}: color pixels.", "Give a volume with one value per voxel.")
    if code not in _TYPES:
        raise InputError(f"{path}: values of type {code} (datatype), which cannot be read.")
    dtype = np.dtype(_TYPES[code])
    if bits != 8 * dtype.itemsize:
        raise header_error(
            path,
            f"contradicts itself: datatype {code} ({dtype}) has {8 * dtype.itemsize} bits per voxel, and bitpix is "
            f"{bits}",
        )
    return dtype.newbyteorder(fields.dtype["dim"].base.byteorder)


def _qform(fields: Mapping[str, Any], name: str) -> npt.NDArray[np.float64]:
    """nifti1.h, method 2: a rotation by a unit quaternion (a, b, c, d) with a >= 0, sizes, qfac, and a shift."""
    qfac = float(np.asarray(fields["pixdim"])[0])
    if qfac not in (-1.0, 0.0, 1.0):  # 0 "should not occur" and means 1
        raise InputError(f"{name}: its qform has a qfac (pixdim[0]) of {qfac:g}, and it is 1 or -1.")
    imaginary = np.array([float(fields[f"quatern_{axis}"]) for axis in "bcd"])
    shift = [float(fields[f"qoffset_{axis}"]) for axis in "xyz"]
    length = float(np.linalg.norm(imaginary))
    if not np.isfinite([length, *shift]).all() or length > 1 + UNIT_LENGTH:
        raise InputError(f"{name}: its qform is no rotation (quatern_b, c, d of length {length:g}).")
    real = np.sqrt(max(0.0, 1 - length**2))
    w, x, y, z = np.array([real, *imaginary]) / np.hypot(real, length)
    rotation = np.array(
        [
            [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), w * w + y * y - x * x - z * z, 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), w * w + z * z - x * x - y * y],
        ]
    )
    size = np.abs(np.asarray(fields["pixdim"], dtype=np.float64)[1:4])
    affine = np.eye(4)
    affine[:3, :3] = rotation * size * [1, 1, -1 if qfac < 0 else 1]
    affine[:3, 3] = shift
    return affine


def _contradiction(
    fields: Mapping[str, Any], sform: npt.NDArray[np.float64], shape: tuple[int, ...], name: str
) -> str | None:
    """How qform or voxel size contradict the sform; None if they do not."""
    unit = _UNITS[int(fields["xyzt_units"]) & 7]
    size = np.asarray(fields["pixdim"], dtype=np.float64)[1:4]
    if int(fields["qform_code"]):
        distance = np.inf
        try:
            usable = bool(np.isfinite(size).all() and (size > 0).all())
            size_3d = (shape[0], shape[1], shape[2])
            distance = Grid(size_3d, sform).distance(Grid(size_3d, _qform(fields, name))) * unit
        except ValueError:
            usable = False
        distance = distance if usable else np.inf
        if not distance <= DISAGREEMENT_MM:
            apart = f"by up to {distance:.1f} mm" if np.isfinite(distance) else "(the qform is unusable)"
            return f"sform and qform disagree {apart}"
        return None
    step = np.abs(np.linalg.norm(sform[:3, :3], axis=0) - size) * unit
    if not (step * (np.array(shape[:3]) - 1)).max() <= DISAGREEMENT_MM:
        return "the voxel size in the header differs from that of the sform"
    return None


def _plain(value: Any) -> Any:
    """A number or an array of this machine's byte order, which every program can hold."""
    array = np.asarray(value)
    if array.ndim == 0:
        return int(array) if np.issubdtype(array.dtype, np.integer) else float(array)
    with np.errstate(invalid="ignore"):  # some NaN complain
        return array.astype(np.float64)
