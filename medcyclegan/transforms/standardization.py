"""MR intensity standardization: four ways to fit the scaler of a volume.

| name        | -1 and 1 stand for                                    | known beforehand           |
|-------------|-------------------------------------------------------|----------------------------|
| percentile  | two percentiles inside the body                       | nothing                    |
| zscore      | mean - 3 and mean + 3 standard deviations in the body | nothing                    |
| nyul        | two percentiles; the deciles between go to landmarks  | the training set's landmarks |
| whitestripe | 0 and three times the stripe of the commonest tissue  | nothing                    |

All but "nyul" are linear. Words used here. *Landmark*: where a decile lies between the two percentiles, as a share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medcyclegan.errors import InputError
from medcyclegan.transforms.intensity import MR_PERCENTILES, Scaler, mr_scaler

Standardization = Literal["percentile", "zscore", "nyul", "whitestripe"]
STANDARDIZATIONS: tuple[str, ...] = get_args(Standardization)
DECILES = tuple(range(10, 100, 10))
DEVIATIONS = 3.0  # of the z-score that -1 and 1 stand for
STRIPES = 3.0  # fluid in T2 is about three times as bright as white matter, fat in T1 half as bright again
_STRIPE = 0.05  # share of the voxels on either side of the peak: tau in Shinohara et al.
_DEPTH_MM = 20.0  # below the surface lies neither skin nor fat of the scalp
_BINS = 512
_SMOOTHING = 0.015  # of the histogram, as a share of its range
# Rounding may bring two landmarks together; a gap this small, as a share of the range, is none.
_GAP = 1e-4


def standard_scaler(
    volume: np.ndarray,
    body: np.ndarray,
    spacing: Sequence[float],
    standardization: str = "percentile",
    *,
    percentiles: tuple[float, float] = MR_PERCENTILES,
    landmarks: Sequence[float] = (),
) -> Scaler:
    """The scaler of an MR volume.

    Args:
        volume: (X, Y, Z), arbitrary unit.
        body: (X, Y, Z) bool, not empty.
        spacing: (3,) mm.
        standardization: one of `STANDARDIZATIONS`.
        percentiles: lower and upper, in [0, 100]; for "percentile" and "nyul".
        landmarks: nine rising shares in (0, 1), from `fit_landmarks`; for "nyul".

    Raises:
        InputError: the body is empty, the intensities are flat, or no landmarks were fitted.
    """
    window = mr_scaler(volume, body, percentiles)
    if standardization == "percentile":
        return window
    inside = volume[body.astype(bool, copy=False)]
    if standardization == "zscore":
        mean, deviation = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))
        return _rounded(mean - DEVIATIONS * deviation, mean + DEVIATIONS * deviation)
    if standardization == "whitestripe":
        return _rounded(0.0, STRIPES * white_stripe(volume, body, spacing))
    if standardization != "nyul":
        raise ValueError(f"standardization is one of {', '.join(STANDARDIZATIONS)}, got {standardization!r}")
    if len(landmarks) != len(DECILES):
        raise InputError(
            f"mr_standardization nyul needs {len(DECILES)} landmarks, which `medcyclegan prepare` fits on the training "
            f"volumes; there are {len(landmarks)}.",
            "Prepare the training volumes, or take another standardization.",
        )
    found = np.percentile(inside, DECILES)
    kept: list[tuple[float, float]] = []
    gap = _GAP * (window.high - window.low)
    for value, share in zip(found, landmarks, strict=True):
        # Deciles that coincide (a coarsely stored volume) give no slope: the first stands for all.
        if (kept[-1][0] if kept else window.low) + gap < value < window.high - gap:
            kept.append((float(np.float32(value)), float(share)))
    return Scaler(window.low, window.high, landmarks=tuple(kept))


def decile_shares(
    volume: np.ndarray, body: np.ndarray, percentiles: tuple[float, float] = MR_PERCENTILES
) -> npt.NDArray[np.float64]:
    """Positions of the deciles of one volume between its two percentiles: (9,) shares in [0, 1].

    Args:
        volume: (X, Y, Z), arbitrary unit.
        body: (X, Y, Z) bool, not empty.
        percentiles: lower and upper, in [0, 100].
    """
    window = mr_scaler(volume, body, percentiles)
    deciles = np.percentile(volume[body.astype(bool, copy=False)], DECILES)
    return np.asarray(np.clip((deciles - window.low) / (window.high - window.low), 0, 1), dtype=np.float64)


def fit_landmarks(shares: Sequence[npt.ArrayLike]) -> tuple[float, ...]:
    """The landmarks of a training set: the mean of its volumes' shares.

    Nyul, Udupa and Zhang, "New variants of a method of MRI scale standardization", IEEE TMI 19(2), 2000, section II:
    every volume's two percentiles are mapped linearly to the ends of the standard scale, and a landmark's place on it
    is the mean of where the training volumes' deciles come to lie (their L4; Nyul and Udupa, Magn Reson Med 42, 1999,
    for one landmark).

    Args:
        shares: (N, 9) from `decile_shares`, at least one row.

    Raises:
        InputError: two landmarks coincide.
    """
    if not len(shares):
        raise ValueError("landmarks are fitted on at least one volume")
    mean = np.asarray(shares, dtype=np.float64).mean(axis=0)
    if np.diff([0.0, *mean, 1.0]).min() <= _GAP:
        raise InputError(
            "the deciles of the training volumes coincide, so that mr_standardization nyul has no landmarks.",
            "Were the volumes stored in few gray levels? Take another standardization.",
        )
    return tuple(float(value) for value in mean)


def white_stripe(volume: np.ndarray, body: np.ndarray, spacing: Sequence[float]) -> float:
    """The mean of the values around the highest peak of the histogram deep inside the body, in the unit of `volume`.

    After Shinohara et al., "Statistical normalization techniques for magnetic resonance imaging", NeuroImage Clin 6,
    2014: the stripe holds the values within 5 % of the voxels on either side of the peak. Theirs is the peak of white
    matter in a stripped brain; here it is that of the most frequent tissue 20 mm below the surface (or as deep as there
    is anything), brain in a head, and the unit is a share of its mean and not its standard deviation.

    Args:
        volume: (X, Y, Z), arbitrary unit.
        body: (X, Y, Z) bool, not empty.
        spacing: (3,) mm.

    Raises:
        InputError: the peak is not above 0.
    """
    depth = ndimage.distance_transform_edt(np.pad(body.astype(bool), 1), sampling=tuple(spacing))[1:-1, 1:-1, 1:-1]
    deep = volume[depth > min(_DEPTH_MM, float(depth.max()) / 2)].astype(np.float64)
    low, high = np.percentile(deep, (1, 99))
    if not high > low:
        raise InputError("the MR intensities deep inside the body are flat.", "Check the volume and its body mask.")
    counts, edges = np.histogram(deep, bins=_BINS, range=(float(low), float(high)))
    smooth = ndimage.gaussian_filter1d(counts.astype(np.float64), _SMOOTHING * _BINS, mode="constant")
    peak = float((edges[:-1] + edges[1:])[smooth.argmax()] / 2)
    at = float((deep <= peak).mean())
    first, last = np.quantile(deep, (max(0.0, at - _STRIPE), min(1.0, at + _STRIPE)))
    stripe = float(deep[(deep >= first) & (deep <= last)].mean())
    if stripe <= 0:
        raise InputError(
            f"the most frequent value deep inside the body is {stripe:g}, and whitestripe needs one above 0.",
            "Take another mr_standardization.",
        )
    return stripe


def _rounded(low: float, high: float) -> Scaler:
    # As float32 from the start, so that the window in a checkpoint is the window that was used.
    return Scaler(float(np.float32(low)), float(np.float32(high)))
