"""Pictures for people: one case in three planes with its signed error, and training curves. All come back as PNG.

Volumes come with their grid and are brought to RAS for display, so that anterior is up in axial slices and superior is
up in coronal and sagittal ones, whatever the order of the file's axes. Drawn with matplotlib's objects only: no global
state, no window, safe in any thread.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator

from medcyclegan.evaluation.metrics.score import Mask, Volume
from medcyclegan.io.grid import Grid

# Wide enough for bone, narrow enough to tell soft tissue from fat.
CT_LOW, CT_HIGH = -400.0, 1200.0
ERROR_LIMIT = 500.0
CT_WINDOW = f"level {(CT_LOW + CT_HIGH) / 2:g} HU, width {CT_HIGH - CT_LOW:g} HU"
CAPTION = (
    f"Columns: MR (where given), synthetic CT, CT (both at {CT_WINDOW}), and the signed error, synthetic CT minus CT "
    f"(red: too dense, blue: not dense enough; colors end at ±{ERROR_LIMIT:g} HU). Black line: border of the mask. "
    "Radiological display: the patient's right is on the left of axial and coronal slices, anterior is on the left of "
    "sagittal slices."
)

_INK, _PAPER = "#e6e8eb", "#0d0f12"
_NEUTRAL = "#7d8590"
_NOT_A_NUMBER = "#ff00ff"
_DPI = 130


def case_panel(
    mr: Volume | None,
    sct: Volume,
    ct: Volume,
    grid: Grid,
    mask: Mask | None = None,
    *,
    voxel: tuple[int, int, int] | None = None,
) -> bytes:
    """One case in three planes: MR, synthetic CT, CT and signed error (see `CAPTION`).

    Every slice runs along the volume's own axes, the nearest to the patient's; if they are oblique, the picture says by
    how much. Values that are not finite are drawn in magenta.

    Args:
        mr: (X, Y, Z), any unit, shown between its 1st and 99.5th percentile in the mask; None leaves the column out.
        sct: (X, Y, Z), HU.
        ct: (X, Y, Z), HU.
        grid: of all the arrays.
        mask: (X, Y, Z), voxels above 0 are inside; None draws no border.
        voxel: index (i, j, k) through which the three planes run; None takes the center of the mask's bounding box, or
            of the volume.

    Returns:
        A PNG.

    Raises:
        ValueError: an array's shape is not the grid's, or the voxel is outside.
    """
    arrays = {"MR": mr, "synthetic CT": sct, "CT": ct, "mask": mask}
    wrong = {name: array.shape for name, array in arrays.items() if array is not None and array.shape != grid.shape}
    if wrong:
        raise ValueError(f"the grid has shape {grid.shape}, but {wrong}")
    if voxel is not None and not all(0 <= index < n for index, n in zip(voxel, grid.shape, strict=True)):
        raise ValueError(f"voxel {voxel} is outside the shape {grid.shape}")
    inside = None if mask is None else np.asarray(mask) > 0
    center = _center(inside, grid.shape) if voxel is None else voxel

    to_ras = nib.orientations.io_orientation(grid.affine)
    ras = {name: _reorient(array, to_ras) for name, array in arrays.items() if array is not None and name != "mask"}
    ras["error"] = ras["synthetic CT"].astype(np.float32) - ras["CT"].astype(np.float32)
    border = None if inside is None else _reorient(inside, to_ras)
    at = _ras_index(center, grid.shape, to_ras)
    spacing = _ras_spacing(grid, to_ras)

    ranges = {"synthetic CT": (CT_LOW, CT_HIGH), "CT": (CT_LOW, CT_HIGH), "error": (-ERROR_LIMIT, ERROR_LIMIT)}
    if mr is not None:
        ranges["MR"] = _mr_range(mr, inside)
    columns = [name for name in ("MR", "synthetic CT", "CT", "error") if name in ras]
    size = np.multiply(next(iter(ras.values())).shape, spacing)
    # (plane, the axis it cuts, its horizontal and vertical axes, the letters at its left and right edge)
    planes = (("Axial", 2, 0, 1, "RL"), ("Coronal", 1, 0, 2, "RL"), ("Sagittal", 0, 1, 2, "AP"))
    heights = [float(size[vertical]) for _, _, _, vertical, _ in planes]
    width = float(max(size[0], size[1]))
    scale = 2.6 / width
    left, head, bar, foot = 0.3, 0.3, 0.42, 0.3
    inches = (scale * width * len(columns) + left + 0.1, scale * sum(heights) + bar + foot + head)
    figure = _figure(*inches, _PAPER)
    cells = figure.add_gridspec(
        3,
        len(columns),
        height_ratios=heights,
        left=left / inches[0],
        right=1 - 0.1 / inches[0],
        top=1 - head / inches[1],
        bottom=(bar + foot) / inches[1],
        wspace=0.02,
        hspace=0.02,
    )
    for row, (plane, cut, across, up, letters) in enumerate(planes):
        for column, name in enumerate(columns):
            axes = figure.add_subplot(cells[row, column])
            _show(axes, _slice(ras[name], cut, at[cut]), size[across], size[up], ranges[name], name == "error")
            if border is not None and name == "error":
                _outline(axes, _slice(border, cut, at[cut]), size[across], size[up])
            if row == 0:
                axes.set_title("synthetic CT − CT" if name == "error" else name, color=_INK, fontsize=9, pad=4)
            if column == 0:
                middle = (axes.get_position().y0 + axes.get_position().y1) / 2
                figure.text(
                    0.14 / inches[0], middle, plane, color=_INK, fontsize=9, rotation=90, ha="center", va="center"
                )
                _letters(axes, letters)
            if row == 2:
                unit = "arbitrary unit" if name == "MR" else "HU"
                _color_bar(figure, axes, unit, (foot + 0.14) / inches[1], 0.08 / inches[1])
    figure.text(left / inches[0], 0.1 / inches[1], _footer(grid, to_ras, center), color=_NEUTRAL, fontsize=7)
    return _png(figure, transparent=False)


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> bytes:
    """Training curves, one small plot per name over a shared axis of steps.

    Args:
        series: name to (steps, values) of equal length. A value that is not finite leaves a gap and is counted in the
            plot's title.

    Returns:
        A PNG with a transparent ground, legible on white and on black.

    Raises:
        ValueError: nothing to draw, or steps and values of different length.
    """
    if not series:
        raise ValueError("there is no curve to draw")
    columns = min(3, len(series))
    rows = math.ceil(len(series) / columns)
    figure = _figure(3.6 * columns, 2.1 * rows + 0.2, "none")
    figure.set_layout_engine("constrained")
    first: Axes | None = None
    for position, (name, (steps, values)) in enumerate(series.items(), start=1):
        if len(steps) != len(values):
            raise ValueError(f"curve '{name}' has {len(steps)} steps and {len(values)} values")
        axes = figure.add_subplot(rows, columns, position, sharex=first)
        first = first or axes
        y = np.asarray(values, dtype=np.float64)
        lost = int(np.count_nonzero(~np.isfinite(y)))
        y[~np.isfinite(y)] = np.nan
        axes.plot(steps, y, color="#3f8fd2", linewidth=1.4, marker="o" if len(y) < 30 else "", markersize=3)
        axes.set_title(f"{name} ({lost} not finite)" if lost else name, color=_NEUTRAL, fontsize=9)
        axes.set_facecolor("none")
        axes.tick_params(colors=_NEUTRAL, labelsize=7)
        axes.grid(color=_NEUTRAL, alpha=0.25, linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(side in ("left", "bottom"))
            axes.spines[side].set_color(_NEUTRAL)
        if position > len(series) - columns:
            axes.set_xlabel("step", color=_NEUTRAL, fontsize=8)
    return _png(figure, transparent=True)


def _center(inside: npt.NDArray[np.bool_] | None, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if inside is None or not inside.any():
        i, j, k = (n // 2 for n in shape)
        return i, j, k
    spans = [np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    i, j, k = (int(span[0] + span[-1]) // 2 for span in spans)
    return i, j, k


def _reorient(array: npt.NDArray[Any], to_ras: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    return np.asarray(nib.orientations.apply_orientation(np.asarray(array), to_ras))


def _ras_index(voxel: Sequence[int], shape: Sequence[int], to_ras: npt.NDArray[np.float64]) -> list[int]:
    """Where a voxel lies after `_reorient`; row n of `to_ras` is (new axis, direction) of the old axis n."""
    moved = [0, 0, 0]
    for old, (new, direction) in enumerate(to_ras):
        moved[int(new)] = voxel[old] if direction > 0 else shape[old] - 1 - voxel[old]
    return moved


def _ras_spacing(grid: Grid, to_ras: npt.NDArray[np.float64]) -> list[float]:
    moved = [0.0, 0.0, 0.0]
    for old, new in enumerate(to_ras[:, 0]):
        moved[int(new)] = float(grid.spacing[old])
    return moved


def _slice(volume: npt.NDArray[Any], cut: int, index: int) -> npt.NDArray[Any]:
    """A plane as (rows upward, columns rightward) on the screen."""
    plane = np.take(volume, index, axis=cut).T
    # x grows toward the patient's right, which radiological display puts on the left; y grows toward anterior, which
    # the same turn puts on the left of a sagittal slice.
    return plane[:, ::-1]


def _show(
    axes: Axes,
    plane: npt.NDArray[Any],
    width: float,
    height: float,
    limits: tuple[float, float],
    signed: bool,
) -> None:
    colors = mpl.colormaps["RdBu_r" if signed else "gray"].with_extremes(bad=_NOT_A_NUMBER)
    axes.imshow(
        np.ma.masked_invalid(plane.astype(np.float32)),
        cmap=colors,
        vmin=limits[0],
        vmax=limits[1],
        origin="lower",
        extent=(0.0, float(width), 0.0, float(height)),
        aspect="equal",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("black")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _letters(axes: Axes, letters: str) -> None:
    """The patient's sides at the left and right edge, with a dark rim so that they read on bright tissue."""
    rim = [Stroke(linewidth=2, foreground="black"), Normal()]
    for x, letter, side in zip((0.02, 0.98), letters, ("left", "right"), strict=True):
        axes.text(
            x,
            0.5,
            letter,
            transform=axes.transAxes,
            color="#ffd479",
            fontsize=9,
            ha=side,
            va="center",
            path_effects=rim,
        )


