"""Grids and resampling: from the grid of a file to the grid that networks see, and back, with one interpolation each.

Words used here. *Working grid*: axes reordered and flipped to be nearest to right, anterior, superior, with a chosen
spacing; the obliquity (and shear) of the source stays, so that nothing is rotated. *Index map*: the affine that takes
a voxel index of one grid to a (fractional) voxel index of another. *Field of view*: everything up to half a voxel
beyond the outermost voxel centers.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, get_args

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys, ensure_tuple_rep
from scipy.ndimage import gaussian_filter1d

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import grid_of

Mode = Literal["linear", "nearest", "bspline"]

# Voxels; a map this close to a permutation counts as one, since float32 headers are no more exact.
_EXACT = 1e-4
_INTERPOLATORS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "bspline": sitk.sitkBSpline3}
# Part of a voxel that a field of view may lose, rather than gain a whole voxel.
_NEGLIGIBLE = 1e-3
# Coarsening below 1 % needs no smoothing.
_COARSER = 1.01


def working_grid(source: Grid, spacing: Sequence[float]) -> Grid:
    """The grid with axes nearest RAS+ and the given spacing that covers the field of view of `source`.

    Both fields of view share their center. Along each axis there are ceil(extent / spacing - 0.001) voxels. Where the
    spacing is that of the source (to within 0.001 voxel over the whole axis), the voxels coincide with the source's.

    Args:
        source: any grid: any of the 48 axis orders, oblique, anisotropic, sheared.
        spacing: mm along the reordered axes (left-right, posterior-anterior, inferior-superior).
    """
    wanted = np.array(spacing, dtype=np.float64)
    if wanted.shape != (3,) or not np.isfinite(wanted).all() or wanted.min() <= 0:
        raise InputError(f"spacing {tuple(spacing)} mm: three positive numbers are needed.")
    orientation = nib.orientations.io_orientation(source.affine)
    reordered = source.affine @ nib.orientations.inv_ornt_aff(orientation, source.shape)
    count = np.empty(3)
    count[orientation[:, 0].astype(int)] = source.shape
    step = np.linalg.norm(reordered[:3, :3], axis=0)
    same = np.abs(step / wanted - 1) * count < _NEGLIGIBLE
    wanted = np.where(same, step, wanted)
    voxels = np.maximum(np.ceil(count * step / wanted - _NEGLIGIBLE), 1)
    affine = reordered.copy()
    affine[:3, :3] = reordered[:3, :3] * (wanted / step)
    # The index (n - 1) / 2 is the center of the field of view.
    affine[:3, 3] += reordered[:3, :3] @ ((count - 1) / 2) - affine[:3, :3] @ ((voxels - 1) / 2)
    return Grid((int(voxels[0]), int(voxels[1]), int(voxels[2])), affine)


def resample(
    array: np.ndarray, source: Grid, target: Grid, *, fill: float, mode: Mode = "linear", antialias: bool = True
) -> np.ndarray:
    """Values of `array` at the voxel centers of another grid, with one interpolation.

    Where the target's voxels coincide with the source's (any flip, permutation or whole-voxel shift), values are
    copied bit for bit. Within the half voxel around the outermost centers the edge value is extended; beyond it is
    `fill`. Peak memory is about one copy of each array; no coordinates are stored.

    Linear sampling on a coarser grid first smooths against aliasing, along each source axis, with a Gaussian of

        sigma^2 = (r^2 - 1) / (8 ln 2)  source voxels, r = target step / source step,

    which widens a point spread of one source voxel (full width at half maximum) to one target voxel (Cardoso et al.,
    "Scale factor point spread function matching: beyond aliasing in image resampling", MICCAI 2015, eq. 4).

    Args:
        array: (X, Y, Z) on `source`.
        source: grid of `array`.
        target: grid of the result.
        fill: value outside the field of view of the source.
        mode: "linear" or "bspline" (cubic; sharper, overshoots at edges) for intensities; "nearest" for masks and
            labels.
        antialias: smooth before coarsening, not in mode "nearest". False when `array` is a result on a finer grid on
            its way back to a coarser one, whose resolution it has already.

    Returns:
        (X', Y', Z') float32 for "linear" and "bspline"; the type of `array` for "nearest".
    """
    if array.shape != source.shape:
        raise ValueError(f"array of shape {array.shape} does not fit the grid of shape {source.shape}")
    if mode not in get_args(Mode):
        raise ValueError(f"mode is 'bspline', 'linear' or 'nearest', got {mode!r}")
    values = array if mode == "nearest" else array.astype(np.float32, copy=False)
    index_map = np.linalg.inv(source.affine) @ target.affine
    copied = _copy_voxels(values, index_map, target.shape, fill)
    if copied is not None:
        return copied
    if mode != "nearest" and antialias:
        values = _smooth_for(values, index_map)
    return _interpolate(values, index_map, target.shape, fill, mode)


class ToWorkingGridd(MapTransform, InvertibleTransform):
    """Resample volumes onto their working grid; the inverse takes them back to the grid that they came from.

    The inverse is one resampling (linear without smoothing, or nearest), not a replay.

    Args:
        keys: keys of MetaTensors (C, X, Y, Z).
        spacing: of the working grid, mm.
        fill: value outside the field of view, both ways; one or one per key.
        mode: as in `resample`, one or one per key; "bspline" is clipped to the range of the source values,
            and its inverse is linear.
        onto: another volume's grid to go to, in place of the volume's own working grid.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float],
        fill: float | Sequence[float],
        mode: Mode | Sequence[Mode] = "linear",
        allow_missing_keys: bool = False,
        onto: Grid | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spacing = tuple(float(s) for s in spacing)
        self.fill = ensure_tuple_rep(fill, len(self.keys))
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.onto = onto

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key, fill, mode in self.key_iterator(result, self.fill, self.mode):
            volume = result[key]
            source = grid_of(volume)
            moved = _resample_volume(volume, self.onto or working_grid(source, self.spacing), fill, mode)
            if mode == "bspline":
                moved.clamp_(float(volume.min()), float(volume.max()))
            self.push_transform(moved, orig_size=source.shape, extra_info={"affine": source.affine.tolist()})
            result[key] = moved
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key, fill, mode in self.key_iterator(result, self.fill, self.mode):
            applied = self.pop_transform(result[key])
            x, y, z = (int(n) for n in applied[TraceKeys.ORIG_SIZE])
            source = Grid((x, y, z), np.array(applied[TraceKeys.EXTRA_INFO]["affine"]))
            back: Mode = "nearest" if mode == "nearest" else "linear"
            result[key] = _resample_volume(result[key], source, fill, back, antialias=False)
        return result


