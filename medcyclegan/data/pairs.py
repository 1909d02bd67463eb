"""Registered pairs: both halves show one patient on one grid, and a patch of a pair is one place in both.

Words used here. *Halves*: the volumes of a and of b. *Common body*: voxels that lie in the body of both halves. Patches
are cut around it and show only it. Outside it at least one half is background, because its mask ends there and not the
patient: a network would learn to erase or invent tissue.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from medcyclegan.data.slices import PatchSource, Slices
from medcyclegan.errors import few, raise_all
from medcyclegan.io.grid import SAME_GRID_MM, SAME_GRID_VOXELS, on_one_grid

SMALLEST_COMMON = 0.9  # share of each half's body that lies in the other's; below, there is a warning


def require_pairs(a: Sequence[PatchSource], b: Sequence[PatchSource], common: Mapping[str, Slices]) -> None:
    """Refuse cases that are no pairs; warn of pairs whose bodies differ much.

    Args:
        a, b: halves; where they have a `grid`, where they lie is compared too.
        common: id of each pair whose halves lie on one grid -> the slices that both show.

    Raises:
        InputError: naming every case that has no partner of its id at its place, lies on another grid or shares no
            body with it.
    """
    problems, differing = [], []
    if [case.id for case in a] != [case.id for case in b]:
        alone = sorted({case.id for case in a} ^ {case.id for case in b})
        problems.append(
            f"these cases have no partner of the same id: {', '.join(alone)}"
            if alone
            else "the cases of a and b are not in the same order"
        )
    else:
        for x, y in zip(a, b, strict=True):
            if problem := _misfit(x, y):
                problems.append(problem)
                continue
            shared = common[x.id].voxels
            shares = [shared / max(1, half.slices.voxels) for half in (x, y)]
            if not shared:
                problems.append(f"{x.id}: the bodies of a and b have no voxel in common")
            elif min(shares) < SMALLEST_COMMON:
                differing.append(f"{x.id} ({100 * (1 - shares[0]):.0f} % of a's, {100 * (1 - shares[1]):.0f} % of b's)")
    raise_all(problems, "paired training needs every patient in both domains, on the same grid:")
    if differing:
        warnings.warn(
            f"the bodies of a and b differ in {len(differing)} of {len(a)} pairs, and only what they have in common is "
            f"trained on; left out: {few(differing)}. Look at their masks and at the registration.",
            stacklevel=3,
        )


def _misfit(a: PatchSource, b: PatchSource) -> str | None:
    """Why the two halves of a pair do not match."""
    if a.slices.shape != b.slices.shape:
        return f"{a.id}: a is {a.slices.shape} and b {b.slices.shape} voxels on the working grid"
    grids: list[Any] = [getattr(half, "grid", None) for half in (a, b)]
    if None in grids or on_one_grid(*grids):
        return None
    return (
        f"{a.id}: a and b have one shape, but voxels of the same index lie up to {grids[0].distance(grids[1]):.4g} "
        f"mm apart (at most {SAME_GRID_MM:g} mm and {SAME_GRID_VOXELS:g} of a voxel are allowed); register one onto "
        "the other's grid"
    )