def _outline(axes: Axes, plane: npt.NDArray[np.bool_], width: float, height: float) -> None:
    if not plane.any() or plane.all() or min(plane.shape) < 2:
        return
    rows, columns = plane.shape
    x = (np.arange(columns) + 0.5) * (width / columns)
    y = (np.arange(rows) + 0.5) * (height / rows)
    axes.contour(x, y, plane.astype(np.float32), levels=[0.5], colors="black", linewidths=0.6)


def _color_bar(figure: Figure, axes: Axes, unit: str, bottom: float, height: float) -> None:
    place = axes.get_position()
    ground = figure.add_axes((place.x0 + 0.1 * place.width, bottom, 0.8 * place.width, height))
    scale = figure.colorbar(axes.images[0], cax=ground, orientation="horizontal")
    scale.locator = MaxNLocator(4)
    scale.update_ticks()
    ground.tick_params(colors=_INK, labelsize=6.5, length=2, pad=1.5)
    ground.set_title(unit, color=_NEUTRAL, fontsize=6.5, pad=2)
    scale.outline.set_visible(False)


def _mr_range(mr: Volume, inside: npt.NDArray[np.bool_] | None) -> tuple[float, float]:
    values = mr[inside] if inside is not None and inside.any() else mr.ravel()
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, (1, 99.5)))
    return low, high if high > low else low + 1


def _footer(grid: Grid, to_ras: npt.NDArray[np.float64], voxel: Sequence[int]) -> str:
    x, y, z = (grid.affine @ np.array([*voxel, 1.0]))[:3]
    directions = grid.affine[:3, :3] / grid.spacing
    cosines = np.abs(directions[to_ras[:, 0].astype(int), [0, 1, 2]])
    tilt = math.degrees(math.acos(float(np.clip(cosines, 0, 1).min())))
    words = [
        f"CT window: {CT_WINDOW}",
        "radiological (right on the left)",
        f"through x {x:.0f}, y {y:.0f}, z {z:.0f} mm (RAS)",
    ]
    if tilt > 1:
        words.append(f"slices are oblique by {tilt:.0f}°")
    return "  ·  ".join(words)


def _figure(width: float, height: float, ground: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=ground)
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure, transparent: bool) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", transparent=transparent, facecolor="none" if transparent else _PAPER)
    return stream.getvalue()
