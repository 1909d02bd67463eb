"""Volumes from files: NIfTI, MetaImage, NRRD, DICOM in, one kind of MetaTensor out, or one sentence that says why not.

Words used here. *Volume*: a MetaTensor of shape (1, X, Y, Z), float32, whose affine takes a voxel index to RAS+
millimeters (float64).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from nibabel.spatialimages import SpatialImage

from medcyclegan.errors import InputError
from medcyclegan.io.dicom.files import LIBRARY_ERRORS, holds_dicom, split_choice
from medcyclegan.io.dicom.series import load_series, source_series
from medcyclegan.io.formats import describe, suffix_of
from medcyclegan.io.grid import RAS_FROM_LPS, SHEAR_COSINE, Grid, reordered
from medcyclegan.io.itk import SimpleITKReader, itk_affine
from medcyclegan.io.listing import list_volumes, volume_files
from medcyclegan.io.nifti import GEOMETRY, geometry
from medcyclegan.io.pictures import PICTURE_SUFFIXES, GrayLevels, load_picture
from medcyclegan.io.plausible import MATTER_HU, refuse_impossible_geometry, refuse_impossible_hu
from medcyclegan.io.stored import StoredVolume, read_voxels, scaled
from medcyclegan.io.tree import VOLUME_SUFFIXES, case_id

__all__ = [
    "VOLUME_SUFFIXES",
    "Header",
    "SimpleITKReader",
    "as_volume",
    "case_id",
    "checked_grid",
    "grid_of",
    "itk_affine",
    "list_volumes",
    "read_header",
    "read_mask",
    "read_values",
    "read_volume",
    "volume_files",
]

_ONE_VALUE, _MAGNITUDE = "Give a volume with one value per voxel.", "Give the magnitude image."


@dataclass(frozen=True)
class Header:
    """A header.

    Attributes:
        grid: shape and affine.
        stored: type of the values on disk, such as "int16".
        modality: "MR", "CT", ... of DICOM; None elsewhere.
        contrast_agent: whether DICOM names a contrast agent; None elsewhere.
    """

    grid: Grid
    stored: str
    modality: str | None = None
    contrast_agent: bool | None = None


def read_volume(path: str | os.PathLike[str], levels: GrayLevels | None = None) -> MetaTensor:
    """Read a volume from a .nii, .nii.gz, .mha, .mhd or .nrrd file, or a DICOM series from a folder, a zip or a file.

    A 2D image (.png, .tif, .tiff) is a volume of one slice, understood as `levels` says: see `io.pictures`.

    Of a folder or zip with several series, `PATH#DIGITS` is the one whose SeriesInstanceUID ends in these digits; for
    DICOM see `io.dicom.series`.

    NIfTI-1 and NIfTI-2 of either byte order are scaled by their slope and intercept; the affine is the sform if that is
    coded, else the qform (nibabel's rule), in mm whatever unit the header names. The same scan stored in any of the
    formats gives the same result. The metadata hold `filename_or_obj`, `original_affine`, `spatial_shape`, `space`, for
    NIfTI the header's own geometry (`io.nifti.GEOMETRY`), and for DICOM `modality`.

    Returns:
        (1, X, Y, Z) float32 MetaTensor, contiguous, on the CPU; `affine` float64, voxel index to RAS+ mm.

    Raises:
        InputError: the file is missing, unreadable, cut short, not one scalar 3D volume of at least 2 voxels along each
            axis, has no invertible affine, or holds non-finite values or a single value only; or it is DICOM that
            `load_series` refuses.

    Warns:
        UserWarning: the orientation is not coded, two geometries in the header disagree, something in it is doubtful
            or missing but has one meaning, bytes follow the voxels, the axes are sheared, or a DICOM gantry tilt was
            corrected.
    """
    array, affine, meta = _load(Path(path), levels)
    return _checked_volume(array, affine, meta, str(path))


def read_values(path: str | os.PathLike[str]) -> tuple[np.ndarray, Grid, dict[str, Any]]:
    """Read a file for inspection: as `read_volume`, but values may be constant or not finite.

    Returns:
        (X, Y, Z) float32, its grid and the metadata `modality` (DICOM) or the header's geometry (NIfTI).

    Raises:
        InputError: as `read_volume`, but not for the values.
    """
    array, affine, meta = _load(Path(path))
    return array, checked_grid(array.shape, affine, str(path)), meta


def read_header(path: Path) -> Header:
    """The header of one volume, as `read_volume` reads it; its voxels may still be damaged.

    Raises:
        InputError: there is none, or it does not describe one 3D volume.

    Warns:
        UserWarning: what is doubtful about it.
    """
    if path.is_dir() or not suffix_of(path.name):
        if not holds_dicom(path):
            raise InputError(
                f"{path}: no volume that can be read.", f"Give one of {', '.join(VOLUME_SUFFIXES)}, DICOM."
            )
        return _dicom_header(path)
    stored = _described(path)
    return Header(checked_grid(stored.shape, stored.affine, str(path)), stored.kind)


def read_mask(path: str | os.PathLike[str], like: Grid) -> npt.NDArray[np.bool_]:
    """Read a binary mask of the voxels of the grid `like`, whatever the order and direction of its own axes.

    Returns:
        (X, Y, Z) bool.

    Raises:
        InputError: the file cannot be read, its voxels are others (more than 0.01 mm away), it is empty, or holds
            anything but 0 and one other value.
    """
    array, affine, meta = _load(Path(path))
    grid = checked_grid(array.shape, affine, str(path), "picture" in meta)
    turned = reordered(array, grid, like)
    if turned is None:
        raise InputError(
            f"{path}: the mask lies on another grid than its volume. "
            f"Mask: {_describe(grid)}. Volume: {_describe(like)}.",
            "Resample the mask onto the grid of the volume (nearest neighbor).",
        )
    values = np.unique(turned)
    if not values.any():
        raise InputError(f"{path}: the mask is empty (every voxel is 0).")
    if len(values) > 2 or (len(values) == 2 and values[0] != 0 and values[1] != 0) or not np.isfinite(values).all():
        shown = ", ".join(f"{value:g}" for value in values[:5]) + (", ..." if len(values) > 5 else "")
        raise InputError(
            f"{path}: a mask holds 0 and one other value; this file holds {len(values)} values ({shown}).",
            "Threshold it first.",
        )
    return np.ascontiguousarray(turned != 0)


def grid_of(volume: MetaTensor) -> Grid:
    """The grid of a volume of shape (1, X, Y, Z)."""
    if volume.ndim != 4:
        raise ValueError(f"a volume has shape (1, X, Y, Z), got {tuple(volume.shape)}")
    shape = (int(volume.shape[1]), int(volume.shape[2]), int(volume.shape[3]))
    return Grid(shape, volume.affine.detach().cpu().numpy().astype(np.float64))


def as_volume(image: str | os.PathLike[str] | MetaTensor | SpatialImage | sitk.Image) -> MetaTensor:
    """A volume from a path or image object: the same checks and the same result as `read_volume` of its file.

    Args:
        image: a path, a MetaTensor of shape (1, X, Y, Z) or (X, Y, Z) with its affine, a nibabel image or a SimpleITK
            image.

    Returns:
        (1, X, Y, Z) float32 MetaTensor as `read_volume` gives; never shares memory that the caller may change.

    Raises:
        InputError: as in `read_volume`.
        TypeError: `image` is of another kind, for instance a tensor without an affine.
    """
    if isinstance(image, str | os.PathLike):
        return read_volume(image)
    if isinstance(image, MetaTensor):
        return _from_metatensor(image)
    if isinstance(image, SpatialImage):
        name = image.get_filename() or "the given nibabel image"
        dtype = np.dtype(image.get_data_dtype())
        if dtype.fields is not None:
            raise InputError(f"{name}: color pixels ({dtype}).", _ONE_VALUE)
        _check_kind(image.shape, name, imaginary=np.issubdtype(dtype, np.complexfloating))
        affine, meta = _of_nibabel(image, name)
        return _checked_volume(_float32(np.asanyarray(image.dataobj)), affine, meta, name)
    if isinstance(image, sitk.Image):
        name = "the given SimpleITK image"
        imaginary = "complex" in image.GetPixelIDTypeAsString().lower()
        _check_kind(image.GetSize(), name, image.GetNumberOfComponentsPerPixel(), imaginary)
        return _checked_volume(_float32(sitk.GetArrayFromImage(image).T), itk_affine(image), {}, name)
    raise TypeError(
        "a volume is a path, a MetaTensor, a nibabel image or a SimpleITK image, "
        f"got {type(image).__module__}.{type(image).__name__}"
    )


def _load(path: Path, levels: GrayLevels | None = None) -> tuple[np.ndarray, npt.NDArray[np.float64], dict[str, Any]]:
    """Array (X, Y, Z) float32, affine and metadata of one scalar volume; nothing is said of its values yet."""
    found, _ = split_choice(path)
    if not found.exists():
        if found.is_symlink():
            raise InputError(f"{found} is a link to {found.readlink()}, which does not exist.", "Fetch or copy it.")
        raise InputError(f"{found} does not exist.")
    suffix = "" if found.is_dir() else suffix_of(path.name)
    picture = not found.is_dir() and path.name.lower().endswith(PICTURE_SUFFIXES)
    if not suffix and not picture and (found.suffix.lower() == ".zip" or holds_dicom(found)):
        return load_series(path)
    if found.is_dir():
        raise InputError(
            f"{path} is a folder and holds no DICOM, so it is not a volume.",
            "Give a volume, or a folder that holds one DICOM series.",
        )
    if not suffix and not picture:
        raise InputError(
            f"{path}: not a volume format that can be read.",
            f"Give one of {', '.join(VOLUME_SUFFIXES)}, or a folder or zip that holds one DICOM series.",
        )
    try:
        if picture:
            return load_picture(path, levels)
        stored = _described(path)
        values, remarks = read_voxels(stored)
        _remark(path, remarks)
        return scaled(values.reshape(stored.shape[:3]), stored.slope, stored.intercept), stored.affine, stored.meta
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path} does not fit into memory.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def _dicom_header(path: Path) -> Header:
    series = source_series(split_choice(path)[0] if path.exists() else path)
    header = series.header
    try:
        signed = "int" if header.get("PixelRepresentation") else "uint"
        agent = str(header.get("ContrastBolusAgent") or "").strip().upper()
        stored, modality = f"{signed}{header.get('BitsAllocated', '?')}", str(header.get("Modality") or "?")
    except LIBRARY_ERRORS as error:  # elements are taken apart when they are asked for
        raise InputError(f"{path}: the header of the series is damaged ({error}).") from error
    return Header(series.grid, stored, modality, agent not in ("", "NONE", "NO"))


def _described(path: Path) -> StoredVolume:
    """The header of a file of one scalar 3D volume."""
    stored = describe(path)
    _check_kind(stored.shape, str(path), stored.components)
    _remark(path, stored.remarks)
    return stored


def _remark(path: str | Path, remarks: Sequence[str]) -> None:
    for remark in remarks:
        warnings.warn(f"{path}: {remark}.", stacklevel=4)


def _check_kind(shape: Sequence[int], name: str, components: int = 1, imaginary: bool = False) -> None:
    """Real numbers, one per voxel, in one 3D volume."""
    if imaginary:
        raise InputError(f"{name}: complex values.", _MAGNITUDE)
    if components != 1:
        raise InputError(f"{name}: {components} values per voxel.", _ONE_VALUE)
    _check_shape(shape, name)


def _check_shape(shape: Sequence[int], name: str, picture: bool = False) -> None:
    """One 3D volume, at least 2 voxels along each axis (a picture: one slice); other axes of length 1 are fine."""
    shown = " x ".join(str(n) for n in shape)
    if len(shape) < 3:
        raise InputError(f"{name}: a volume has three axes, this has {len(shape)} ({shown}).")
    if any(n != 1 for n in shape[3:]):
        raise InputError(f"{name}: {int(np.prod(shape[3:]))} frames ({shown}).", "Give one frame as a 3D volume.")
    if min(shape[: 2 if picture else 3]) < 2:
        raise InputError(
            f"{name}: a volume needs at least 2 voxels along each axis, this has {shown}.",
            "Give the whole volume; single slices are read as pictures (PNG, TIFF) only.",
        )


def _of_nibabel(image: SpatialImage, name: str) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
    """Affine in mm and metadata of a nibabel image, whose header says which unit its lengths are in."""
    affine = np.asarray(image.affine, dtype=np.float64)
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        return affine, {}
    meta = {key: np.asarray(header[key])[()] for key in GEOMETRY}
    own, remarks = geometry(meta, image.shape, name)
    _remark(name, remarks)
    return own, meta


def _from_metatensor(image: MetaTensor) -> MetaTensor:
    name = str(image.meta.get("filename_or_obj") or "the given MetaTensor")
    if image.pending_operations:
        raise InputError(f"{name}: it has lazy operations that are not applied.", "Apply them before giving it.")
    shape = tuple(int(n) for n in image.shape)
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[0] != 1):
        found = f"{shape[0]} channels" if len(shape) == 4 else f"shape {shape}"
        raise InputError(f"{name}: {found}.", "Give a volume of shape (1, X, Y, Z) or (X, Y, Z).")
    if torch.is_complex(image):
        raise InputError(f"{name}: complex values.", _MAGNITUDE)
    tensor = image.as_tensor().detach().cpu()
    # NumPy does not know bfloat16.
    array = _float32((tensor.float() if tensor.is_floating_point() else tensor).reshape(shape[-3:]).numpy())
    affine = image.affine.detach().cpu().numpy().astype(np.float64)
    if str(image.meta.get("space", "RAS")) == "LPS":
        affine = RAS_FROM_LPS @ affine
    kept = {"filename_or_obj", *GEOMETRY, "modality", "picture", "unit"}
    codes = [int(image.meta.get(key, 1)) for key in ("sform_code", "qform_code")]
    if max(codes) <= 0 and not np.allclose(affine, np.asarray(image.meta.get("original_affine", affine)), atol=1e-3):
        kept -= {*GEOMETRY}  # they are of the file, and it has been moved since
    return _checked_volume(array, affine, {key: image.meta[key] for key in kept & image.meta.keys()}, name)


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is refused by name
        return np.array(array, dtype=np.float32, order="C").reshape(array.shape[:3])


def checked_grid(shape: Sequence[int], affine: npt.NDArray[np.float64], name: str, picture: bool = False) -> Grid:
    """The grid of one 3D volume, after the checks that every way in shares.

    Raises:
        InputError: another shape, or an affine that places no volume.

    Warns:
        UserWarning: the axes are sheared.
    """
    _check_shape(shape, name, picture)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise InputError(f"{name}: the affine holds values that are not finite.")
    refuse_impossible_geometry(shape, affine, name)
    try:
        grid = Grid((shape[0], shape[1], shape[2]), affine)
        # The determinant of the unit axes is the volume they span: 1 when orthogonal, 0 when they lie in one plane.
        with np.errstate(all="ignore"):
            flat = not abs(np.linalg.det(affine[:3, :3] / grid.spacing)) >= 1e-6
    except ValueError:
        flat = True
    if flat:
        raise InputError(
            f"{name}: the affine cannot be inverted (two axes coincide or a voxel size is 0), so that the "
            "voxels have no place in space.",
            "Export the volume again with its geometry.",
        )
    if grid.shear > SHEAR_COSINE:
        angle = np.degrees(np.arcsin(min(1.0, grid.shear)))
        warnings.warn(
            f"{name}: the axes are sheared ({angle:.1f} degrees from a right angle; tilted gantry?).", stacklevel=4
        )
    return grid


def _checked_volume(array: np.ndarray, affine: npt.NDArray[np.float64], meta: dict[str, Any], name: str) -> MetaTensor:
    """The volume, after the checks that every way in shares. `array` is (X, Y, Z) float32 and becomes the volume's."""
    grid = checked_grid(array.shape, affine, name, "picture" in meta)
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        count = array.size - int(np.count_nonzero(np.isfinite(array)))
        raise InputError(
            f"{name}: {count} of {array.size} voxels are not finite (NaN or infinite).",
            "Replace them by a value that has a meaning there, or export the volume again.",
        )
    if meta.get("modality") == "CT":
        refuse_impossible_hu(low, high, name, MATTER_HU)
    if low == high:
        raise InputError(f"{name}: every voxel holds the same value ({low:g}).", "Export the volume again.")
    volume = MetaTensor(
        torch.from_numpy(np.ascontiguousarray(array)[None]), affine=torch.from_numpy(grid.affine.copy())
    )
    volume.meta.update(
        {
            "filename_or_obj": name,
            "original_affine": grid.affine.copy(),
            "spatial_shape": np.array(grid.shape),
            "space": "RAS",
            **meta,
        }
    )
    return volume


def _describe(grid: Grid) -> str:
    spacing = " x ".join(f"{s:.4g}" for s in grid.spacing)
    origin = ", ".join(f"{v:.2f}" for v in grid.affine[:3, 3])
    codes = "".join(str(code or "?") for code in nib.aff2axcodes(grid.affine))
    return f"{' x '.join(str(n) for n in grid.shape)} voxels of {spacing} mm, first voxel at ({origin}), axes {codes}"