class CropToBodyd(MapTransform, InvertibleTransform):
    """Crop volumes to the box around the body with a margin; the inverse fills what was cut off.

    Args:
        keys: keys of MetaTensors (C, X, Y, Z) on one grid.
        fill: value of what was cut off, for the inverse; one or one per key.
        body_key: key of the body mask on the same grid, above 0 inside, not empty.
        margin: mm around the body, as far as the volume goes.
    """

    def __init__(
        self, keys: KeysCollection, fill: float | Sequence[float], body_key: Hashable = "body", *, margin: float
    ) -> None:
        super().__init__(keys)
        if margin < 0:
            raise ValueError(f"margin is at least 0 mm, got {margin}")
        self.fill = ensure_tuple_rep(fill, len(self.keys))
        self.body_key = body_key
        self.margin = margin

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        mask = result[self.body_key]
        box = self._box(mask.as_tensor().detach().cpu().numpy()[0] > 0, grid_of(mask))
        for key in self.key_iterator(result):
            volume = result[key]
            source = grid_of(volume)
            start = [part.start for part in box]
            affine = source.affine.copy()
            affine[:3, 3] = source.affine[:3] @ np.array([*start, 1.0])
            values = volume.as_tensor()[(slice(None), *box)].clone()
            meta = {**volume.meta, "affine": torch.from_numpy(affine), "spatial_shape": np.array(values.shape[1:])}
            cropped = MetaTensor(values, meta=meta, applied_operations=list(volume.applied_operations))
            self.push_transform(cropped, orig_size=source.shape, extra_info={"start": start})
            result[key] = cropped
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key, fill in self.key_iterator(result, self.fill):
            applied = self.pop_transform(result[key])
            volume, start = result[key], [int(n) for n in applied[TraceKeys.EXTRA_INFO]["start"]]
            shape = tuple(int(n) for n in applied[TraceKeys.ORIG_SIZE])
            values = volume.as_tensor()
            whole = torch.full((len(values), *shape), fill, dtype=values.dtype, device=values.device)
            box = tuple(slice(first, first + n) for first, n in zip(start, values.shape[1:], strict=True))
            whole[(slice(None), *box)] = values
            affine = grid_of(volume).affine.copy()
            affine[:3, 3] = affine[:3] @ np.array([*(-first for first in start), 1.0])
            meta = {**volume.meta, "affine": torch.from_numpy(affine), "spatial_shape": np.array(shape)}
            result[key] = MetaTensor(whole, meta=meta, applied_operations=list(volume.applied_operations))
        return result

    def _box(self, body: np.ndarray, grid: Grid) -> tuple[slice, slice, slice]:
        box = []
        for axis, step in enumerate(grid.spacing):
            occupied = np.flatnonzero(body.any(axis=tuple(i for i in range(3) if i != axis)))
            # Four voxels at least: networks that halve their input twice need them.
            more = max(int(np.ceil(self.margin / step)), -(-(4 - (int(occupied[-1]) - int(occupied[0]) + 1)) // 2))
            box.append(slice(max(0, int(occupied[0]) - more), min(grid.shape[axis], int(occupied[-1]) + 1 + more)))
        return (box[0], box[1], box[2])


def _resample_volume(volume: MetaTensor, target: Grid, fill: float, mode: Mode, antialias: bool = True) -> MetaTensor:
    source = grid_of(volume)
    channels = volume.as_tensor().detach().cpu().numpy()
    moved = [resample(c, source, target, fill=fill, mode=mode, antialias=antialias) for c in channels]
    affine = torch.from_numpy(target.affine.copy())
    meta = {**volume.meta, "affine": affine, "spatial_shape": np.array(target.shape)}
    operations = list(volume.applied_operations)
    return MetaTensor(torch.from_numpy(np.stack(moved)), meta=meta, applied_operations=operations)


def _copy_voxels(
    values: np.ndarray, index_map: npt.NDArray[np.float64], shape: tuple[int, int, int], fill: float
) -> np.ndarray | None:
    """The result by copying alone, or None where voxels do not coincide."""
    whole = np.rint(index_map)
    # The error of the map is largest at the far corner of the target.
    error = np.abs(index_map[:3] - whole[:3]) @ np.array([*shape, 1.0])
    linear = whole[:3, :3].astype(int)
    if error.max() > _EXACT or not (np.abs(linear).sum(0) == 1).all() or not (np.abs(linear).sum(1) == 1).all():
        return None
    axes = np.abs(linear).argmax(axis=0)  # target axis -> source axis
    signs = linear[axes, range(3)]
    starts = whole[axes, 3].astype(int)
    view = values.transpose(axes)
    result = np.full(shape, fill, dtype=values.dtype)
    into, out_of = [], []
    for axis in range(3):
        # Source index = start + sign * target index, for the target indices that stay inside the source.
        index = starts[axis] + signs[axis] * np.arange(shape[axis])
        inside = np.flatnonzero((index >= 0) & (index < view.shape[axis]))
        if inside.size == 0:
            return result
        into.append(slice(inside[0], inside[-1] + 1))
        first, last = index[inside[0]], index[inside[-1]]
        stop = last + signs[axis]
        out_of.append(slice(first, None if stop < 0 else stop, signs[axis]))
    result[tuple(into)] = view[tuple(out_of)]
    return result


def _smooth_for(values: np.ndarray, index_map: npt.NDArray[np.float64]) -> np.ndarray:
    """`values` smoothed along the axes on which the target is coarser."""
    # Column i of the inverse map is what one source voxel along axis i is in target voxels.
    ratios = 1 / np.linalg.norm(np.linalg.inv(index_map[:3, :3]), axis=0)
    smoothed = values
    for axis, ratio in enumerate(ratios):
        if ratio > _COARSER:
            sigma = np.sqrt((ratio**2 - 1) / (8 * np.log(2)))
            into = None if smoothed is values else smoothed
            smoothed = gaussian_filter1d(smoothed, sigma, axis=axis, output=into, mode="nearest")
    return smoothed


def _interpolate(
    values: np.ndarray, index_map: npt.NDArray[np.float64], shape: tuple[int, int, int], fill: float, mode: Mode
) -> np.ndarray:
    """ITK's interpolation between two grids whose world is the voxel index itself."""
    boolean = values.dtype == np.bool_
    # ITK counts axes in the reverse order of a C-contiguous array; reversing the map spares two transposed copies.
    image = sitk.GetImageFromArray(np.ascontiguousarray(values, dtype=np.uint8 if boolean else None))
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(index_map[:3, :3][::-1, ::-1].ravel().tolist())
    transform.SetTranslation(index_map[:3, 3][::-1].tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in shape[::-1]])
    resampler.SetTransform(transform)
    resampler.SetInterpolator(_INTERPOLATORS[mode])
    resampler.SetDefaultPixelValue(float(fill))
    result = sitk.GetArrayFromImage(resampler.Execute(image))
    return result.astype(np.bool_) if boolean else result
