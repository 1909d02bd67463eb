"""The slices of one case as small pictures that a page can scroll through without a server.

Every picture shows one slice in columns side by side: MR, synthetic CT, CT, signed error and uncertainty, if given. All
three planes have the same scale in millimeters. The pictures are lossy WebP, for display only; every number in a
report comes from the volumes. The number of slices depends on the bytes that a case may take.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.colors import Colormap
from PIL import Image, ImageColor
from scipy import ndimage

from medcyclegan.report.display import (
    ERROR_LIMIT,
    GRAY,
    GROUND,
    NOT_A_NUMBER,
    PLANES,
    SIGNED,
    Inside,
    Plane,
    RasOrder,
    bounding_box,
    on_screen,
    percentile_range,
)
from medcyclegan.report.volumes import CaseVolumes

# Columns, by the names that are shown above them.
MR, SCT, CT, ERROR, UNCERTAINTY = "MR", "Synthetic CT", "CT", "Synthetic CT − CT", "Uncertainty map"
# Everything denser than this in either CT is kept in view, whether inside the mask or not.
VISIBLE_ABOVE_HU = -300.0
GAP = 2  # pixels between columns
_MARGIN_MM = 6.0  # around what is in view, for the letters
_QUALITY = 80
# (bytes that a case may take, width of a column in pixels)
_WIDTHS = ((600_000, 208), (250_000, 160), (0, 128))
_MOST_SLICES = 40
_RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Column:
    """One column of the pictures and its scale.

    Attributes:
        name: as shown above the column.
        unit: of the scale's ends; empty where unknown.
        low: value drawn in the first color; smaller ones look the same.
        high: value drawn in the last color; larger ones look the same.
        colors: name of the matplotlib color map.
    """

    name: str
    unit: str
    low: float
    high: float
    colors: str


@dataclass(frozen=True)
class Picture:
    """One slice.

    Attributes:
        webp: the file; columns side by side, `GAP` pixels between them.
        axis: the file's axis that the slice number counts along: "i", "j" or "k".
        number: slice number along it, from 0.
        position_mm: where the slice's center lies on the RAS axis nearest to the one it cuts.
        error_hu: mean |synthetic CT - CT| over the slice's voxels in the mask; None where there are none.
    """

    webp: bytes
    axis: str
    number: int
    position_mm: float
    error_hu: float | None


@dataclass(frozen=True)
class PlaneView:
    """The pictures of one plane.

    Attributes:
        plane: which.
        pictures: from low to high on the axis that the plane cuts.
        start: index of the picture shown first, the nearest to the middle.
        worst: index of the picture with the largest mean error of all slices; None without a mask voxel.
        available: how many slices there are in view, shown or not.
        width: of every picture, pixels.
        height: of every picture, pixels.
    """

    plane: Plane
    pictures: tuple[Picture, ...]
    start: int
    worst: int | None
    available: int
    width: int
    height: int


@dataclass(frozen=True)
class CaseView:
    """All pictures of one case.

    Attributes:
        columns: from left to right.
        planes: axial, coronal, sagittal.
        tilt_degrees: angle between the slices and the patient's axes.
    """

    columns: tuple[Column, ...]
    planes: tuple[PlaneView, ...]
    tilt_degrees: float

    @property
    def bytes(self) -> int:
        """Of all pictures together, before they are written as text."""
        return sum(len(picture.webp) for view in self.planes for picture in view.pictures)


def case_view(case: CaseVolumes, window: tuple[float, float], limit_bytes: int) -> CaseView:
    """Draw one case.

    Slices run along the volume's own axes. In-plane, the values under a pixel are averaged (not interpolated where the
    pixel is smaller than a voxel), then windowed. The field of view is cropped to what is denser than -300 HU in either
    CT, or in the mask. Slices are evenly spaced; the middle one and the one with the largest mean error are always
    among them. Values that are not finite are magenta.

    Args:
        case: MR is shown between its 1st and 99.5th percentile in the mask, the uncertainty from 0, or its minimum if
            that is below, to its 99.5th percentile; the border of the mask is drawn on the error.
        window: HU drawn black and white, low < high.
        limit_bytes: what the pictures may take together; one slice per plane is drawn even if that takes more.

    Raises:
        ValueError: an array's shape is not the grid's, or the window is empty.
    """
    given = {SCT: case.sct, CT: case.ct, MR: case.mr, UNCERTAINTY: case.uncertainty, "mask": case.inside}
    volumes = {name: array for name, array in given.items() if array is not None}
    if wrong := {name: array.shape for name, array in volumes.items() if array.shape != case.grid.shape}:
        raise ValueError(f"the grid has shape {case.grid.shape}, but {wrong}")
    if not window[0] < window[1]:
        raise ValueError(f"the window runs from low to high, got {window}")
    width = next(width for least, width in _WIDTHS if limit_bytes >= least)
    drawing = _Drawing(RasOrder(case.grid), volumes, _columns(case, window), width)
    return _fitting(drawing, limit_bytes)


def _columns(case: CaseVolumes, window: tuple[float, float]) -> tuple[Column, ...]:
    columns = [
        Column(SCT, "HU", *window, GRAY),
        Column(CT, "HU", *window, GRAY),
        Column(ERROR, "HU", -ERROR_LIMIT, ERROR_LIMIT, SIGNED),
    ]
    if case.mr is not None:
        columns.insert(0, Column(MR, "arbitrary", *percentile_range(case.mr, case.inside), GRAY))
    if case.uncertainty is not None:
        low, high = percentile_range(case.uncertainty, case.inside, 0.0)
        columns.append(Column(UNCERTAINTY, "as given", min(0.0, low), high, "viridis"))
    return tuple(columns)


def _fitting(drawing: _Drawing, limit_bytes: int) -> CaseView:
    """As many slices per plane as fit."""
    middle = sum(len(drawing.picture(plane, drawing.middle(plane)).webp) for plane in PLANES)
    # Outer slices show less and take fewer bytes than the middle ones, so this first guess is seldom too large.
    count = max(1, min(_MOST_SLICES, round(1.25 * limit_bytes / middle)))
    while True:
        planes = tuple(drawing.view(plane, count) for plane in PLANES)
        view = CaseView(drawing.columns, planes, drawing.order.tilt_degrees)
        if view.bytes <= limit_bytes or count == 1:
            return view
        count = max(1, min(count - 1, int(count * limit_bytes / view.bytes)))


class _Drawing:
    """Draws slices of one case and remembers them."""

    def __init__(
        self, order: RasOrder, volumes: dict[str, npt.NDArray[Any]], columns: tuple[Column, ...], width: int
    ) -> None:
        self.order, self.columns, self.width = order, columns, width
        self.volumes = {name: order.apply(array) for name, array in volumes.items()}
        inside, sct, ct = self.volumes["mask"], self.volumes[SCT], self.volumes[CT]
        visible = inside | (ct > VISIBLE_ABOVE_HU) | (sct > VISIBLE_ABOVE_HU)
        full = tuple((0, n - 1) for n in order.shape)
        self.box = _widened(bounding_box(visible), order) if visible.any() else full
        self.center = bounding_box(inside) if inside.any() else self.box
        self.box_mm = [(b - a + 1) * s for (a, b), s in zip(self.box, order.spacing, strict=True)]
        self.pixels_per_mm = width / max(self.box_mm[0], self.box_mm[1])
        self.errors = _errors_by_slice(sct, ct, inside)
        self.drawn: dict[tuple[str, int], Picture] = {}

    def middle(self, plane: Plane) -> int:
        low, high = self.center[plane.cut]
        return (low + high) // 2

    def worst(self, plane: Plane) -> int | None:
        errors = self.errors[plane.cut]
        return int(np.nanargmax(errors)) if np.isfinite(errors).any() else None

    def view(self, plane: Plane, count: int) -> PlaneView:
        first, last = self.box[plane.cut]
        middle, worst = self.middle(plane), self.worst(plane)
        chosen = _spread(first, last, count, [middle] if worst is None else [middle, worst])
        pictures = tuple(self.picture(plane, index) for index in chosen)
        height = self._pixels(plane.up)
        width = len(self.columns) * self.width + (len(self.columns) - 1) * GAP
        at_worst = chosen.index(worst) if worst in chosen else None
        return PlaneView(plane, pictures, chosen.index(middle), at_worst, last - first + 1, width, height)

    def picture(self, plane: Plane, index: int) -> Picture:
        key = (plane.name, index)
        if key not in self.drawn:
            self.drawn[key] = self._draw(plane, index)
        return self.drawn[key]

    def _pixels(self, axis: int) -> int:
        return max(1, round(self.box_mm[axis] * self.pixels_per_mm))

    def _draw(self, plane: Plane, index: int) -> Picture:
        inside = self._pixels_of("mask", plane, index) >= 0.5
        step = self.width + GAP
        canvas = np.full((inside.shape[0], len(self.columns) * step - GAP, 3), ImageColor.getrgb(GROUND), np.uint8)
        for number, column in enumerate(self.columns):
            if column.name == ERROR:
                tile = _colored(self._pixels_of(SCT, plane, index) - self._pixels_of(CT, plane, index), column)
                # The border of the mask; the picture's own edge is none.
                tile[inside & ~ndimage.binary_erosion(inside, border_value=1)] = 0
            else:
                tile = _colored(self._pixels_of(column.name, plane, index), column)
            left = number * step + (self.width - tile.shape[1]) // 2
            canvas[:, left : left + tile.shape[1]] = tile
        error = float(self.errors[plane.cut][index])
        place = [(low + high) // 2 for low, high in self.center]
        place[plane.cut] = index
        position = float((self.order.affine @ [*place, 1.0])[plane.cut])
        axis, number = self.order.file_index(plane.cut, index)
        return Picture(_webp(canvas), axis, number, position, error if np.isfinite(error) else None)

    def _pixels_of(self, name: str, plane: Plane, index: int) -> npt.NDArray[np.float32]:
        """The slice in view, averaged onto the pixels of its tile."""
        box = tuple(slice(a, b + 1) if axis != plane.cut else slice(None) for axis, (a, b) in enumerate(self.box))
        values = np.ascontiguousarray(on_screen(self.volumes[name][box], plane, index), dtype=np.float32)
        values[~np.isfinite(values)] = np.nan
        size = (self._pixels(plane.across), self._pixels(plane.up))
        return np.array(Image.fromarray(values).resize(size, Image.Resampling.BOX))


def _spread(first: int, last: int, count: int, wanted: Sequence[int]) -> list[int]:
    """`count` numbers evenly from first to last; each of the wanted ones takes the place of its nearest neighbor."""
    kept = list(dict.fromkeys(wanted))[:count]
    others = list(dict.fromkeys(round(n) for n in np.linspace(first, last, min(count, last - first + 1)).tolist()))
    for index in kept:
        if others:
            others.remove(min(others, key=lambda other: abs(other - index)))
    return sorted({*kept, *others})


def _widened(box: tuple[tuple[int, int], ...], order: RasOrder) -> tuple[tuple[int, int], ...]:
    """The box with a margin, as far as the volume goes."""
    margins = [math.ceil(_MARGIN_MM / step) for step in order.spacing]
    return tuple(
        (max(0, low - more), min(n - 1, high + more))
        for (low, high), more, n in zip(box, margins, order.shape, strict=True)
    )


def _errors_by_slice(
    sct: npt.NDArray[Any], ct: npt.NDArray[Any], inside: Inside
) -> tuple[npt.NDArray[np.float64], ...]:
    """Mean |sct - ct| in the mask for every slice along each axis; nan where a slice has no voxel in the mask."""
    error = np.abs(sct.astype(np.float32) - ct.astype(np.float32))
    error[~inside] = 0

    def along(others: tuple[int, int]) -> npt.NDArray[np.float64]:
        counts = inside.sum(axis=others)
        sums = error.sum(axis=others, dtype=np.float64)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    return tuple(along(others) for others in ((1, 2), (0, 2), (0, 1)))


def _colored(values: npt.NDArray[np.float32], column: Column) -> _RGB:
    scaled = np.ma.masked_invalid((values - column.low) / (column.high - column.low))
    return np.array(_color_map(column.colors)(scaled, bytes=True)[..., :3])


@functools.cache
def _color_map(name: str) -> Colormap:
    return mpl.colormaps[name].with_extremes(bad=NOT_A_NUMBER)


def _webp(pixels: _RGB) -> bytes:
    stream = io.BytesIO()
    # Sharp chroma, since the signed error changes color from voxel to voxel.
    Image.fromarray(pixels).save(stream, format="WEBP", quality=_QUALITY, method=4, use_sharp_yuv=True)
    return stream.getvalue()
