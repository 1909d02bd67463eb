"""Similarity that does not depend on units: correlation, mutual information, and agreement of edges."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medcyclegan.evaluation.metrics.score import (
    Inside,
    Limits,
    Score,
    Values,
    Volume,
    metric,
    undefined,
    voxelwise,
    within,
)

# Bins of the joint histogram over the protocol's range: 64 HU each, wider than the noise of a CT.
BINS = 64
# Xue et al. 2014 use c = 170 for 8-bit images; it scales with the square of the range.
_GRADIENT_CONSTANT = 170 / 255**2


@voxelwise
def ncc(reference: Values, synthetic: Values, limits: Limits) -> Score:
    """Normalized cross-correlation: Pearson's correlation of the two volumes over the mask, unclipped.

    In [-1, 1], 1 is best; nan with the reason for a volume that is constant in the mask.
    """
    for name, values in (("reference", reference), ("synthetic CT", synthetic)):
        # Checked before the mean is subtracted: its rounding would make a constant look like noise.
        if values.min() == values.max():
            return undefined(f"the {name} is constant in the mask")
    g, p = reference - reference.mean(), synthetic - synthetic.mean()
    correlation = float(g @ p) / math.sqrt(float(g @ g) * float(p @ p))
    return Score(min(max(correlation, -1.0), 1.0))


@voxelwise
def mutual_information(reference: Values, synthetic: Values, limits: Limits) -> float:
    """Mutual information in bits of the two volumes over the mask, clipped to the limits, in 64 x 64 equal bins.

    I = sum of p(a, b) log2(p(a, b) / (p(a) p(b))) (Shannon 1948), estimated from the joint histogram as it is: 0 for
    independent volumes, at most the entropy of the reference.
    """
    low, high = limits

    def binned(values: Values) -> npt.NDArray[np.int64]:
        return np.clip((values - low) * (BINS / (high - low)), 0, BINS - 1).astype(np.int64)

    counts = np.bincount(binned(reference) * BINS + binned(synthetic), minlength=BINS**2).reshape(BINS, BINS)
    joint = counts / counts.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    used = joint > 0
    # Rounding may give a tiny negative value for independent volumes.
    return max(0.0, float((joint[used] * np.log2(joint[used] / independent[used])).sum()))


@metric
def gradient_similarity(reference: Volume, synthetic: Volume, inside: Inside, limits: Limits) -> Score:
    """Mean over the mask of (2 a b + c) / (a^2 + b^2 + c), a and b the gradient magnitudes of the two volumes.

    Gradient magnitude similarity of Xue, Zhang, Mou and Bovik 2014 (IEEE TIP 23(2), eq. 4), in 3D: Prewitt's operator
    along each axis (the mean of 9 differences over two voxels, divided by 2), c = 170 (R / 255)^2, the volumes clipped
    and blanked outside the mask as for `ssim`, without the halving of the resolution. The outermost voxels of the
    volume have no gradient and are left out.

    In (0, 1], 1 is best; nan with the reason for a mask that lies wholly in the outermost voxels.
    """
    (box,) = ndimage.find_objects(inside.view(np.uint8), max_label=1)
    # One voxel around the mask, so that its gradients are those of the whole volume.
    box = tuple(slice(max(0, s.start - 1), min(n, s.stop + 1)) for s, n in zip(box, inside.shape, strict=True))
    core = np.zeros(inside.shape, dtype=bool)
    core[1:-1, 1:-1, 1:-1] = inside[1:-1, 1:-1, 1:-1]
    chosen = core[box]
    if not chosen.any():
        return undefined("the mask lies wholly in the outermost voxels of the volume, where there is no gradient")
    a, b = (_gradient_magnitude(within(v, inside, limits)[box])[chosen] for v in (reference, synthetic))
    constant = _GRADIENT_CONSTANT * (limits[1] - limits[0]) ** 2
    return Score(float(((2 * a * b + constant) / (a * a + b * b + constant)).mean()))


def _gradient_magnitude(x: Values) -> Values:
    squared = np.zeros_like(x)
    for axis in range(3):
        difference = ndimage.correlate1d(x, [-0.5, 0.0, 0.5], axis=axis)
        for other in range(3):
            if other != axis:
                difference = ndimage.uniform_filter1d(difference, 3, axis=other)
        squared += difference * difference
    return np.sqrt(squared)
