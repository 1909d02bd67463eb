"""Plots of scores, of pooled voxels and of training curves, each drawn twice: for a light and for a dark page.

Drawn with matplotlib's objects only: no global state, no window, safe in any thread. The ground is transparent; the
format is lossless WebP.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator, MultipleLocator
from PIL import Image

from medcyclegan.report.density import DIFFERENCE_EDGES, HU_EDGES, Counts, HuDensity

_DPI = 140
_COLUMNS = 3
_SEED = 0  # of the vertical scatter, which means nothing


@dataclass(frozen=True)
class _Theme:
    paper: str
    ink: str
    quiet: str
    line: str
    accent: str
    second: str
    density: str


_LIGHT = _Theme("#ffffff", "#1b1f24", "#57606a", "#c8ced5", "#0b62b3", "#b3450b", "viridis_r")
_DARK = _Theme("#14171b", "#e3e6ea", "#a4adb7", "#3d444c", "#6cb2f5", "#f5a26c", "viridis")


@dataclass(frozen=True)
class Plot:
    """One plot in both themes.

    Attributes:
        light: WebP with dark ink.
        dark: WebP with light ink.
        width: CSS pixels at which it is legible.
        height: CSS pixels.
        words: what it shows, for those who do not see it.
    """

    light: bytes
    dark: bytes
    width: int
    height: int
    words: str


@dataclass(frozen=True)
class Distribution:
    """The values of one score over the cases.

    Attributes:
        title: heading with unit.
        values: one per case; those that are not finite are counted in the title and not drawn.
        mean: of the cases, None if unknown.
        interval: 95 % interval of the mean, None if unknown.
    """

    title: str
    values: Sequence[float]
    mean: float | None = None
    interval: tuple[float, float] | None = None


def distributions(scores: Sequence[Distribution]) -> Plot:
    """Every case a point; box: quartiles and median; below it the mean with its interval, where there is one.

    Raises:
        ValueError: no score.
    """
    if not scores:
        raise ValueError("there is no score to draw")
    words = "; ".join(f"{score.title}: {_span(score.values)}" for score in scores)
    draws = [partial(_distribution, score) for score in scores]
    return _plot(draws, (3.7, 1.6), 0.1, f"Distribution over the cases. {words}.")


def joint_histogram(density: HuDensity) -> Plot:
    """Synthetic CT against CT, voxels per bin on a logarithmic scale, with the line of equality."""
    return _plot(
        [partial(_joint, density)],
        (5.2, 4.4),
        0,
        f"Joint histogram of {density.voxels} voxels in the masks: CT across, synthetic CT upward, in HU; "
        "a perfect synthetic CT lies on the diagonal.",
    )


def bland_altman(density: HuDensity) -> Plot:
    """Synthetic CT - CT against the mean of both, with bias, limits of agreement, and a point per case."""
    low, high = density.limits_of_agreement
    return _plot(
        [partial(_agreement, density)],
        (5.2, 4.4),
        0,
        f"Bland-Altman plot of {density.voxels} voxels: bias {density.bias:.1f} HU, limits of agreement {low:.1f} to "
        f"{high:.1f} HU; one point per case at its own means.",
    )


def by_angle(quantities: Mapping[str, Sequence[tuple[float, float, float]]]) -> Plot:
    """Range errors around the patient, one small plot per quantity.

    Args:
        quantities: name to rows of (gantry angle in degrees, mean in mm, 95th percentile in mm).

    Raises:
        ValueError: no quantity, or one without rows.
    """
    if not quantities or not all(quantities.values()):
        raise ValueError("there is no angle to draw")
    worst = {name: max(rows, key=lambda row: row[1]) for name, rows in quantities.items()}
    words = "; ".join(f"{name}: largest mean {row[1]:.1f} mm at {row[0]:g} degrees" for name, row in worst.items())
    draws = [partial(_angles, name, rows) for name, rows in quantities.items()]
    return _plot(draws, (5.5, 2.4), 0, f"Range error by gantry angle. {words}.", len(quantities))


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Plot:
    """Training curves, one small plot per name over a shared axis of steps.

    Args:
        series: name to (steps, values) of equal length. A value that is not finite leaves a gap and is counted in the
            plot's title.

    Raises:
        ValueError: nothing to draw, or steps and values of different length.
    """
    if not series:
        raise ValueError("there is no curve to draw")
    for name, (steps, values) in series.items():
        if len(steps) != len(values):
            raise ValueError(f"curve '{name}' has {len(steps)} steps and {len(values)} values")
    words = "; ".join(f"{name}: {_ends(values)}" for name, (_, values) in series.items())
    last = len(series) - min(_COLUMNS, len(series))
    draws = [partial(_curve, name, *values, n >= last) for n, (name, values) in enumerate(series.items())]
    return _plot(draws, (3.7, 2.0), 0.2, f"Curves over training steps. {words}.", share=True)


def _distribution(score: Distribution, axes: Axes, theme: _Theme) -> None:
    everything = np.asarray(score.values, dtype=np.float64)
    values = everything[np.isfinite(everything)]
    _title(axes, theme, score.title, everything.size - values.size, "without a finite value")
    if values.size:
        heights = 1 + np.random.default_rng(_SEED).uniform(-0.22, 0.22, values.size)
        axes.scatter(values, heights, s=16, color=theme.accent, alpha=0.65, linewidths=0, zorder=3)
        q1, median, q3 = np.percentile(values, (25, 50, 75))
        axes.barh(1, q3 - q1, 0.62, q1, facecolor="none", edgecolor=theme.quiet, linewidth=0.9, zorder=2)
        axes.plot([median, median], [0.69, 1.31], color=theme.ink, linewidth=1.6, zorder=4)
    if score.mean is not None and math.isfinite(score.mean):
        axes.plot(score.mean, 0.35, marker="D", color=theme.second, markersize=4.5, zorder=4)
    if score.interval is not None and all(map(math.isfinite, score.interval)):
        axes.plot(score.interval, [0.35, 0.35], color=theme.second, linewidth=1.6, solid_capstyle="butt", zorder=3)
    axes.set_ylim(0.1, 1.45)
    axes.set_yticks([])
    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.spines["left"].set_visible(False)


def _angles(name: str, rows: Sequence[tuple[float, float, float]], axes: Axes, theme: _Theme) -> None:
    angles, means, tails = zip(*rows, strict=True)
    axes.plot(angles, means, color=theme.accent, linewidth=1.5)
    axes.plot(angles, tails, color=theme.accent, linewidth=1.2, linestyle=(0, (4, 2)))
    _title(axes, theme, f"{name} [mm]")
    axes.set_xlabel("gantry angle [°]", color=theme.quiet, fontsize=8)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MultipleLocator(90))
    axes.grid(color=theme.line, alpha=0.6, linewidth=0.6)
    axes.set_axisbelow(True)


def _joint(density: HuDensity, axes: Axes, theme: _Theme) -> None:
    low, high = _filled(density.joint.sum(axis=0) + density.joint.sum(axis=1), HU_EDGES)
    _counts(axes, density.joint, HU_EDGES, theme)
    axes.plot([low, high], [low, high], color=theme.second, linewidth=1, linestyle=(0, (5, 3)))
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set_xlabel("CT [HU]", color=theme.quiet, fontsize=8)
    axes.set_ylabel("synthetic CT [HU]", color=theme.quiet, fontsize=8)


def _agreement(density: HuDensity, axes: Axes, theme: _Theme) -> None:
    _counts(axes, density.agreement, DIFFERENCE_EDGES, theme)
    reach = max(map(abs, _filled(density.agreement.sum(axis=0), DIFFERENCE_EDGES)))
    axes.axhline(0, color=theme.quiet, linewidth=0.7)
    (low, high), dashed = density.limits_of_agreement, (0, (5, 3))
    for value, name, style in ((low, "−1.96 SD", dashed), (density.bias, "bias", "-"), (high, "+1.96 SD", dashed)):
        axes.axhline(value, color=theme.second, linewidth=1.1, linestyle=style)
        text = f"{name} {value:+.0f}".replace("-", "−")
        note = axes.annotate(text, (1, value), (-3, 2), ("axes fraction", "data"), "offset points", color=theme.ink)
        note.set(ha="right", va="bottom", fontsize=7.5)
        note.set_path_effects([Stroke(linewidth=2.5, foreground=theme.paper, alpha=0.8), Normal()])
    means, errors = zip(*density.cases, strict=True)
    axes.scatter(means, errors, s=16, color=theme.accent, edgecolors=theme.ink, linewidths=0.5, zorder=4)
    axes.set(xlim=_filled(density.agreement.sum(axis=1), HU_EDGES), ylim=(-reach, reach))
    axes.set_xlabel("mean of synthetic CT and CT [HU]", color=theme.quiet, fontsize=8)
    axes.set_ylabel("synthetic CT − CT [HU]", color=theme.quiet, fontsize=8)


def _counts(axes: Axes, counts: Counts, y: npt.NDArray[np.float64], theme: _Theme) -> None:
    """Counts (bin of HU, bin of y) in color."""
    shown, norm = np.ma.masked_equal(counts.T, 0), LogNorm(1, max(10, int(counts.max())))
    mesh = axes.pcolormesh(HU_EDGES, y, shown, norm=norm, cmap=mpl.colormaps[theme.density])
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, fraction=0.045)
    bar.set_label("voxels per bin", color=theme.quiet, fontsize=8)
    bar.ax.tick_params(colors=theme.quiet, labelsize=7, which="both")
    bar.outline.set_visible(False)


def _filled(counts: Counts, edges: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the bins that hold anything."""
    filled = np.flatnonzero(counts)
    return float(edges[filled[0]]), float(edges[filled[-1] + 1])


