"""Heights of slices that are comparable between scans, by aligning profiles of cross-section area.

The area of the body rises and falls along its axis in the same way in every patient. Each scan's profile is shifted and
stretched until it fits that of all scans, so that slices of one height show the same anatomy although one scan ends
at the chin, another in the neck, and a third begins inside the head. Words used here. *Width*: the root of a scan's
largest area. *Profile*: the root of the area of every slice, in widths. *Height*: position along the axis in widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# The search grid: stretches, and shifts in widths; a head is about 1.3 widths high.
_STRETCHES = np.linspace(0.88, 1.12, 7)
_SHIFTS = np.linspace(-1.2, 1.2, 241)
# Share of the shorter of both profiles that must overlap, or a few slices could fit anywhere.
_OVERLAP = 0.7
# Penalty per squared stretch: of two similar fits, the one with less stretch is taken.
_STIFFNESS = 0.01
_ROUNDS = 3
_STEP = 0.02  # of the common profile, widths
_FEWEST = 0.25  # share of the scans that must reach a height of the common profile


def profile_heights(areas: Sequence[npt.ArrayLike], distance: float = 1.0) -> list[Floats]:
    """Heights of the slices of every scan, comparable between scans.

    The common profile begins as that of the scan with most slices of body. Each round fits every scan to it by least
    squares over shifts and stretches, and takes the median of the fitted profiles as the next one.

    Args:
        areas: per scan, the body's area in each slice, (slices,), mm2, in the order along one axis; at least one is
            above 0.
        distance: from slice to slice, mm, the same in all scans.

    Returns:
        Per scan (slices,), in widths, rising; nan for a scan that overlaps the common profile too little at every
        shift.
    """
    scans = []
    for area in areas:
        values = np.asarray(area, dtype=np.float64)
        if values.ndim != 1 or not values.max(initial=0.0) > 0:
            raise ValueError("each scan needs one area per slice, at least one of them above 0")
        width = float(np.sqrt(values.max()))
        place = (np.arange(len(values)) - np.flatnonzero(values)[-1]) * distance / width
        scans.append((place, np.sqrt(values) / width))
    places, common = max(scans, key=lambda scan: np.ptp(scan[0][scan[1] > 0]))
    fits: list[Floats] = []
    for _ in range(_ROUNDS):
        fits = [_fitted(place, profile, places, common) for place, profile in scans]
        laid_over = [(f, s[1]) for f, s in zip(fits, scans, strict=True) if np.isfinite(f).all()]
        if not laid_over:
            break
        even = np.arange(min(f[0] for f, _ in laid_over), max(f[-1] for f, _ in laid_over) + _STEP, _STEP)
        laid = np.array([np.interp(even, f, profile, left=np.nan, right=np.nan) for f, profile in laid_over])
        reached = np.isfinite(laid).sum(axis=0) >= max(1, _FEWEST * len(scans))
        places, common = even[reached], np.nanmedian(laid[:, reached], axis=0)
    return fits


def _fitted(place: Floats, profile: Floats, places: Floats, common: Floats) -> Floats:
    """One scan's places stretched and shifted onto the common profile: its heights; nan if no shift overlaps enough."""
    best, chosen = np.inf, np.full(len(place), np.nan)
    step = float(np.median(np.diff(place))) if len(place) > 1 else 1.0
    fewest = _OVERLAP * min(len(place), np.ptp(places) / step)
    for stretch in _STRETCHES:
        tried = stretch * place[None] + _SHIFTS[:, None]
        expected = np.interp(tried, places, common, left=np.nan, right=np.nan)
        inside = np.isfinite(expected)
        count = inside.sum(axis=1)
        misfit = np.where(inside, (expected - profile) ** 2, 0).sum(axis=1) / np.maximum(count, 1)
        misfit = np.where(count >= fewest, misfit + _STIFFNESS * (stretch - 1) ** 2, np.inf)
        if misfit.min() < best:
            best, chosen = float(misfit.min()), tried[misfit.argmin()]
    return chosen
