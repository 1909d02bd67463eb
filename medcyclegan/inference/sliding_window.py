"""A generator run through a volume: slice by slice along a plane, by stacks of slices, or by 3D patches.

Instance norm makes a generator's output depend on how much background it sees. So windows are shown as in training: a
slice larger than the training window is cut to the body's bounding box, a smaller one is surrounded with background up
to the window. Where statistics are gathered first (see `statistics`), they are gathered in that way; with the
statistics frozen the amount of background no longer matters, and the second pass over slices sees only the body and a
margin.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medcyclegan.errors import InputError
from medcyclegan.inference.ensemble import Ensemble
from medcyclegan.inference.parallel_calls import THREADS, in_threads, runs_in_threads
from medcyclegan.inference.planes import ACROSS, Plane, plane_window
from medcyclegan.inference.statistics import Statistics, check_statistics
from medcyclegan.inference.tiles import BACKGROUND, WindowRunner
from medcyclegan.progress import Progress, Silent

MARGIN = 4  # voxels kept around the body where a slice is larger than the training window
FROZEN_MARGIN = 16  # voxels kept around the body once statistics are frozen
FROZEN_MULTIPLE = 16  # few window sizes, and even ones for networks that halve them
GATHERED = 48  # slices at most whose statistics are gathered, evenly spaced

Voxel = TypeVar("Voxel", bound=np.generic)


@dataclass(frozen=True)
class SlidingWindow:
    """How a network is run over a volume.

    3D patches overlap by half and are blended with Gaussian weights, and as many windows go through the network at once
    as memory allows; see `inference.tiles`.

    Attributes:
        roi_size: size of the windows in training, voxels: along the two axes of a slice of `plane` in RAS order, or
            (X, Y, Z).
        plane: of the slices in training; of no meaning in 3D.
        neighbors: slices on either side that the network takes and gives as channels (2.5D); 0 in 3D.
        norm_statistics: of instance norms, see `inference.statistics`.
        ensemble: test-time augmentation: planes and flips.
        device: where the network is.
        bf16: compute under bfloat16 autocast.

    Raises:
        ValueError: there are no such windows.
        InputError: planes for 3D patches.
    """

    roi_size: tuple[int, ...]
    plane: Plane = "axial"
    neighbors: int = 0
    norm_statistics: Statistics = "window"
    ensemble: Ensemble = field(default_factory=Ensemble)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    bf16: bool = False

    def __post_init__(self) -> None:
        check_statistics(self.norm_statistics)
        object.__setattr__(self, "roi_size", tuple(self.roi_size))
        if self.spatial_dims not in (2, 3) or self.plane not in ACROSS or self.neighbors < 0:
            raise ValueError(f"a network is run over slices or boxes, not over {self}")
        if self.spatial_dims == 3 and self.neighbors:
            raise ValueError("boxes have no neighboring slices")
        if self.spatial_dims == 3 and self.ensemble.planes:
            raise InputError("this checkpoint works on 3D patches, which have no plane.", "Leave out --planes.")

    @property
    def spatial_dims(self) -> int:
        """Of the network: 2 or 3."""
        return len(self.roi_size)

    @property
    def depth(self) -> int:
        """Slices that the network takes of every channel of a volume."""
        return 2 * self.neighbors + 1

    def along(self, plane: Plane) -> SlidingWindow:
        """The same over slices of another plane than that of the training; in 3D as it is."""
        if self.spatial_dims == 3:
            return self
        return replace(self, roi_size=plane_window(self.roi_size, self.plane, plane), plane=plane)

    def stacked(self, volume: npt.NDArray[Voxel]) -> npt.NDArray[Voxel]:
        """(C, X, Y, Z) as a view (C, N, *spatial): all slices, or in 3D the whole volume with N = 1."""
        return volume[:, None] if self.spatial_dims == 3 else np.moveaxis(volume, ACROSS[self.plane] + 1, 1)


@torch.inference_mode()
def translate_volume(
    generator: nn.Module,
    image: npt.NDArray[np.float32],
    body: npt.NDArray[np.bool_],
    window: SlidingWindow,
    *,
    out_channels: int = 1,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """Run a generator over a volume, once, along the plane of `window`.

    Slices without body are background and skipped. A 2.5D generator takes and gives 2 n + 1 neighboring slices
    as channels; every slice gets the mean of its up to 2 n + 1 predictions, which errs less than the middle one.

    Args:
        generator: (B, C (2 n + 1), *spatial) in [-1, 1] to (B, C' (2 n + 1), *spatial) of the same range; n =
            `window.neighbors`, the slices of each channel of the volume together.
        image: (C, X, Y, Z) in [-1, 1], background -1.
        body: (X, Y, Z).
        window: how it is run.
        out_channels: C'.
        progress: watches the slices.

    Returns:
        (C', X, Y, Z) in [-1, 1], float32; background where the generator was not applied.

    Raises:
        InputError: if there is not enough memory for even a small tile.
    """
    watch = progress or Silent()
    result = np.full((out_channels, *body.shape), BACKGROUND, dtype=np.float32)
    if not body.any():
        return result
    stacks, mask, into = window.stacked(image), window.stacked(body[None])[0], window.stacked(result)
    slicewise = window.spatial_dims == 2
    what = f"{window.plane} slices" if slicewise else "patches"
    places = np.flatnonzero(mask.any(axis=tuple(range(1, mask.ndim))))
    channels = len(stacks) * window.depth
    frame = _training_frame(mask, window.roi_size)
    runner = WindowRunner(generator, device=window.device, bf16=window.bf16)
    if not slicewise or not runner.fits(frame.shape, channels):
        runner.tile = tuple(min(n, w) for n, w in zip(frame.shape, window.roi_size, strict=True))
    pooled = window.norm_statistics != "window" and runner.network.gathers

    def batches(chosen: npt.NDArray[np.intp], threads: int = 1) -> list[npt.NDArray[np.intp]]:
        voxels = int(np.prod(runner.tile or frame.shape))
        size = max(1, runner.batch_size(voxels, channels, window.spatial_dims) // threads)
        return [chosen[start : start + size] for start in range(0, len(chosen), size)]

    if pooled:
        every = max(1, -(-len(places) // GATHERED))
        parts = batches(places[every // 2 :: every])
        for part in watch.track(parts, len(parts), f"gathering statistics of {what}"):
            runner.gather(_windows(stacks, part, frame, window.neighbors), part.tolist())
    statistics: Statistics = "window"
    if pooled:
        # All tiles of one volume share one position, and so their statistics.
        statistics = window.norm_statistics if slicewise else "volume"

    def translated(part: npt.NDArray[np.intp]) -> tuple[_Frame, npt.NDArray[np.float32]]:
        shown = _body_frame(np.asarray(mask[part].any(axis=0)), frame) if pooled and slicewise else frame
        return shown, runner(_windows(stacks, part, shown, window.neighbors), part.tolist(), statistics).cpu().numpy()

    # Frozen statistics are set per call, so calls run one by one; without them calls are independent.
    threads = slicewise and not pooled and runs_in_threads(window.device)
    parts = batches(places, THREADS if threads else 1)
    watched = watch.track(parts, len(parts), f"translating {what}")
    calls = in_threads(translated, watched) if threads else ((part, translated(part)) for part in watched)
    _blend(into, mask, calls, window)
    return result


def _blend(
    into: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    calls: Iterable[tuple[npt.NDArray[np.intp], tuple[_Frame, npt.NDArray[np.float32]]]],
    window: SlidingWindow,
) -> None:
    """Write the mean of the predictions of every voxel into `into`, (C', N, *spatial).

    Args:
        into: background.
        mask: (N, *spatial), the body.
        calls: slice indices, the shown region, and its prediction (B, C' (2 n + 1), *shape).
        window: how the network is run.
    """
    count = np.zeros(mask.shape, np.uint16) if window.neighbors else None  # predictions of every voxel
    if count is not None:
        into[:] = 0
    for part, (shown, given) in calls:
        if given.shape[1] != len(into) * window.depth:
            raise ValueError(
                f"the generator gives {given.shape[1]} channels, and {len(into)} x {window.depth} are expected"
            )
        inner: tuple[Any, ...] = (..., *shown.inner)
        at: tuple[Any, ...] = (part, *shown.region)
        output = given[inner].swapaxes(0, 1)
        if count is None:
            into[(slice(None), *at)] = output
            continue
        for channel, offset in enumerate(range(-window.neighbors, window.neighbors + 1)):
            there = part + offset
            real = (there >= 0) & (there < len(mask))
            at = (there[real], *shown.region)
            into[(slice(None), *at)] += output[channel :: window.depth, real]
            count[at] += 1
    if count is not None:
        count[~mask.any(axis=tuple(range(1, mask.ndim)))] = 0
        np.divide(into, count, out=into, where=count > 0)
        np.copyto(into, np.float32(BACKGROUND), where=count == 0)


@dataclass(frozen=True)
class _Frame:
    """The part of a slice or volume that is shown: a region and the background around it."""

    region: tuple[slice, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(
            r.stop - r.start + before + after for r, (before, after) in zip(self.region, self.padding, strict=True)
        )

    @property
    def inner(self) -> tuple[slice, ...]:
        """The region within the shown window."""
        return tuple(
            slice(before, before + r.stop - r.start) for r, (before, _) in zip(self.region, self.padding, strict=True)
        )


def _training_frame(mask: npt.NDArray[np.bool_], roi_size: tuple[int, ...]) -> _Frame:
    """The region of (N, *spatial) that is shown, and its surroundings, as in training."""
    region, padding = [], []
    for axis, wanted in enumerate(roi_size, start=1):
        first, last = 0, mask.shape[axis]
        if last > wanted:
            least, most = _extent(mask, axis)
            first, last = max(0, least - MARGIN), min(last, most + MARGIN)
        missing = max(0, wanted - (last - first))
        region.append(slice(first, last))
        padding.append((missing // 2, missing - missing // 2))
    return _Frame(tuple(region), tuple(padding))


def _body_frame(mask: npt.NDArray[np.bool_], frame: _Frame) -> _Frame:
    """The part of `frame` around the body of one batch, (*spatial), in steps of `FROZEN_MULTIPLE` voxels."""
    region, padding = [], []
    for axis, (r, (before, after)) in enumerate(zip(frame.region, frame.padding, strict=True)):
        least, most = _extent(mask, axis)
        first = max(r.start - before, least - FROZEN_MARGIN)
        last = min(r.stop + after, most + FROZEN_MARGIN)
        last = min(r.stop + after, first + -(-(last - first) // FROZEN_MULTIPLE) * FROZEN_MULTIPLE)
        first = max(r.start - before, last - -(-(last - first) // FROZEN_MULTIPLE) * FROZEN_MULTIPLE)
        inside = slice(max(first, r.start), min(last, r.stop))
        region.append(inside)
        padding.append((inside.start - first, last - inside.stop))
    return _Frame(tuple(region), tuple(padding))


def _extent(mask: npt.NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """The first index along `axis` at which the mask is not empty, and the one after the last."""
    occupied = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
    return int(occupied[0]), int(occupied[-1]) + 1


def _windows(stacks: npt.NDArray[np.float32], places: npt.NDArray[np.intp], frame: _Frame, neighbors: int) -> Tensor:
    """(B, C (2 n + 1), *spatial) of (C, N, *spatial): the slices of a contrast and their neighbors together.

    Around the frame's region and beyond the ends of the volume is background.
    """
    depth = 2 * neighbors + 1
    windows = np.full((len(places), len(stacks) * depth, *frame.shape), BACKGROUND, np.float32)
    for channel, offset in enumerate(range(-neighbors, neighbors + 1)):
        there = places + offset
        real = (there >= 0) & (there < stacks.shape[1])
        cut = stacks[(slice(None), there[real], *frame.region)].swapaxes(0, 1)
        windows[(real, slice(channel, None, depth), *frame.inner)] = cut
    return torch.from_numpy(windows)
