"""A slice-wise generator run through a volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medcyclegan.progress import Progress, Silent

BACKGROUND = -1.0
MARGIN = 4  # voxels kept around the body
BATCH_VOXELS = 4 * 256 * 256  # of input at a time: about 1 GB of activations in a ResNet of 64 filters


@torch.inference_mode()
def translate_slices(
    generator: nn.Module,
    image: npt.NDArray[np.float32],
    body: npt.NDArray[np.bool_],
    *,
    window: Sequence[int],
    device: torch.device,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """Run a 2D generator over the axial slices of a volume.

    Instance norm makes a generator's output depend on how much background it sees. So slices are shown as in training:
    a slice larger than the training window is cut to the body's bounding box, a smaller one is surrounded with
    background up to the window. Slices without body are background and not shown at all.

    Args:
        generator: (B, 1, *spatial) in [-1, 1] to the same shape and range.
        image: (X, Y, Z), [-1, 1], background -1.
        body: (X, Y, Z).
        window: size of the slices in training, (X, Y).
        device: where `generator` is.

    Returns:
        (X, Y, Z) in [-1, 1], float32; background where the generator was not applied.
    """
    result = np.full(image.shape, BACKGROUND, dtype=np.float32)
    slices = np.flatnonzero(body.any(axis=(0, 1)))
    if not len(slices):
        return result
    region, padding = [], []
    for axis, wanted in enumerate(window):
        first, last = 0, image.shape[axis]
        if last > wanted:
            occupied = np.flatnonzero(body.any(axis=tuple(i for i in range(3) if i != axis)))
            first, last = max(0, int(occupied[0]) - MARGIN), min(last, int(occupied[-1]) + 1 + MARGIN)
        missing = max(0, wanted - (last - first))
        region.append(slice(first, last))
        padding.append((missing // 2, missing - missing // 2))
    shown = tuple(
        slice(before, before + part.stop - part.start) for part, (before, _) in zip(region, padding, strict=True)
    )
    voxels = int(np.prod([s.stop - s.start + sum(p) for s, p in zip(region, padding, strict=True)]))
    size = max(1, BATCH_VOXELS // voxels)
    batches = [slices[start : start + size] for start in range(0, len(slices), size)]
    for batch in (progress or Silent()).track(batches, len(batches), "translating slices"):
        stack = np.moveaxis(image[region[0], region[1], batch], 2, 0)
        stack = np.pad(stack, [(0, 0), *padding], constant_values=BACKGROUND)[:, None]
        output = generator(torch.from_numpy(np.ascontiguousarray(stack)).to(device)).float().cpu().numpy()
        result[region[0], region[1], batch] = np.moveaxis(output[(slice(None), 0, *shown)], 0, 2)
    return result
