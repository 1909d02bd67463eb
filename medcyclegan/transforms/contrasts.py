"""Several MR contrasts of one patient onto one working grid, as channels.

The first contrast decides: its grid is the source grid, its body the body, its working grid that of all. Every other
one is resampled once from its own grid onto that, by the world coordinates of its header, and has a scaler of its own,
fitted in the same body. Words used here. *Covered*: where a contrast has voxels. *Apart*: moved between the scans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import nibabel as nib
import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from scipy import ndimage

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import grid_of
from medcyclegan.transforms.geometry import resample, working_grid
from medcyclegan.transforms.intensity import fitted_scaler
from medcyclegan.transforms.pipeline import (
    SOURCE_BODY,
    FurtherContrast,
    Preparation,
    PreparedCase,
    landmark_shares,
    prepare,
    prepared_with_body,
    refuse_other_modality,
    run_steps,
)
from medcyclegan.transforms.registration import align

# Share of the body that every contrast must show.
LEAST_COVERED = 0.9
# Beyond this (mm) a patient has probably moved between two contrasts: see `apart_mm`.
APART_MM = 3.0
_RIM_MM = 8.0  # around the body that is looked at, because its surface says most about where it is
_ESTIMATE_MM = 4.0

Mask = npt.NDArray[np.bool_]


def prepare_contrasts(
    volumes: Sequence[MetaTensor],
    preparations: Sequence[Preparation],
    body: np.ndarray | None = None,
    *,
    names: Sequence[str] = (),
) -> PreparedCase:
    """Prepare the contrasts of one patient.

    Args:
        volumes: (1, X, Y, Z) each, in the order of the channels; they need not share a grid.
        preparations: one per contrast; they differ in `mr_landmarks` only.
        body: (X, Y, Z) bool on the grid of the first; found in it where it is None.
        names: of the contrasts, for messages.

    Returns:
        A case whose image is (C, X, Y, Z), or (X, Y, Z) of a single contrast, exactly as `prepare` gives it. Voxels
        that were blanked in any contrast are no body. Where a contrast has no voxels, it is -1.

    Raises:
        InputError: as `prepare`, or a contrast covers less than 90 % of the body of the first.
    """
    if len(volumes) != len(preparations) or not volumes:
        raise ValueError(f"{len(volumes)} volumes and {len(preparations)} preparations")
    if len(volumes) == 1:
        return prepare(volumes[0], preparations[0], body)
    first, inside = prepared_with_body(volumes[0], preparations[0], body)
    called = list(names) or [f"contrast {number + 1}" for number in range(len(volumes))]
    images, further = [first.image], []
    kept, blanked_ml = first.body, first.blanked_ml
    for name, volume, preparation in zip(called[1:], volumes[1:], preparations[1:], strict=True):
        refuse_other_modality(volume, preparation)
        grid = grid_of(volume)
        share = covered(inside, first.source_grid, grid)
        if share < LEAST_COVERED:
            raise InputError(
                f"{_file(volume)} ({name}) covers {100 * share:.1f} % of the body in {_file(volumes[0])} "
                f"({called[0]}); at least {100 * LEAST_COVERED:.0f} % are needed. It lies {_place(grid)}, the other "
                f"{_place(first.source_grid)} (RAS, mm).",
                "Is it the same patient in the same visit, and are the headers right? Leave the case out, or train "
                "without this contrast.",
            )
        there = _moved(inside, first.source_grid, grid)
        data = run_steps(volume, replace(preparation, crop_margin=None), there, onto=first.grid, keep_body=True)
        images.append(data["image"].as_tensor()[0].numpy().astype(np.float32))
        blanked = there & ~data[SOURCE_BODY].as_tensor()[0].numpy().astype(bool)
        if blanked.any():
            kept = kept & ~_moved(blanked, grid, first.grid)
            blanked_ml = max(blanked_ml, float(data.get("blanked_ml", 0.0)))
        further.append(FurtherContrast(fitted_scaler(data["image"]), share, apart_mm(volumes[0], volume, inside)))
    image = np.stack(images)
    image[:, ~kept] = -1.0
    return replace(first, image=image, body=kept, blanked_ml=blanked_ml, further=tuple(further))


def landmark_shares_of(
    volumes: Sequence[MetaTensor], preparations: Sequence[Preparation], body: np.ndarray | None = None
) -> list[npt.NDArray[np.float64]]:
    """`landmark_shares` of every contrast of one patient, all in the body of the first."""
    first = landmark_shares(volumes[0], preparations[0], body)
    if len(volumes) == 1:
        return [first]
    _, inside = prepared_with_body(volumes[0], replace(preparations[0], mr_standardization="percentile"), body)
    source = grid_of(volumes[0])
    return [
        first,
        *(
            landmark_shares(volume, preparation, _moved(inside, source, grid_of(volume)))
            for volume, preparation in zip(volumes[1:], preparations[1:], strict=True)
        ),
    ]


def covered(body: Mask, grid: Grid, other: Grid) -> float:
    """Share of a body on `grid` that lies in the field of view of `other`."""
    seen = resample(np.ones(other.shape, dtype=np.bool_), other, grid, fill=0, mode="nearest")
    return float(seen[body].mean()) if body.any() else 0.0


def apart_mm(first: MetaTensor, other: MetaTensor, body: Mask) -> float:
    """How far apart two contrasts show the body, mm: the rigid registration of one to the other, as a mean distance.

    An estimate on voxels of 4 mm, see `registration`.

    Args:
        first: (1, X, Y, Z).
        other: (1, X', Y', Z').
        body: (X, Y, Z) on the grid of `first`.

    Returns:
        nan where nothing can be told.
    """
    source = grid_of(first)
    coarse = working_grid(source, np.maximum(source.spacing[_ras_order(source)], _ESTIMATE_MM).tolist())
    values, moved = (
        resample(volume.as_tensor().detach().cpu().numpy()[0], grid_of(volume), coarse, fill=0.0)
        for volume in (first, other)
    )
    inside = _moved(body, source, coarse)
    windows = (_window(values, inside), _window(moved, inside))
    if any(not high > low for low, high in windows):
        return math.nan
    near = inside
    for axis, step in enumerate(coarse.spacing):
        structure = np.expand_dims(np.ones(3, dtype=bool), tuple(i for i in range(3) if i != axis))
        times = max(1, round(_RIM_MM / float(step)))
        near = np.asarray(ndimage.binary_dilation(near, structure, iterations=times), dtype=bool)
    return align(values, moved, near, coarse, windows=windows).displacement


def _ras_order(grid: Grid) -> npt.NDArray[np.intp]:
    """The voxel axes nearest to right, anterior, superior."""
    return np.argsort(nib.orientations.io_orientation(grid.affine)[:, 0])


def _window(values: np.ndarray, body: Mask) -> tuple[float, float]:
    if not body.any():
        return 0.0, 0.0
    low, high = np.percentile(values[body], (0.5, 99.5))
    return min(0.0, float(low)), float(high)


def _moved(mask: Mask, source: Grid, target: Grid) -> Mask:
    return np.asarray(resample(mask, source, target, fill=0, mode="nearest"), dtype=bool)


def _file(volume: MetaTensor) -> str:
    return str(volume.meta.get("filename_or_obj") or "the volume")


def _place(grid: Grid) -> str:
    """Where a field of view is: "from x to y" along right, anterior, superior."""
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * np.array(grid.shape) - 0.5
    world = corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    low, high = world.min(axis=0), world.max(axis=0)
    return " x ".join(f"{a:.0f} to {b:.0f}" for a, b in zip(low, high, strict=True))
