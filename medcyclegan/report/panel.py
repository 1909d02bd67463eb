"""A picture of one case for a paper or a folder: three planes through one voxel, with the signed error, as one PNG.

The report's scrollable views are made by `medcyclegan.report.viewer`; this is the still picture, with its scales drawn
in. Drawn with matplotlib's objects only: no global state, no window, safe in any thread.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator

from medcyclegan.evaluation.metrics.score import Mask, Volume
from medcyclegan.io.grid import Grid
from medcyclegan.report.display import (
    CT_WINDOW,
    ERROR_LIMIT,
    GRAY,
    GROUND,
    NOT_A_NUMBER,
    PLANES,
    SIGNED,
    RasOrder,
    box_center,
    on_screen,
    percentile_range,
    window_words,
)

CAPTION = (
    f"Columns: MR (where given), synthetic CT, CT (both at {window_words(CT_WINDOW)}), and the signed error, synthetic "
    f"CT minus CT (red: too dense, blue: not dense enough; colors end at ±{ERROR_LIMIT:g} HU). Black line: border of "
    "the mask. Radiological display: the patient's right is on the left of axial and coronal slices, anterior is on "
    "the left of sagittal slices."
)

_INK = "#e6e8eb"
_NEUTRAL = "#7d8590"
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
    center = box_center(inside, grid.shape) if voxel is None else voxel

    order = RasOrder(grid)
    ras = {name: order.apply(array) for name, array in arrays.items() if array is not None and name != "mask"}
    ras["error"] = ras["synthetic CT"].astype(np.float32) - ras["CT"].astype(np.float32)
    border = None if inside is None else order.apply(inside)
    at = order.index(center)

    ranges = {"synthetic CT": CT_WINDOW, "CT": CT_WINDOW, "error": (-ERROR_LIMIT, ERROR_LIMIT)}
    if mr is not None:
        ranges["MR"] = percentile_range(mr, inside)
    columns = [name for name in ("MR", "synthetic CT", "CT", "error") if name in ras]
    size = np.multiply(order.shape, order.spacing)
    heights = [float(size[plane.up]) for plane in PLANES]
    width = float(max(size[0], size[1]))
    scale = 2.6 / width
    left, head, bar, foot = 0.3, 0.3, 0.42, 0.3
    inches = (scale * width * len(columns) + left + 0.1, scale * sum(heights) + bar + foot + head)
    figure = _figure(*inches)
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
    for row, plane in enumerate(PLANES):
        index = at[plane.cut]
        for column, name in enumerate(columns):
            axes = figure.add_subplot(cells[row, column])
            extent = (0.0, float(size[plane.across]), 0.0, float(size[plane.up]))
            _show(axes, on_screen(ras[name], plane, index), extent, ranges[name], name == "error")
            if border is not None and name == "error":
                _outline(axes, on_screen(border, plane, index), extent)
            if row == 0:
                axes.set_title("synthetic CT − CT" if name == "error" else name, color=_INK, fontsize=9, pad=4)
            if column == 0:
                middle = (axes.get_position().y0 + axes.get_position().y1) / 2
                figure.text(
                    0.14 / inches[0], middle, plane.name, color=_INK, fontsize=9, rotation=90, ha="center", va="center"
                )
                _letters(axes, plane.letters)
            if row == 2:
                unit = "arbitrary unit" if name == "MR" else "HU"
                _color_bar(figure, axes, unit, (foot + 0.14) / inches[1], 0.08 / inches[1])
    figure.text(left / inches[0], 0.1 / inches[1], _footer(order, center), color=_NEUTRAL, fontsize=7)
    return _png(figure)


def _show(
    axes: Axes,
    pixels: npt.NDArray[Any],
    extent: tuple[float, float, float, float],
    limits: tuple[float, float],
    signed: bool,
) -> None:
    """Draw (rows downward, columns) over `extent`: left, right, bottom, top in mm."""
    colors = mpl.colormaps[SIGNED if signed else GRAY].with_extremes(bad=NOT_A_NUMBER)
    shown = np.ma.masked_invalid(pixels.astype(np.float32))
    axes.imshow(shown, cmap=colors, vmin=limits[0], vmax=limits[1], origin="upper", extent=extent, aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("black")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _letters(axes: Axes, letters: tuple[str, str, str, str]) -> None:
    """The patient's sides at the four edges, with a dark rim so that they read on bright tissue."""
    rim = [Stroke(linewidth=2, foreground="black"), Normal()]
    places = (
        (0.02, 0.5, "left", "center"),
        (0.98, 0.5, "right", "center"),
        (0.5, 0.98, "center", "top"),
        (0.5, 0.02, "center", "bottom"),
    )
    for letter, (x, y, across, up) in zip(letters, places, strict=True):
        text = axes.text(x, y, letter, transform=axes.transAxes, color="#ffd479", fontsize=9, ha=across, va=up)
        text.set_path_effects(rim)


def _outline(axes: Axes, pixels: npt.NDArray[np.bool_], extent: tuple[float, float, float, float]) -> None:
    if not pixels.any() or pixels.all() or min(pixels.shape) < 2:
        return
    rows, columns = pixels.shape
    x = (np.arange(columns) + 0.5) * (extent[1] / columns)
    y = extent[3] - (np.arange(rows) + 0.5) * (extent[3] / rows)
    axes.contour(x, y, pixels.astype(np.float32), levels=[0.5], colors="black", linewidths=0.6)


def _color_bar(figure: Figure, axes: Axes, unit: str, bottom: float, height: float) -> None:
    place = axes.get_position()
    ground = figure.add_axes((place.x0 + 0.1 * place.width, bottom, 0.8 * place.width, height))
    scale = figure.colorbar(axes.images[0], cax=ground, orientation="horizontal")
    scale.locator = MaxNLocator(4)
    scale.update_ticks()
    ground.tick_params(colors=_INK, labelsize=6.5, length=2, pad=1.5)
    ground.set_title(unit, color=_NEUTRAL, fontsize=6.5, pad=2)
    scale.outline.set_visible(False)


def _footer(order: RasOrder, voxel: Sequence[int]) -> str:
    x, y, z = (order.grid.affine @ np.array([*voxel, 1.0]))[:3]
    words = [
        f"CT window: {window_words(CT_WINDOW)}",
        "radiological (right on the left)",
        f"through x {x:.0f}, y {y:.0f}, z {z:.0f} mm (RAS)",
    ]
    if order.tilt_degrees > 1:
        words.append(f"slices are oblique by {order.tilt_degrees:.0f}°")
    return "  ·  ".join(words)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=GROUND)
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=GROUND)
    return stream.getvalue()
