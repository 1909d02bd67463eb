"""Whether two volumes go together, whatever their units: correlation, shared information, and agreement of edges."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medcyclegan.evaluation.metrics.score import (
    Limits,
    Mask,
    Score,
    Volume,
    inside_of,
    undefined,
    why_undefined,
    within,
)

# Bins of the joint histogram over the protocol's range: 64 HU each, wider than the noise of a CT.
BINS = 64
# Xue et al. 2014 use c = 170 for 8-bit images; it scales with the square of the range.
_GRADIENT_CONSTANT = 170 / 255**2


def ncc(reference: Volume, synthetic: Volume, mask: Mask | None, limits: Limits) -> Score:
    """Normalized cross-correlation: Pearson's correlation of the two volumes over the mask, unclipped.

    Args:
        reference: (X, Y, Z), HU.
        synthetic: (X, Y, Z), HU.
        mask: (X, Y, Z), voxels above 0 count; None for all.
        limits: not used, since nothing is clipped.

    Returns:
        In [-1, 1], 1 is best; nan with the reason for an empty mask, values that are not finite, or a volume that is
        constant in the mask.

    Raises:
        ValueError: the shapes differ or are not three-dimensional.
    """
    inside = inside_of(mask, reference.shape)
    reason = why_undefined(reference, synthetic, inside)
    if reason:
        return undefined(reason)
    g, p = reference[inside].astype(np.float64), synthetic[inside].astype(np.float64)
    for name, values in (("reference", g), ("synthetic CT", p)):
        # Asked before the mean is taken off: its rounding would make a constant look like noise.
        if values.min() == values.max():
            return undefined(f"the {name} is constant in the mask")
    g -= g.mean()
    p -= p.mean()
    correlation = float(g @ p) / math.sqrt(float(g @ g) * float(p @ p))
    return Score(min(max(correlation, -1.0), 1.0))


def mutual_information(reference: Volume, synthetic: Volume, mask: Mask | None, limits: Limits) -> Score:
    """Mutual information in bits of the two volumes over the mask, clipped to the limits, in 64 x 64 equal bins.

    I = sum of p(a, b) log2(p(a, b) / (p(a) p(b))) (Shannon 1948), estimated from the joint histogram as it is.

    Arguments and errors are those of `ncc`, with `limits` the range of the histogram; 0 for independent volumes, at
    most the entropy of the reference; nan with the reason for an empty mask or values that are not finite.
    """
    inside = inside_of(mask, reference.shape)
    reason = why_undefined(reference, synthetic, inside)
    if reason:
        return undefined(reason)
    low, high = limits

    def binned(volume: Volume) -> npt.NDArray[np.int64]:
        position = (volume[inside].astype(np.float64) - low) * (BINS / (high - low))
        return np.clip(position, 0, BINS - 1).astype(np.int64)

    counts = np.bincount(binned(reference) * BINS + binned(synthetic), minlength=BINS**2).reshape(BINS, BINS)
    joint = counts / counts.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    used = joint > 0
    # Rounding may leave minus nothing where the two are independent.
    return Score(max(0.0, float((joint[used] * np.log2(joint[used] / independent[used])).sum())))


def gradient_similarity(reference: Volume, synthetic: Volume, mask: Mask | None, limits: Limits) -> Score:
    """Mean over the mask of (2 a b + c) / (a^2 + b^2 + c), a and b the gradient magnitudes of the two volumes.

    Gradient magnitude similarity of Xue, Zhang, Mou and Bovik 2014 (IEEE TIP 23(2), eq. 4), in 3D: Prewitt's operator
    along each axis (the mean of 9 differences over two voxels, divided by 2), c = 170 (R / 255)^2, the volumes clipped
    and blanked outside the mask as for `ssim`, without the halving of the resolution. The outermost voxels of the
    volume have no gradient and are left out.

    Arguments and errors are those of `ncc`.

    Returns:
        In (0, 1], 1 is best; nan with the reason for an empty mask, one that lies wholly in the outermost voxels, or
        values that are not finite.
    """
    inside = inside_of(mask, reference.shape)
    reason = why_undefined(reference, synthetic, inside)
    if reason:
        return undefined(reason)
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


def _gradient_magnitude(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    squared = np.zeros_like(x)
    for axis in range(3):
        difference = ndimage.correlate1d(x, [-0.5, 0.0, 0.5], axis=axis)
        for other in range(3):
            if other != axis:
                difference = ndimage.uniform_filter1d(difference, 3, axis=other)
        squared += difference * difference
    return np.sqrt(squared)
