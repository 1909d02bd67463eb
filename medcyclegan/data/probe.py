"""The probe: fixed patches of a cohort, for watching a training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medcyclegan.data.patches import PLANES, PatchSpec
from medcyclegan.data.slices import PatchSource
from medcyclegan.data.windows import choose_window, stack_of_slices

CASES = 6  # of a domain, evenly spread over the sorted ones
SLICES = 4  # of a case, at these evenly spread heights between its lowest and highest slice with enough body
BACKGROUND = -1.0


def probe_patches(cases: Sequence[PatchSource], shape: PatchSpec, minimum_body: float = 0.05) -> tuple[Tensor, Tensor]:
    """Up to `CASES` times `SLICES` slices, or one box of each of up to `CASES` cases; the same at every call.

    Args:
        cases: of one domain.
        shape: of the patches.
        minimum_body: see `Sampling`.

    Returns:
        (N, C, *size) float32 in [-1, 1], and where they show the body, boolean, of the same shape; channels as in
        `TrainingPatches`.
    """
    chosen = [cases[k] for k in np.unique(np.linspace(0, len(cases) - 1, min(CASES, len(cases))).round().astype(int))]
    axis = PLANES[shape.plane] if shape.spatial_dims == 2 else 2
    images, bodies = [], []
    for case in chosen:
        eligible = case.slices.eligible(f"case {case.id}", minimum_body, axis)
        shares = [0.5] if shape.spatial_dims == 3 else [(n + 0.5) / SLICES for n in range(SLICES)]
        for k in sorted({int(eligible[int(share * len(eligible))]) for share in shares}):
            image, body = np.asarray(case.image), np.asarray(case.body)
            channels, body = len(image), body[None]
            if shape.spatial_dims == 2:
                image, body = (stack_of_slices(volume, axis, k, shape.neighbors) for volume in (image, body))
            middle = {3: k} if shape.spatial_dims == 3 else None
            source, target = choose_window(body, shape.size, np.random.default_rng(0), middle)
            patch = np.full((channels * shape.slices, *shape.size), BACKGROUND, dtype=np.float32)
            inside = np.zeros((shape.slices, *shape.size), dtype=bool)
            patch[target], inside[target] = image[source], body[source]
            images.append(patch)
            bodies.append(np.concatenate([inside] * channels))
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(bodies))
