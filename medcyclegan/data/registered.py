"""Rigid registration of validation pairs: b is moved onto a, or the pair is refused.

A pair that is off by a few millimetres gives every model wrong scores, so a registration is checked: it is done in
both directions, and these must be inverse to each other. Words used here. *Fixed*: a, which stays. *Moving*: b.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import grid_of
from medcyclegan.transforms.body import body_mask
from medcyclegan.transforms.geometry import resample, working_grid
from medcyclegan.transforms.registration import HU_WINDOW, align, percentile_window, with_rim

# Inverse consistency: largest mean distance of the body's voxels after both directions (mm).
CONSISTENCY_MM = 3.0
# Dice of the two bodies where both were scanned, after the registration.
SMALLEST_DICE = 0.85
# Share of the fixed body that the moving volume must cover.
SMALLEST_COVER = 0.5
AIR = {"CT": -1024.0, "MR": 0.0}  # outside the moving volume
_PICTURE_MM = 1.5
_SQUARE_MM = 24.0


def register_onto(
    fixed: MetaTensor, moving: MetaTensor, modalities: tuple[str, str]
) -> tuple[MetaTensor, npt.NDArray[np.bool_], npt.NDArray[np.uint8], dict[str, Any]]:
    """Move one volume onto the grid of another of the same patient, with one linear interpolation.

    The registration starts from where the headers put both, from the centers of both bodies and from the tops of both,
    and goes on from the best.

    Args:
        fixed: (1, X, Y, Z).
        moving: (1, X', Y', Z').
        modalities: of both, "MR" or "CT".

    Returns:
        `moving` (1, X, Y, Z) on the grid of `fixed`, -1024 HU or 0 outside it; (X, Y, Z) bool, its field of view;
        a checkerboard picture (H, W, 3) of both; and shift_mm, rotation_degrees, consistency_mm, dice
        and covered as plain data.

    Raises:
        InputError: the registration failed or did not pass the checks.
    """
    names = [str(volume.meta.get("filename_or_obj") or role) for volume, role in ((fixed, "a"), (moving, "b"))]
    still, source = grid_of(fixed), grid_of(moving)
    values = [volume.as_tensor().detach().cpu().numpy()[0] for volume in (fixed, moving)]
    bodies = [
        body_mask(v, grid.spacing.tolist(), m) for v, grid, m in zip(values, (still, source), modalities, strict=True)
    ]
    windows = (_window(values[0], bodies[0], modalities[0]), _window(values[1], bodies[1], modalities[1]))
    near = with_rim(bodies[0], still)
    air = AIR[modalities[1]]
    matrix, best = np.eye(4), None
    for start in _starts(bodies, (still, source)):
        found = align(values[0], _placed(values[1], source, start, still, air), near, still, windows=windows)
        if found.reason is None and (best is None or found.information > best.information):
            matrix, best = start @ found.matrix, found
    if best is None:
        raise InputError(f"{names[1]} could not be registered to {names[0]}: {found.reason}.", _REMEDY)
    finer = align(values[0], _placed(values[1], source, matrix, still, air), near, still, fine=True, windows=windows)
    if finer.reason is None:
        matrix = matrix @ finer.matrix
    moved = _placed(values[1], source, matrix, still, air)
    covered = _placed(np.ones(source.shape, dtype=np.bool_), source, matrix, still, False)
    both = [
        bodies[0] & covered,
        _placed(bodies[1], source, matrix, still, False),
    ]
    dice = 2 * float((both[0] & both[1]).sum()) / max(1.0, float(both[0].sum() + both[1].sum()))
    cover = float(both[0].sum()) / float(bodies[0].sum())
    consistency = _consistency(values[0], moved, with_rim(both[1], still) & covered, still, windows, modalities[0])
    record = {
        "shift_mm": [round(float(v), 2) for v in _shift(matrix, bodies[0], still)],
        "rotation_degrees": round(float(np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1)))), 2),
        "consistency_mm": round(consistency, 2),
        "dice": round(dice, 4),
        "covered": round(cover, 4),
    }
    problems = [
        text
        for bad, text in (
            (not consistency <= CONSISTENCY_MM, f"back and forth ends {consistency:.1f} mm off ({CONSISTENCY_MM:g})"),
            (dice < SMALLEST_DICE, f"the bodies overlap with a Dice of {dice:.2f} ({SMALLEST_DICE:g})"),
            (cover < SMALLEST_COVER, f"{100 * cover:.0f} % of the body is covered ({100 * SMALLEST_COVER:g} %)"),
        )
        if bad
    ]
    if problems:
        raise InputError(
            f"{names[1]} could not be registered to {names[0]} (limits in brackets): {'; '.join(problems)}.", _REMEDY
        )
    meta = {**moving.meta, "affine": torch.from_numpy(still.affine.copy()), "spatial_shape": np.array(still.shape)}
    volume = MetaTensor(torch.from_numpy(moved)[None], meta=meta)
    return volume, covered, _picture(values[0], moved, bodies[0], still, windows), record


def save_picture(picture: npt.NDArray[np.uint8], path: Path) -> None:
    """Write a picture (H, W, 3) as PNG."""
    from matplotlib.image import imsave

    imsave(path, picture)


_REMEDY = "Register them with a tool of your own and leave preparation.register_pairs off, or leave this pair out."


def _window(values: np.ndarray, body: npt.NDArray[np.bool_], modality: str) -> tuple[float, float]:
    """The intensity window for the registration."""
    return HU_WINDOW if modality == "CT" else percentile_window(values, body)


def _starts(bodies: Sequence[npt.NDArray[np.bool_]], grids: Sequence[Grid]) -> list[npt.NDArray[np.float64]]:
    """Translations (4 x 4, RAS+ mm) from a point of the fixed volume to the moving one, to begin with."""
    centers, tops = [], []
    for body, grid in zip(bodies, grids, strict=True):
        points = np.argwhere(body)[::7] @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        top = float(points[:, 2].max())
        upper = points[points[:, 2] > top - 100]
        centers.append(points.mean(axis=0))
        tops.append(np.array([*upper.mean(axis=0)[:2], top]))
    starts = [np.eye(4)]
    for fixed, moving in (centers, tops):
        start = np.eye(4)
        start[:3, 3] = moving - fixed
        # A registration converges over a few millimeters by itself.
        if all(np.linalg.norm(start[:3, 3] - other[:3, 3]) > 5 for other in starts):
            starts.append(start)
    return starts


def _placed(values: np.ndarray, source: Grid, matrix: np.ndarray, target: Grid, fill: float) -> np.ndarray:
    """The moving volume on the fixed grid: at a point x its value at `matrix` x, as if on the grid matrix^-1 G."""
    there = Grid(source.shape, np.linalg.inv(matrix) @ source.affine)
    return resample(values, there, target, fill=fill, mode="nearest" if values.dtype == np.bool_ else "linear")


def _shift(matrix: np.ndarray, body: npt.NDArray[np.bool_], grid: Grid) -> np.ndarray:
    middle = grid.affine[:3, :3] @ np.argwhere(body).mean(axis=0) + grid.affine[:3, 3]
    return np.asarray(matrix[:3, :3] @ middle + matrix[:3, 3] - middle)


def _consistency(
    fixed: np.ndarray,
    moved: np.ndarray,
    near: npt.NDArray[np.bool_],
    grid: Grid,
    windows: tuple[tuple[float, float], tuple[float, float]],
    modality: str,
) -> float:
    """Mean distance of the body's voxels from their start after registering forth and back, mm."""
    push = np.eye(4)
    push[:3, 3] = (5.0, -5.0, 5.0)
    found = align(moved, _placed(fixed, grid, push, grid, AIR[modality]), near, grid, windows=(windows[1], windows[0]))
    if found.reason is not None:
        return float("inf")
    points = np.argwhere(near)[::7] @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    both = push @ found.matrix
    return float(np.linalg.norm(points @ both[:3, :3].T + both[:3, 3] - points, axis=1).mean())


def _picture(
    fixed: np.ndarray,
    moved: np.ndarray,
    body: npt.NDArray[np.bool_],
    grid: Grid,
    windows: tuple[tuple[float, float], tuple[float, float]],
) -> npt.NDArray[np.uint8]:
    """Three slices through the middle of the body, checkerboards of both volumes, side by side."""
    even = working_grid(grid, (_PICTURE_MM,) * 3)
    gray = [
        np.clip((resample(v, grid, even, fill=low) - low) / (high - low), 0, 1)
        for v, (low, high) in zip((fixed, moved), windows, strict=True)
    ]
    middle = np.argwhere(resample(body, grid, even, fill=0, mode="nearest")).mean(axis=0).astype(int)
    panels = []
    for axis in range(3):
        a, b = (values.take(middle[axis], axis=axis).T[::-1] for values in gray)
        row, column = np.indices(a.shape) // round(_SQUARE_MM / _PICTURE_MM)
        # Two tints, so that the eye can tell whose square it is.
        first, second = (tinted[..., None] * tint for tinted, tint in ((a, (1.0, 0.85, 0.6)), (b, (0.65, 0.85, 1.0))))
        panels.append(np.where(((row + column) % 2 == 0)[..., None], first, second))
    height = max(panel.shape[0] for panel in panels)
    panels = [np.pad(panel, ((0, height - panel.shape[0]), (0, 4), (0, 0))) for panel in panels]
    return np.asarray(np.concatenate(panels, axis=1) * 255, dtype=np.uint8)
