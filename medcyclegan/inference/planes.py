"""A generator run through a volume: slice by slice along a plane, by stacks of slices, or by 3D patches.

Instance norm makes a generator's output depend on how much background it sees. So windows are shown as in training: a
slice larger than the training window is cut to the body's bounding box, a smaller one is surrounded with background up
to the window. Where statistics are gathered first (see `statistics`), they are gathered in that way; with the
statistics frozen the amount of background does not matter any more, and the second pass sees the body with a margin
only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medcyclegan.inference.side_by_side import LANES, pays, side_by_side
from medcyclegan.inference.statistics import Statistics, check_statistics
from medcyclegan.inference.tiles import BACKGROUND, WindowRunner
from medcyclegan.progress import Progress, Silent

Plane = Literal["axial", "coronal", "sagittal"]
# The RAS axis across the slices; the other two, in order, are the slice's own.
ACROSS: dict[str, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
MARGIN = 4  # voxels kept around the body where a slice is larger than the training window
FROZEN_MARGIN = 16  # voxels kept around the body once statistics are frozen
FROZEN_MULTIPLE = 16  # windows of few different sizes, and no uneven ones for networks that halve them
GATHERED = 48  # slices at most whose statistics are gathered, evenly spaced


@torch.inference_mode()
def translate_slices(
    generator: nn.Module,
    image: npt.NDArray[np.float32],
    body: npt.NDArray[np.bool_],
    *,
    window: Sequence[int],
    device: torch.device,
    plane: Plane = "axial",
    neighbors: int = 0,
    statistics: Statistics = "window",
    bf16: bool = False,
    out_contrasts: int = 1,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """Run a 2D or 2.5D generator over the slices of a volume.

    Slices without body are background and not shown at all. A 2.5D generator takes and gives 2 n + 1 neighboring slices
    as channels; every slice gets the mean of its up to 2 n + 1 predictions, which errs less than the middle one.

    Args:
        generator: (B, C (2 n + 1), *spatial) in [-1, 1] to (B, C' (2 n + 1), *spatial) of the same range; n =
            `neighbors`, C and C' are the numbers of contrasts, the slices of each contrast together.
        image: (X, Y, Z), [-1, 1], background -1; of several contrasts (C, X, Y, Z).
        body: (X, Y, Z).
        window: size of the slices in training, along the slice's two axes in RAS order.
        device: where `generator` is.
        plane: the slices' plane.
        neighbors: n, slices on either side that the generator sees too.
        statistics: of instance norms, see `statistics`.
        bf16: compute under bfloat16 autocast.
        out_contrasts: C'.
        progress: watches the slices.

    Returns:
        (X, Y, Z), for several C' (C', X, Y, Z), in [-1, 1], float32; background where the generator was not applied.

    Raises:
        InputError: if there is not enough memory for even a small tile.
    """
    check_statistics(statistics)
    across = ACROSS[plane]
    stacks = np.moveaxis(image if image.ndim == 4 else image[None], across + 1, 1)
    mask = np.moveaxis(body, across, 0)
    result = np.full((out_contrasts, *body.shape), BACKGROUND, dtype=np.float32)
    into = np.moveaxis(result, across + 1, 1)
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    if not len(slices):
        return result if out_contrasts > 1 else result[0]
    depth = 2 * neighbors + 1
    channels = len(stacks) * depth
    runner = WindowRunner(generator, device=device, bf16=bf16)
    frame = _training_frame(mask, window)
    if not runner.fits(frame.shape, channels):
        runner.tile = tuple(min(n, w) for n, w in zip(frame.shape, window, strict=True))
    watch = progress or Silent()
    pooled = statistics != "window" and runner.network.gathers
    if pooled:
        every = max(1, -(-len(slices) // GATHERED))
        chosen = slices[every // 2 :: every]
        size = runner.batch_size(int(np.prod(frame.shape)), channels, 2)
        parts = _batches(chosen, size)
        for part in watch.track(parts, len(parts), f"gathering statistics of {plane} slices"):
            runner.gather(_windows(stacks, part, frame, neighbors), part.tolist())
    size = runner.batch_size(int(np.prod(frame.shape)), channels, 2)
    if not pooled and pays(device):
        size = max(1, size // LANES)
    parts = _batches(slices, size)
    total = np.zeros((out_contrasts, *mask.shape), np.float32) if neighbors else None
    counted = np.zeros(len(mask), np.int32)

    def translated(part: npt.NDArray[np.intp]) -> tuple[_Frame, npt.NDArray[np.float32]]:
        shown = _body_frame(np.asarray(mask[part].any(axis=0)), frame) if pooled else frame
        windows = _windows(stacks, part, shown, neighbors)
        return shown, runner(windows, part.tolist(), statistics if pooled else "window").cpu().numpy()

    # Statistics are frozen for one call after the other; without them, calls know nothing of each other.
    watched = watch.track(parts, len(parts), f"translating {plane} slices")
    calls = ((part, translated(part)) for part in watched) if pooled else side_by_side(translated, watched, device)
    for part, (shown, given) in calls:
        _require_channels(given.shape[1], out_contrasts, depth)
        rows, columns = shown.inner
        output = given[:, :, rows, columns]
        rows, columns = shown.region
        if total is None:
            for contrast in range(out_contrasts):
                into[contrast, part, rows, columns] = output[:, contrast]
            continue
        for channel, offset in enumerate(range(-neighbors, neighbors + 1)):
            there = part + offset
            real = (there >= 0) & (there < len(mask))
            for contrast in range(out_contrasts):
                total[contrast, there[real], rows, columns] += output[real, contrast * depth + channel]
            counted[there[real]] += 1
    if total is not None:
        into[:, slices] = total[:, slices] / counted[slices, None, None]
        outside = np.ones(mask.shape[1:], bool)
        outside[frame.region] = False
        into[:, :, outside] = BACKGROUND
    return result if out_contrasts > 1 else result[0]


@torch.inference_mode()
def translate_patches(
    generator: nn.Module,
    image: npt.NDArray[np.float32],
    body: npt.NDArray[np.bool_],
    *,
    window: Sequence[int],
    device: torch.device,
    statistics: Statistics = "window",
    bf16: bool = False,
    out_contrasts: int = 1,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """Run a 3D generator over a volume by patches of its training window, half overlapping, with Gaussian blending.

    Args:
        generator: (B, C, *spatial) in [-1, 1] to (B, C', *spatial) of the same range, one channel per contrast.
        window: size of the patches in training, (X, Y, Z).

    The other arguments, the result and the errors are those of `translate_slices`.
    """
    check_statistics(statistics)
    result = np.full((out_contrasts, *body.shape), BACKGROUND, dtype=np.float32)
    if not body.any():
        return result if out_contrasts > 1 else result[0]
    frame = _training_frame(body[None], window)
    runner = WindowRunner(generator, device=device, bf16=bf16, tile=window)
    whole = torch.from_numpy(frame.cut(image if image.ndim == 4 else image[None]))[None]
    pooled = statistics != "window" and runner.network.gathers
    stages: list[str] = ["gather", "translate"] if pooled else ["translate"]
    output = whole
    for stage in (progress or Silent()).track(stages, len(stages), "translating patches"):
        if stage == "gather":
            runner.gather(whole, [0.0])
        else:
            output = runner(whole, [0.0], "volume" if pooled else "window")
    _require_channels(output.shape[1], out_contrasts, 1)
    for contrast in range(out_contrasts):
        result[contrast][frame.region] = output[0, contrast].cpu().numpy()[frame.inner]
    return result if out_contrasts > 1 else result[0]


def translate_volume(
    generator: nn.Module,
    image: npt.NDArray[np.float32],
    body: npt.NDArray[np.bool_],
    *,
    window: Sequence[int],
    device: torch.device,
    spatial_dims: int = 2,
    plane: Plane = "axial",
    neighbors: int = 0,
    statistics: Statistics = "window",
    bf16: bool = False,
    out_contrasts: int = 1,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """`translate_slices` for `spatial_dims` 2, `translate_patches` for 3; a 3D generator has no plane."""
    if spatial_dims == 3:
        return translate_patches(
            generator,
            image,
            body,
            window=window,
            device=device,
            statistics=statistics,
            bf16=bf16,
            out_contrasts=out_contrasts,
            progress=progress,
        )
    return translate_slices(
        generator,
        image,
        body,
        window=window,
        device=device,
        plane=plane,
        neighbors=neighbors,
        statistics=statistics,
        bf16=bf16,
        out_contrasts=out_contrasts,
        progress=progress,
    )


def plane_window(window: Sequence[int], trained: Plane, plane: Plane) -> tuple[int, int]:
    """The training window for slices along another plane than the one trained on.

    An axis that both planes have keeps its length; one that training never saw takes the larger of the two.

    Args:
        window: along the two axes of the `trained` plane.
    """
    axes = [axis for axis in range(3) if axis != ACROSS[trained]]
    length = dict(zip(axes, window, strict=True))
    first, second = (length.get(axis, max(window)) for axis in range(3) if axis != ACROSS[plane])
    return first, second


@dataclass(frozen=True)
class _Frame:
    """What of a slice is shown: a region of it and the background around that."""

    region: tuple[slice, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(
            r.stop - r.start + before + after for r, (before, after) in zip(self.region, self.padding, strict=True)
        )

    @property
    def inner(self) -> tuple[slice, ...]:
        """Where the region lies in what is shown."""
        return tuple(
            slice(before, before + r.stop - r.start) for r, (before, _) in zip(self.region, self.padding, strict=True)
        )

    def cut(self, windows: np.ndarray) -> npt.NDArray[np.float32]:
        """(B, *spatial) -> (B, *shape)."""
        part = windows[(slice(None), *self.region)]
        return np.pad(part, [(0, 0), *self.padding], constant_values=BACKGROUND).astype(np.float32, copy=False)


def _training_frame(mask: npt.NDArray[np.bool_], window: Sequence[int]) -> _Frame:
    """The region of (N, *spatial) slices that is shown, and its surroundings, as in training."""
    region, padding = [], []
    for axis, wanted in enumerate(window, start=1):
        first, last = 0, mask.shape[axis]
        if last > wanted:
            occupied = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
            first, last = max(0, int(occupied[0]) - MARGIN), min(last, int(occupied[-1]) + 1 + MARGIN)
        missing = max(0, wanted - (last - first))
        region.append(slice(first, last))
        padding.append((missing // 2, missing - missing // 2))
    return _Frame(tuple(region), tuple(padding))


def _body_frame(mask: npt.NDArray[np.bool_], frame: _Frame) -> _Frame:
    """The part of `frame` around the body of one batch, (*spatial), in steps of `FROZEN_MULTIPLE` voxels."""
    region, padding = [], []
    for axis, (r, (before, after)) in enumerate(zip(frame.region, frame.padding, strict=True)):
        occupied = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        first = max(r.start - before, int(occupied[0]) - FROZEN_MARGIN)
        last = min(r.stop + after, int(occupied[-1]) + 1 + FROZEN_MARGIN)
        last = min(r.stop + after, first + -(-(last - first) // FROZEN_MULTIPLE) * FROZEN_MULTIPLE)
        first = max(r.start - before, last - -(-(last - first) // FROZEN_MULTIPLE) * FROZEN_MULTIPLE)
        inside = slice(max(first, r.start), min(last, r.stop))
        region.append(inside)
        padding.append((inside.start - first, last - inside.stop))
    return _Frame(tuple(region), tuple(padding))


def _require_channels(given: int, contrasts: int, depth: int) -> None:
    if given != contrasts * depth:
        raise ValueError(f"the generator gives {given} channels, and {contrasts} x {depth} are expected")


def _windows(stacks: np.ndarray, slices: npt.NDArray[np.intp], frame: _Frame, neighbors: int) -> Tensor:
    """(B, C (2 n + 1), *spatial): per contrast the slices and their neighbors, background beyond the ends."""
    channels = []
    for stack in stacks:
        for offset in range(-neighbors, neighbors + 1):
            there = slices + offset
            real = (there >= 0) & (there < len(stack))
            cut = frame.cut(stack[np.clip(there, 0, len(stack) - 1)])
            cut[~real] = BACKGROUND
            channels.append(cut)
    return torch.from_numpy(np.ascontiguousarray(np.stack(channels, axis=1)))


def _batches(slices: npt.NDArray[np.intp], size: int) -> list[npt.NDArray[np.intp]]:
    return [slices[start : start + size] for start in range(0, len(slices), size)]
