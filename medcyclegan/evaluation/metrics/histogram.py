"""Distance of the HU histograms: errors that do not depend on position."""

from __future__ import annotations

import numpy as np

from medcyclegan.evaluation.metrics.score import Limits, Values, voxelwise


@voxelwise
def wasserstein(reference: Values, synthetic: Values, limits: Limits) -> float:
    """First Wasserstein distance between the HU of the two volumes over the mask, unclipped and without bins.

    For samples of one size it is the mean of |difference| of the sorted values (Villani 2003, "Topics in optimal
    transportation", section 2.2). It is at most the MAE: the part of the error that no
    rearrangement of voxels would remove. In HU, 0 is best.
    """
    return float(np.abs(np.sort(synthetic) - np.sort(reference)).mean())
