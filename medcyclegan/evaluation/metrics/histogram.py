"""How far apart the HU histograms are: errors that no place can explain away."""

from __future__ import annotations

import numpy as np

from medcyclegan.evaluation.metrics.score import Limits, Mask, Score, Volume, inside_of, undefined, why_undefined


def wasserstein(reference: Volume, synthetic: Volume, mask: Mask | None, limits: Limits) -> Score:
    """First Wasserstein distance between the HU of the two volumes over the mask, unclipped and without bins.

    For samples of one size it is the mean of |difference| of the sorted values (Villani 2003, "Topics in optimal
    transportation", section 2.2). It is at most the MAE: what remains of it is the part that no rearrangement of voxels
    would mend.

    Args:
        reference: (X, Y, Z), HU.
        synthetic: (X, Y, Z), HU.
        mask: (X, Y, Z), voxels above 0 count; None for all.
        limits: not used, since nothing is clipped.

    Returns:
        HU, 0 is best; nan with the reason for an empty mask or values that are not finite.

    Raises:
        ValueError: the shapes differ or are not three-dimensional.
    """
    inside = inside_of(mask, reference.shape)
    reason = why_undefined(reference, synthetic, inside)
    if reason:
        return undefined(reason)
    # Sorted in the type that they come in, which is faster and exact; subtracted in float64.
    g, p = np.sort(reference[inside]), np.sort(synthetic[inside])
    return Score(float(np.abs(p.astype(np.float64) - g.astype(np.float64)).mean()))
