"""Distances between two sets of volumes without pairs: do the synthetic CTs, as a set, look like real CTs?

That says far less than a paired score: a set of sharp, realistic CTs of the wrong anatomy is at distance 0. Use it to
monitor a training without pairs, not to say that an sCT is right.

The *features* of a slice are fixed formulas, so nothing is downloaded and results are reproducible. Every
axial slice that shows enough body, at 2 mm, in HU clipped to [-1024, 2000] and divided by 1000, is described by

- its histogram in the body: the shares of 32 equal bins (32 numbers);
- at each of 4 scales (Gaussian sigma 2, 4, 8, 16 mm): the mean and the standard deviation over the body of the gradient
  magnitude and of the Laplacian, both times sigma resp. sigma^2, so that scales compare (Lindeberg 1998, IJCV 30(2)),
  and of the smoothed HU (24 numbers);
- the share of the slice that is body, and the body's height over its width (2 numbers).

Each feature is standardized by the mean and standard deviation of the reference's slices. *KID* is the unbiased
estimate of the squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018, ICLR, with
these features in place of Inception's, hence on a scale of its own); *MMD* is the same with a Gaussian kernel whose
width is the median squared distance (Gretton et al. 2012, JMLR 13, lemma 6); *Wasserstein* compares the pooled HU in
the body.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.distance import cdist

from medcyclegan import __version__
from medcyclegan.atomic import write_json
from medcyclegan.errors import InputError, raise_all
from medcyclegan.evaluation.case import read_hu
from medcyclegan.evaluation.doubts import value_doubts
from medcyclegan.io.grid import Grid
from medcyclegan.io.listing import volumes_at
from medcyclegan.progress import Progress, Silent
from medcyclegan.transforms.body import body_mask
from medcyclegan.transforms.geometry import resample, working_grid

Floats = npt.NDArray[np.float64]

DISTRIBUTION_FILE = "distribution.json"
WARNING = (
    "Unpaired distances say how alike two sets look, not whether any synthetic CT is right: they cannot see wrong "
    "anatomy, and are no substitute for paired scores."
)
FEATURES = 58
_SPACING_MM = 2.0
_SCALES_MM = (2.0, 4.0, 8.0, 16.0)
_LOW, _HIGH, _BINS = -1024.0, 2000.0, 32
# Slices with less body (cm^2) than this are the ends of the scan.
_SMALLEST_CM2 = 20.0
# Voxels per volume that stand for its HU: quantiles at equal steps.
_QUANTILES = 2001
_SILENT = Silent()


def slice_features(volume: npt.NDArray[np.floating], grid: Grid) -> Floats:
    """Features of every axial slice that shows at least 20 cm^2 of body.

    Args:
        volume: (X, Y, Z), HU.
        grid: of the volume.

    Returns:
        (N, 58).

    Raises:
        InputError: no body can be found.
    """
    fine = working_grid(grid, (_SPACING_MM, _SPACING_MM, max(_SPACING_MM, _slice_step(grid))))
    hu = resample(volume, grid, fine, fill=_LOW)
    inside = body_mask(hu, fine.spacing.tolist(), "CT")
    rows = []
    for k in range(hu.shape[2]):
        body = inside[:, :, k]
        if body.sum() * _SPACING_MM**2 / 100 >= _SMALLEST_CM2:
            rows.append(_describe(np.clip(hu[:, :, k].astype(np.float64), _LOW, _HIGH), body))
    return np.array(rows) if rows else np.zeros((0, FEATURES))


def squared_mmd(x: Floats, y: Floats) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancies of two sets of feature vectors.

    Args:
        x: (N, D), at least 2.
        y: (M, D), at least 2; its rows standardize both.

    Returns:
        KID (polynomial kernel) and MMD (Gaussian kernel); about 0, also below, for sets of one distribution.

    Raises:
        ValueError: fewer than 2 rows, or other numbers of columns.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or len(x) < 2 or len(y) < 2:
        raise ValueError(f"two sets of at least 2 rows of one length are needed, got {x.shape} and {y.shape}")
    mean, spread = y.mean(axis=0), y.std(axis=0)
    # A feature that is constant in the reference has no scale; deviations from it still count.
    spread = np.where(spread > 1e-6, spread, 1.0)
    x, y = (x - mean) / spread, (y - mean) / spread
    d = x.shape[1]
    polynomial = _unbiased(*(((a @ b.T) / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))))
    distances = [cdist(a, b, "sqeuclidean") for a, b in ((x, x), (y, y), (x, y))]
    width = float(np.median(distances[2]))
    gaussian = _unbiased(*(np.exp(-part / width) for part in distances)) if width > 0 else 0.0
    return polynomial, gaussian


def compare_distributions(
    pred: str | os.PathLike[str],
    ref: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Distances between a set of synthetic CTs and a set of CTs, of the same patients or not.

    Args:
        pred: synthetic CTs in HU, a folder or a file.
        ref: CTs in HU, a folder or a file.
        output: folder for distribution.json; None writes nothing.
        progress: shows the volumes as they are read.

    Returns:
        What the file holds: `distances` (kid, mmd, wasserstein_hu), `null` (the same between two halves of the
        references, if there are at least 2: the distances to expect without any difference), counts and the warning.

    Raises:
        InputError: a path does not exist, or a volume cannot be read or shows no body; all of them are listed.
    """
    sets = []
    problems: list[str] = []
    doubts: dict[str, list[str]] = {}
    for kind, path in (("prediction", Path(pred)), ("reference", Path(ref))):
        if not path.exists():
            raise InputError(f"There is no {path}.", "Give a folder of volumes.")
        volumes = volumes_at(path)
        described = {}
        for name, file in progress.track(volumes.items(), len(volumes), f"Describing {kind}s"):
            try:
                hu, grid, _ = read_hu(file)
                features = slice_features(hu, grid)
                inside = body_mask(hu, grid.spacing.tolist(), "CT")
            except InputError as error:
                problems.append(f"{kind} {name}: {error}")
                continue
            if found := value_doubts(kind, hu, inside):
                doubts[f"{kind} {name}"] = found
            if not len(features):
                problems.append(f"{kind} {name}: no slice shows {_SMALLEST_CM2:g} cm^2 of body")
            described[name] = (features, np.quantile(hu[inside].astype(np.float64), np.linspace(0, 1, _QUANTILES)))
        sets.append(described)
    raise_all(problems, "These volumes cannot be described:")
    predicted, real = sets
    summary = {
        "unpaired": True,
        "warning": WARNING,
        "distances": _distances(predicted, real),
        "null": _null(real),
        "volumes": {"pred": len(predicted), "ref": len(real)},
        "slices": {"pred": _slices(predicted), "ref": _slices(real)},
        "doubts": doubts,
        "features": FEATURES,
        "version": __version__,
    }
    if output is not None:
        write_json(Path(output) / DISTRIBUTION_FILE, summary)
    return summary


