"""Volumes from files: NIfTI, MetaImage, NRRD, DICOM in, one kind of MetaTensor out, or one sentence that says why not.

Words used here. *Volume*: a MetaTensor of shape (1, X, Y, Z), float32, whose affine takes a voxel index to RAS+
millimetres (float64). *Case id*: the name of a file without the suffix of its format, or of a DICOM folder. *Coded*: a
NIfTI header says what its orientation matrices mean only where `sform_code` or `qform_code` is above 0.

ITK's world is LPS: its first two axes point the other way. The conversion lives here and in `writer`.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from monai.data import ImageReader, MetaTensor, NibabelReader
from monai.transforms import LoadImage
from nibabel.spatialimages import SpatialImage

from medcyclegan.errors import InputError
from medcyclegan.io.dicom.files import DICOM_SUFFIXES, dicom_files, holds_dicom, split_choice
from medcyclegan.io.dicom.series import load_series
from medcyclegan.io.grid import Grid
from medcyclegan.io.pictures import PICTURE_SUFFIXES, GrayLevels, load_picture
from medcyclegan.io.plausible import MATTER_HU, refuse_impossible_geometry, refuse_impossible_hu

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")

_NIFTI_SUFFIXES = (".nii", ".nii.gz")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Two statements about the same voxel that differ by more than this are two different statements (mm).
_DISAGREEMENT_MM = 1.0
# Cosine between two axes above which they count as sheared: 0.06 degrees, far above the rounding of a float32 header.
_SHEAR_COSINE = 1e-3
_MASK_TOLERANCE_MM = 1e-2


def case_id(path: str | os.PathLike[str]) -> str:
    """The file name without the suffix of its format, in any letter case; other names are returned as they are.

    DICOM: `study.zip`, `study.dcm` and the choice `study#123` of a series are all the case `study`.
    """
    name = split_choice(path)[0].name
    for suffix in (_suffix(name), ".zip", *DICOM_SUFFIXES, *PICTURE_SUFFIXES):
        if suffix and name.lower().endswith(suffix.lower()) and len(name) > len(suffix):
            return name[: len(name) - len(suffix)]
    return name


def volume_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that the volume at `path` consists of: one, or every DICOM file of a folder; empty if there is none."""
    found = split_choice(path)[0]
    if found.is_dir():
        return dicom_files(found)
    return [found] if found.exists() else []