def _curve(name: str, steps: Sequence[float], values: Sequence[float], last: bool, axes: Axes, theme: _Theme) -> None:
    y = np.array(values, dtype=np.float64)
    finite = np.isfinite(y)
    y[~finite] = np.nan
    axes.plot(steps, y, color=theme.accent, linewidth=1.4, marker="o" if len(y) < 30 else "", markersize=3)
    _title(axes, theme, name, int(np.count_nonzero(~finite)), "not finite")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(color=theme.line, alpha=0.6, linewidth=0.6)
    axes.set_axisbelow(True)
    if last:
        axes.set_xlabel("step", color=theme.quiet, fontsize=8)


def _title(axes: Axes, theme: _Theme, title: str, lost: int = 0, what: str = "") -> None:
    """The title, with the number of values that could not be drawn."""
    axes.set_title(f"{title}  ({lost} {what})" if lost else title, color=theme.ink, fontsize=9, loc="left", pad=5)


def _plot(
    draws: Sequence[Callable[[Axes, _Theme], None]],
    size: tuple[float, float],
    margin: float,
    words: str,
    columns: int = _COLUMNS,
    *,
    share: bool = False,
) -> Plot:
    """Small plots of `size` (inches) side by side, in both themes; `share` gives them one horizontal axis."""
    columns = min(columns, len(draws))
    rows = math.ceil(len(draws) / columns)
    width, height = size[0] * columns, size[1] * rows + margin

    def drawn(theme: _Theme) -> bytes:
        layout = ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.09)
        figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="none", layout=layout)
        canvas = FigureCanvasAgg(figure)
        first: Axes | None = None
        for position, draw in enumerate(draws, start=1):
            axes = figure.add_subplot(rows, columns, position, sharex=first if share else None)
            first = first or axes
            axes.set_facecolor("none")
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[:].set_color(theme.line)
            draw(axes, theme)
            axes.tick_params(colors=theme.quiet, labelsize=7.5, length=3)
        canvas.draw()
        stream = io.BytesIO()
        Image.fromarray(np.asarray(canvas.buffer_rgba())).save(stream, format="WEBP", lossless=True, method=4)
        return stream.getvalue()

    return Plot(drawn(_LIGHT), drawn(_DARK), round(96 * width), round(96 * height), words)


def _span(values: Sequence[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "no finite value"
    return f"{len(finite)} cases from {min(finite):.4g} to {max(finite):.4g}, median {np.median(finite):.4g}"


def _ends(values: Sequence[float]) -> str:
    return f"from {values[0]:.4g} to {values[-1]:.4g}" if values else "no value"