Described = Mapping[str, tuple[Floats, Floats]]


def _distances(x: Described, y: Described) -> dict[str, float]:
    features = [np.concatenate([f for f, _ in part.values()]) for part in (x, y)]
    if min(map(len, features)) < 2:
        raise InputError("At least two slices with a body are needed on both sides.")
    kid, mmd = squared_mmd(*features)
    pooled = [np.sort(np.concatenate([q for _, q in part.values()])) for part in (x, y)]
    steps = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    hu = float(np.abs(np.quantile(pooled[0], steps) - np.quantile(pooled[1], steps)).mean())
    return {"kid": kid, "mmd": mmd, "wasserstein_hu": hu}


def _null(real: Described) -> dict[str, float] | None:
    """The distances between every second reference and the others."""
    names = list(real)
    if len(names) < 2:
        return None
    return _distances({n: real[n] for n in names[::2]}, {n: real[n] for n in names[1::2]})


def _slices(described: Described) -> int:
    return sum(len(features) for features, _ in described.values())


def _slice_step(grid: Grid) -> float:
    """Distance in mm between voxels along the axis that is nearest to head-foot."""
    vertical = np.abs(grid.affine[2, :3] / grid.spacing)
    return float(grid.spacing[int(vertical.argmax())])


def _describe(hu: Floats, body: npt.NDArray[np.bool_]) -> Floats:
    values = hu[body]
    counts, _ = np.histogram(values, bins=_BINS, range=(_LOW, _HIGH))
    found = list(counts / values.size)
    scaled = hu / 1000
    for scale in _SCALES_MM:
        sigma = scale / _SPACING_MM
        gradient = ndimage.gaussian_gradient_magnitude(scaled, sigma, mode="nearest") * sigma
        laplacian = ndimage.gaussian_laplace(scaled, sigma, mode="nearest") * sigma**2
        smooth = ndimage.gaussian_filter(scaled, sigma, mode="nearest")
        for response in (gradient, laplacian, smooth):
            inside = response[body]
            found += [float(inside.mean()), float(inside.std())]
    width, height = (float(np.ptp(np.flatnonzero(body.any(axis=axis)))) + 1 for axis in (1, 0))
    found += [float(body.mean()), height / width]
    return np.array(found, dtype=np.float64)


def _unbiased(xx: Floats, yy: Floats, xy: Floats) -> float:
    """mean of k(x, x') + mean of k(y, y') - 2 mean of k(x, y), no vector beside itself."""
    n, m = len(xx), len(yy)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    result = float(within - 2 * xy.mean())
    if not math.isfinite(result):
        raise ValueError("features are not finite")
    return result