def list_volumes(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Case id -> file or folder for every volume directly in `folder`, sorted by case id.

    A sub-folder or zip that holds DICOM is one case. A folder that holds DICOM files itself is one case, that of its
    own name. 2D images (.png, .tif, .tiff) are cases where there is nothing else; beside volumes they are previews.
    Hidden files (leading dot) and other sub-folders are left out. A link to nothing is a case that cannot be read, for
    otherwise nobody would miss it.

    Raises:
        InputError: the folder is missing, is a file, holds no volume, holds two volumes of the same case id, or holds
            the files of a DICOM series beside other volumes.
    """
    folder = Path(folder)
    if not folder.exists():
        raise InputError(f"{folder} does not exist.", "Give a folder that holds volumes.")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder.", "Give the folder that holds the volumes.")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found: dict[str, list[Path]] = {}
    slices = 0
    for path in files:
        if (path.is_file() and _suffix(path.name)) or _is_lost(path):
            found.setdefault(case_id(path), []).append(path)
        elif path.is_dir() or path.suffix.lower() == ".zip":
            if holds_dicom(path):
                found.setdefault(path.name if path.is_dir() else case_id(path), []).append(path)
        elif holds_dicom(path):
            slices += 1
    if slices and found:
        others = sorted(path.name for paths in found.values() for path in paths)
        raise InputError(
            f"{folder} holds {slices} DICOM files beside other volumes ({', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}).",
            "Give each DICOM series a sub-folder of its own.",
        )
    if slices:
        return {folder.resolve().name: folder}
    if not found:
        for path in files:
            if path.is_file() and path.name.lower().endswith(PICTURE_SUFFIXES):
                found.setdefault(case_id(path), []).append(path)
    if not found:
        raise InputError(
            f"{folder} holds no volume that can be read ({', '.join(VOLUME_SUFFIXES)}, DICOM); "
            f"it holds {_inventory(files)}."
        )
    twins = [f"'{case}': {', '.join(p.name for p in paths)}" for case, paths in found.items() if len(paths) > 1]
    if twins:
        raise InputError(
            f"{folder} holds more than one file for the same case id ({'; '.join(sorted(twins))}).",
            "Keep one file per case or rename the others.",
        )
    return {case: found[case][0] for case in sorted(found)}


def read_volume(path: str | os.PathLike[str], levels: GrayLevels | None = None) -> MetaTensor:
    """Read a volume from a .nii, .nii.gz, .mha, .mhd or .nrrd file, or a DICOM series from a folder, a zip or a file.

    A 2D image (.png, .tif, .tiff) is a volume of one slice, understood as `levels` says: see `io.pictures`.

    Of a folder or zip with several series, `PATH#DIGITS` is the one whose SeriesInstanceUID ends in these digits; how
    DICOM is read is told in `io.dicom.series`.

    NIfTI-1 and NIfTI-2 of either byte order are scaled by their slope and intercept; the affine is the sform if that is
    coded, else the qform (nibabel's rule). The same scan stored in any of the formats gives the same result. The
    metadata hold `filename_or_obj`, `original_affine`, `spatial_shape`, `space`, for NIfTI `sform_code` and
    `qform_code`, and for DICOM `modality`.

    Returns:
        (1, X, Y, Z) float32 MetaTensor, contiguous, on the CPU; `affine` float64, voxel index to RAS+ mm.

    Raises:
        InputError: the file is missing, unreadable, cut short, not one scalar 3D volume of at least 2 voxels along each
            axis, has no invertible affine, or holds non-finite values or a single value only; or it is DICOM that
            `load_series` refuses.

    Warns:
        UserWarning: the orientation is not coded, two geometries in the header disagree, the units are not
            millimetres, the axes are sheared, or a DICOM gantry tilt was corrected.
    """
    array, affine, meta = _load(Path(path), levels)
    return _checked_volume(array, affine, meta, str(path))


def read_values(path: str | os.PathLike[str]) -> tuple[np.ndarray, Grid, dict[str, Any]]:
    """What a file holds, for those who examine files: as `read_volume`, but any values, not finite or constant too.

    Returns:
        (X, Y, Z) float32, its grid and the metadata `modality` (DICOM), `sform_code` and `qform_code` (NIfTI).

    Raises:
        InputError: as `read_volume`, but not for the values.
    """
    array, affine, meta = _load(Path(path))
    return array, _checked_grid(array, affine, str(path)), meta


def read_mask(path: str | os.PathLike[str], like: Grid) -> npt.NDArray[np.bool_]:
    """Read a binary mask that lies on the grid `like`.

    Returns:
        (X, Y, Z) bool.

    Raises:
        InputError: the file cannot be read, lies on another grid (more than 0.01 mm away), is empty, or holds anything
            but 0 and one other value.
    """
    array, affine, meta = _load(Path(path))
    grid = _checked_grid(array, affine, str(path), "picture" in meta)
    if not grid.matches(like, _MASK_TOLERANCE_MM):
        raise InputError(
            f"{path}: the mask lies on another grid than its volume. "
            f"Mask: {_describe(grid)}. Volume: {_describe(like)}.",
            "Resample the mask onto the grid of the volume (nearest neighbor).",
        )
    values = np.unique(array)
    if not values.any():
        raise InputError(f"{path}: the mask is empty (every voxel is 0).")
    if len(values) > 2 or (len(values) == 2 and values[0] != 0 and values[1] != 0) or not np.isfinite(values).all():
        shown = ", ".join(f"{value:g}" for value in values[:5]) + (", ..." if len(values) > 5 else "")
        raise InputError(
            f"{path}: a mask holds 0 and one other value; this file holds {len(values)} values ({shown}).",
            "Threshold it first.",
        )
    return np.ascontiguousarray(array != 0)


def grid_of(volume: MetaTensor) -> Grid:
    """The grid of a volume of shape (1, X, Y, Z)."""
    if volume.ndim != 4:
        raise ValueError(f"a volume has shape (1, X, Y, Z), got {tuple(volume.shape)}")
    shape = (int(volume.shape[1]), int(volume.shape[2]), int(volume.shape[3]))
    return Grid(shape, volume.affine.detach().cpu().numpy().astype(np.float64))


def as_volume(image: str | os.PathLike[str] | MetaTensor | SpatialImage | sitk.Image) -> MetaTensor:
    """A volume from whatever holds one: the same checks and the same result as `read_volume` of its file.

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
        _check_nifti_kind(image, name)
        meta = _nifti_meta(image, name)
        array = _float32(np.asanyarray(image.dataobj))
        return _checked_volume(array, np.asarray(image.affine, dtype=np.float64), meta, name)
    if isinstance(image, sitk.Image):
        name = "the given SimpleITK image"
        _check_itk_kind(image.GetPixelIDTypeAsString(), image.GetNumberOfComponentsPerPixel(), image.GetSize(), name)
        array = sitk.GetArrayFromImage(image).T
        return _checked_volume(_float32(array), itk_affine(image), {}, name)
    raise TypeError(
        "a volume is a path, a MetaTensor, a nibabel image or a SimpleITK image, "
        f"got {type(image).__module__}.{type(image).__name__}"
    )


def itk_affine(image: sitk.Image | sitk.ImageFileReader) -> npt.NDArray[np.float64]:
    """The 4 x 4 affine, voxel index to RAS+ mm, of an ITK image of two or more dimensions.

    ITK: x_LPS = origin + direction @ diag(spacing) @ index; RAS+ has the first two world axes reversed.
    """
    count = image.GetDimension()
    direction = np.array(image.GetDirection(), dtype=np.float64).reshape(count, count)
    used = min(count, 3)
    affine = np.eye(4)
    affine[:used, :used] = (direction * np.array(image.GetSpacing()))[:used, :used]
    affine[:used, 3] = np.array(image.GetOrigin())[:used]
    return np.asarray(_LPS_TO_RAS @ affine)


class SimpleITKReader(ImageReader):
    """Reads .mha, .mhd and .nrrd for `monai.transforms.LoadImage` and `LoadImaged`, with a RAS+ affine.

    Arrays come as (X, Y, Z), or (X, Y, Z, C) for pixels of several components. Several files of one grid are stacked
    along a new first axis, as MONAI's readers do.
    """

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        return all(_suffix(name).lower() in (".mha", ".mhd", ".nrrd") for name in _listed(filename))

    def read(
        self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **kwargs: Any
    ) -> sitk.Image | list[sitk.Image]:
        images = [sitk.ReadImage(str(name), **kwargs) for name in _listed(data)]
        return images if len(images) > 1 else images[0]

    def get_data(self, img: sitk.Image | Sequence[sitk.Image]) -> tuple[np.ndarray, dict[str, Any]]:
        images = [img] if isinstance(img, sitk.Image) else list(img)
        affine = itk_affine(images[0])
        arrays = [sitk.GetArrayFromImage(image) for image in images]
        for image, array in zip(images, arrays, strict=True):
            if array.shape != arrays[0].shape or not np.allclose(itk_affine(image), affine):
                raise ValueError("only images of one grid can be stacked as channels")
        # ITK's arrays run (z, y, x) with the components last.
        components = images[0].GetNumberOfComponentsPerPixel()
        spatial = images[0].GetDimension()
        arrays = [array.transpose([*range(spatial)[::-1], *range(spatial, array.ndim)]) for array in arrays]
        channel: float = float("nan") if components == 1 else -1
        if len(arrays) > 1:
            channel = 0
        meta = {
            "affine": affine,
            "original_affine": affine.copy(),
            "spatial_shape": np.array(arrays[0].shape[: min(spatial, 3)]),
            "space": "RAS",
            "original_channel_dim": channel,
        }
        return (np.stack(arrays) if len(arrays) > 1 else arrays[0]), meta


class _NiftiReader(NibabelReader):
    """MONAI's reader without its silent rewriting of the affine, and with a check of the compressed stream.

    MONAI replaces an sform whose voxel size differs from `pixdim`; here the header is believed as nibabel reads it, and
    the user is warned. nibabel stops at the last voxel and so never reaches the checksum of a .nii.gz file.
    """

    def read(self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **kwargs: Any) -> SpatialImage:
        (name,) = self.filenames = tuple(_listed(data))
        self.image = _open_nifti(Path(name))
        _check_nifti_kind(self.image, str(name))
        return self.image


def _suffix(name: str) -> str:
    """The suffix of a volume format at the end of `name`, as it is written there, or an empty string."""
    for suffix in sorted(VOLUME_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[len(name) - len(suffix) :]
    return ""


def _is_lost(path: Path) -> bool:
    """True for a link to nothing whose name may be that of a volume, or of a folder or zip of DICOM files."""
    return path.is_symlink() and not path.exists() and bool(_suffix(path.name) or path.suffix.lower() in ("", ".zip"))


def _listed(names: Any) -> list[str]:
    return [os.fspath(name) for name in ([names] if isinstance(names, str | os.PathLike) else names)]


def _inventory(files: list[Path]) -> str:
    counts = Counter("sub-folder" if path.is_dir() else path.suffix.lower() for path in files)
    parts = []
    for kind, count in counts.most_common(4):
        noun = kind if kind == "sub-folder" else f"{kind} file" if kind else "file without a suffix"
        parts.append(f"{count} {noun if count == 1 else noun.replace('file', 'files', 1).replace('folder', 'folders')}")
    if len(counts) > 4:
        parts.append("other files")
    return ", ".join(parts) or "nothing"


def _load(path: Path, levels: GrayLevels | None = None) -> tuple[np.ndarray, npt.NDArray[np.float64], dict[str, Any]]:
    """Array (X, Y, Z) float32, affine and metadata of one scalar volume; nothing is said of its values yet."""
    found, _ = split_choice(path)
    if not found.exists():
        if found.is_symlink():
            raise InputError(f"{found} is a link to {found.readlink()}, which does not exist.", "Fetch or copy it.")
        raise InputError(f"{found} does not exist.")
    suffix = "" if found.is_dir() else _suffix(path.name).lower()
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
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes).", "Copy or export it again.")
    try:
        if picture:
            return load_picture(path, levels)
        if suffix in _NIFTI_SUFFIXES:
            volume, meta = _load_nifti(path)
        else:
            volume, meta = _load_itk(path)
    except InputError:
        raise
    except MemoryError as error:
        raise MemoryError(f"{path} does not fit into memory") from error
    except _LIBRARY_ERRORS as error:
        raise InputError(f"{path} cannot be read: {_reason(error)}.", "Copy or export it again.") from error
    array = volume.as_tensor().numpy()
    return array.reshape(array.shape[:3]), volume.affine.numpy().astype(np.float64), meta


# What nibabel, gzip, numpy and SimpleITK raise for files that they cannot make sense of.
_LIBRARY_ERRORS = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    zlib.error,
    RuntimeError,
    ValueError,
    TypeError,
    OverflowError,
)


def _reason(error: BaseException) -> str:
    """The sentence of a library's error that helps, on one line."""
    text = str(error)
    # gzip, nibabel reading and nibabel mapping a file into memory each have their own words for the same fault.
    if isinstance(error, EOFError) or re.search(r"Expected \d+ bytes, got|mmap length is greater", text):
        return "it ends too early (cut short while copying or exporting?)"
    if "sitk::ERROR:" in text or "ITK ERROR:" in text:
        text = re.split(r"(?:sitk::|ITK )ERROR:", text)[-1]
        text = re.sub(r"\w+\(0x[0-9a-f]+\):", "", text)
        if "File cannot be read" in text or "fread got only" in text:
            return "its data are missing or cut short"
        if "Unable to determine ImageIO reader" in text:
            return "its content is not of the format that its name says"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _open_nifti(path: Path) -> SpatialImage:
    """The image with its whole compressed stream checked; uncompressed files stay on disk until they are used."""
    if not path.name.lower().endswith(".gz"):
        with path.open("rb") as stream:
            start = stream.read(4)
        return _nifti_class(start, path).from_filename(path)
    content = gzip.decompress(path.read_bytes())
    holder = nib.FileHolder(fileobj=io.BytesIO(content))
    return _nifti_class(content[:4], path).from_file_map({"header": holder, "image": holder})


def _nifti_class(start: bytes, path: Path) -> type[nib.Nifti1Image]:
    """NIfTI-1 or NIfTI-2 by the size of the header, which is the first number in the file, in either byte order."""
    for image_class, size in ((nib.Nifti1Image, 348), (nib.Nifti2Image, 540)):
        if start in (size.to_bytes(4, "little"), size.to_bytes(4, "big")):
            return image_class
    raise InputError(f"{path} cannot be read: its content is not NIfTI.", "Copy or export it again.")


def _load_nifti(path: Path) -> tuple[MetaTensor, dict[str, Any]]:
    reader = _NiftiReader()
    volume = _LOADER(str(path), reader=reader)
    return volume, _nifti_meta(reader.image, str(path))


def _load_itk(path: Path) -> tuple[MetaTensor, dict[str, Any]]:
    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    header.ReadImageInformation()
    pixel = sitk.GetPixelIDValueAsString(header.GetPixelID())
    _check_itk_kind(pixel, header.GetNumberOfComponents(), header.GetSize(), str(path))
    # ITK takes an NRRD without a space for LPS; the file does not say so.
    if _suffix(path.name).lower() == ".nrrd" and (
        not header.HasMetaDataKey("NRRD_space") or header.GetMetaData("NRRD_space") != "left-posterior-superior"
    ):
        _warn_unknown_orientation(str(path), "the header names no anatomical space")
    return _LOADER(str(path), reader=SimpleITKReader()), {}


def _loader() -> LoadImage:
    """MONAI's loader, made once: beside pydicom it complains each time of a GPU decoder that nothing here uses."""
    logger = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LoadImage(image_only=True)
    finally:
        logger.setLevel(level)


_LOADER = _loader()


def _check_nifti_kind(image: SpatialImage, name: str) -> None:
    dtype = np.dtype(image.get_data_dtype())
    if dtype.fields is not None:
        raise InputError(f"{name}: color pixels ({dtype}).", "Give a volume with one value per voxel.")
    if np.issubdtype(dtype, np.complexfloating):
        raise InputError(f"{name}: complex values.", "Give the magnitude image.")
    _check_shape(image.shape, name)


def _check_itk_kind(pixel: str, components: int, shape: Sequence[int], name: str) -> None:
    if "complex" in pixel.lower():
        raise InputError(f"{name}: complex values.", "Give the magnitude image.")
    if components != 1:
        raise InputError(f"{name}: {components} values per voxel.", "Give a volume with one value per voxel.")
    _check_shape(shape, name)


def _check_shape(shape: Sequence[int], name: str, picture: bool = False) -> None:
    """One 3D volume, at least 2 voxels along each axis (a picture: one slice); further axes of one frame are fine."""
    shown = " x ".join(str(n) for n in shape)
    if len(shape) < 3:
        raise InputError(f"{name}: a volume has three axes, this has {len(shape)} ({shown}).")
    if any(n != 1 for n in shape[3:]):
        raise InputError(f"{name}: {int(np.prod(shape[3:]))} frames ({shown}).", "Give one frame as a 3D volume.")
    if min(shape[: 2 if picture else 3]) < 2:
        raise InputError(f"{name}: a volume needs at least 2 voxels along each axis, this has {shown}.")


def _nifti_meta(image: SpatialImage, name: str) -> dict[str, Any]:
    """The orientation codes, after warning of everything in the header that contradicts itself."""
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        return {}
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    shape = (int(image.shape[0]), int(image.shape[1]), int(image.shape[2]))
    if sform_code <= 0 and qform_code <= 0:
        _warn_unknown_orientation(name, "neither sform nor qform is coded")
    elif sform_code > 0:
        affine = np.asarray(header.get_sform(), dtype=np.float64)
        corner = np.array(shape) - 1
        step = np.abs(np.linalg.norm(affine[:3, :3], axis=0) - np.array(header.get_zooms()[:3], dtype=np.float64))
        if qform_code > 0:
            other = _qform_or_none(header)
            try:
                distance = Grid(shape, affine).distance(Grid(shape, other)) if other is not None else np.inf
            except ValueError:
                distance = np.inf
            if distance > _DISAGREEMENT_MM:
                apart = f"by up to {distance:.1f} mm" if np.isfinite(distance) else "(the qform is unusable)"
                warnings.warn(f"{name}: sform and qform disagree {apart}; the sform is used.", stacklevel=4)
        elif (step * corner).max() > _DISAGREEMENT_MM:
            warnings.warn(
                f"{name}: the voxel size in the header differs from that of the sform; the sform is used.", stacklevel=4
            )
    unit = header.get_xyzt_units()[0] if int(header["xyzt_units"]) & 7 in (0, 1, 2, 3) else "unknown"
    if unit in ("meter", "micron"):
        warnings.warn(f"{name}: the header gives its lengths in {unit}s; they are taken as millimetres.", stacklevel=4)
    return {"sform_code": sform_code, "qform_code": qform_code}


def _qform_or_none(header: nib.Nifti1Header) -> npt.NDArray[np.float64] | None:
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except (ValueError, nib.spatialimages.HeaderDataError):
        return None


def _warn_unknown_orientation(name: str, because: str) -> None:
    warnings.warn(f"{name}: the orientation is unknown ({because}): left and right cannot be told apart.", stacklevel=5)


def _from_metatensor(image: MetaTensor) -> MetaTensor:
    name = str(image.meta.get("filename_or_obj") or "the given MetaTensor")
    if image.pending_operations:
        raise InputError(f"{name}: it has lazy operations that are not applied.", "Apply them before giving it.")
    if torch.is_complex(image):
        raise InputError(f"{name}: complex values.", "Give the magnitude image.")
    shape = tuple(int(n) for n in image.shape)
    if len(shape) == 4 and shape[0] != 1:
        raise InputError(f"{name}: {shape[0]} channels.", "Give a volume of shape (1, X, Y, Z) or (X, Y, Z).")
    if len(shape) not in (3, 4):
        raise InputError(f"{name}: shape {shape}.", "Give a volume of shape (1, X, Y, Z) or (X, Y, Z).")
    tensor = image.as_tensor().detach().cpu()
    # NumPy does not know bfloat16.
    array = _float32((tensor.float() if tensor.is_floating_point() else tensor).reshape(shape[-3:]).numpy())
    affine = image.affine.detach().cpu().numpy().astype(np.float64)
    if str(image.meta.get("space", "RAS")) == "LPS":
        affine = _LPS_TO_RAS @ affine
    kept = {"filename_or_obj", "sform_code", "qform_code", "modality", "picture", "unit"}
    codes = [int(image.meta.get(key, 1)) for key in ("sform_code", "qform_code")]
    if max(codes) <= 0 and not np.allclose(affine, np.asarray(image.meta.get("original_affine", affine)), atol=1e-3):
        kept -= {"sform_code", "qform_code"}  # they are of the file, and it has been moved since
    return _checked_volume(array, affine, {key: image.meta[key] for key in kept & image.meta.keys()}, name)


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is refused by name
        return np.array(array, dtype=np.float32, order="C").reshape(array.shape[:3])


def _checked_grid(array: np.ndarray, affine: npt.NDArray[np.float64], name: str, picture: bool = False) -> Grid:
    _check_shape(array.shape, name, picture)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise InputError(f"{name}: the affine holds values that are not finite.")
    refuse_impossible_geometry(array.shape, affine, name)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # The determinant of the unit axes is the volume they span: 1 when orthogonal, 0 when they lie in one plane.
    if spacing.min() == 0 or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-6:
        raise InputError(
            f"{name}: the affine cannot be inverted (two axes coincide or a voxel size is 0), so that the "
            "voxels have no place in space.",
            "Export the volume again with its geometry.",
        )
    unit = affine[:3, :3] / spacing
    cosines = np.abs(unit.T @ unit - np.eye(3))
    if cosines.max() > _SHEAR_COSINE:
        angle = np.degrees(np.arcsin(min(1.0, float(cosines.max()))))
        warnings.warn(
            f"{name}: the axes are sheared ({angle:.1f} degrees from a right angle; tilted gantry?).", stacklevel=4
        )
    return Grid((array.shape[0], array.shape[1], array.shape[2]), affine)


def _checked_volume(array: np.ndarray, affine: npt.NDArray[np.float64], meta: dict[str, Any], name: str) -> MetaTensor:
    """The volume, after the checks that every way in shares. `array` is (X, Y, Z) float32 and becomes the volume's."""
    grid = _checked_grid(array, affine, name, "picture" in meta)
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
