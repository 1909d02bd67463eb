"""Slices of matching height: the relative height of each slice, and its partners in the other domain.

Heights are rising, (slices,) of a scan, in units that depend on the way to measure them: see `patches.Sampling`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from medcyclegan.data.slices import PatchSource
from medcyclegan.errors import few

MATCH_TOLERANCE = 0.05  # matched patches differ by at most this, in units of `relative_height`
MOST_FAR = 0.1  # share of matched patches that may differ by more without a warning
CUT_SHARE = 0.4  # of the largest area: a head's uppermost slice is far smaller, even at slices of 8 mm

Heights = Mapping[str, Sequence[npt.NDArray[np.float64]]]
Chosen = Mapping[str, Sequence[npt.NDArray[np.intp]]]  # of every scan


def relative_height(areas: Sequence[int], matching: str) -> npt.NDArray[np.float64]:
    """The relative height of each slice: see `patches.Sampling`.

    Args:
        areas: voxels of body in every slice along the axis.
        matching: "extent" or "vertex".
    """
    occupied = np.flatnonzero(areas)
    index = np.arange(len(areas), dtype=float)
    if matching == "extent":
        return (index - occupied[0]) / max(1, occupied[-1] - occupied[0])
    if matching != "vertex":
        raise ValueError(f"matching is 'extent' or 'vertex', got {matching!r}")
    # The working grid is the same for every case, so widths in voxels can be compared; the root of the largest area
    # measures the head's size whatever part of the neck is in the scan.
    return (index - occupied[-1]) / float(np.sqrt(max(areas)))


def warn_of_cut_heads(cases: Sequence[PatchSource], axis: int) -> None:
    """Warn of scans that are cut inside the head (a large uppermost slice): they have no vertex."""
    areas = {case.id: case.slices.areas[axis] for case in cases}
    cut = [name for name, area in areas.items() if area[np.flatnonzero(area)[-1]] > CUT_SHARE * max(area)]
    if cut:
        warnings.warn(
            f"patches.matching is vertex, but the top of the head is not in {few(cut)}; they are matched as if "
            "their uppermost slice were the top. Leave them out, or take matching extent.",
            stacklevel=3,
        )


def with_partners(heights: Heights, slices: Chosen) -> dict[str, list[npt.NDArray[np.intp]]]:
    """Per scan of "a" and "b", the slices with a partner at their height in the other domain; maybe none."""
    kept = {}
    for domain, other in (("a", "b"), ("b", "a")):
        there = np.concatenate([h[k] for h, k in zip(heights[other], slices[other], strict=True)])
        there = there[np.isfinite(there)]
        kept[domain] = [
            eligible[np.abs(h[eligible][:, None] - there[None]).min(axis=1, initial=np.inf) <= MATCH_TOLERANCE]
            for h, eligible in zip(heights[domain], slices[domain], strict=True)
        ]
    return kept


def reached(heights: Heights, slices: Chosen, matching: str) -> int:
    """Number of slices of b that are drawn for slices of a; warns if many partners are far from their height."""
    wanted = np.sort(np.concatenate([h[k] for h, k in zip(heights["a"], slices["a"], strict=True)]))
    count, far = 0, 0
    for of_scan, eligible in zip(heights["b"], slices["b"], strict=True):
        there = of_scan[eligible]
        near = np.searchsorted(wanted, there + MATCH_TOLERANCE, "right") > np.searchsorted(
            wanted, there - MATCH_TOLERANCE, "left"
        )
        place = np.searchsorted(there, wanted)
        beside = np.clip([place - 1, place], 0, len(there) - 1)
        apart = np.abs(there[beside] - wanted)
        near[beside[apart == apart.min(axis=0)]] = True
        count += int(near.sum())
        far += int((apart.min(axis=0) > MATCH_TOLERANCE).sum())
    share = far / (len(wanted) * len(slices["b"]))
    if share > MOST_FAR:
        warnings.warn(
            f"patches.matching {matching}: for {100 * share:.0f} % of the patches of a, the scan of b has nothing at a "
            "similar height, and the nearest slice is taken. If the scans cover different parts of the body, take "
            "matching profile, which leaves such slices out.",
            stacklevel=3,
        )
    return count
