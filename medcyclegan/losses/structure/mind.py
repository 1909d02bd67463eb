"""The modality-independent neighborhood descriptor (Heinrich et al. 2012, Medical Image Analysis 16)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medcyclegan.losses.structure import View, mean_inside
from medcyclegan.registry import STRUCTURE_LOSSES


@STRUCTURE_LOSSES.register("mind", paper="Heinrich et al. 2012, MIND; as a loss: Yang et al. 2018, arXiv:1809.04536")
class MIND:
    """Mean absolute difference of the descriptors of source and translation inside the body.

    Args:
        weight: of the term.
        distance: voxels between a voxel and the neighbors that describe it.
        sigma: of the Gaussian that weights the compared patches, in voxels.
    """

    def __init__(self, weight: float = 1.0, distance: int = 1, sigma: float = 0.8) -> None:
        if distance < 1 or sigma <= 0:
            raise ValueError(f"distance is at least 1 and sigma above 0, got {distance} and {sigma}")
        self.weight = weight
        self.distance = distance
        self.sigma = sigma

    def __call__(self, view: View) -> Tensor:
        translated, source = view.translated.float().mean(1, keepdim=True), view.source.float().mean(1, keepdim=True)
        with torch.autocast(source.device.type, enabled=False):  # differences of neighbors need all the digits
            apart = descriptor(translated, self.distance, self.sigma) - descriptor(source, self.distance, self.sigma)
        return mean_inside(apart.abs(), view.body.any(dim=1, keepdim=True))


def descriptor(image: Tensor, distance: int = 1, sigma: float = 0.8) -> Tensor:
    """exp(-D(x, x + r) / V(x)) for the neighbors r along every axis, divided by its largest (equations 3 to 5).

    D is the sum of squared differences of Gaussian-weighted patches and V its mean over the neighbors, so that the
    descriptor is the same for s I + t with any s other than 0, in particular for an inverted image. V is held above
    a thousandth of its mean over the image: in a flat region it would be noise alone.

    Args:
        image: (B, 1, *spatial).

    Returns:
        (B, 2 n, *spatial) in (0, 1] for n spatial axes.
    """
    axes = range(2, image.dim())
    # Beyond the border the image goes on with its last voxels.
    padded = F.pad(image, [distance] * (2 * len(axes)), mode="replicate")
    apart = []
    for axis in axes:
        for start in (0, 2 * distance):
            neighbor = padded
            for other in axes:
                first = start if other == axis else distance
                neighbor = neighbor.narrow(other, first, image.shape[other])
            apart.append((image - neighbor).square())
    distances = _smooth(torch.cat(apart, dim=1), sigma)
    variance = distances.mean(dim=1, keepdim=True)
    floor = 1e-3 * variance.mean(dim=list(range(1, image.dim())), keepdim=True) + 1e-12
    described = torch.exp(-distances / torch.maximum(variance, floor))
    return described / described.amax(dim=1, keepdim=True)


def _smooth(values: Tensor, sigma: float) -> Tensor:
    """Gaussian over every spatial axis, cut at three sigma."""
    radius = max(1, int(3 * sigma + 0.5))
    steps = torch.arange(-radius, radius + 1, dtype=values.dtype, device=values.device)
    kernel = torch.exp(-steps.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels, dims = values.shape[1], values.dim() - 2
    convolve = {2: F.conv2d, 3: F.conv3d}[dims]
    for axis in range(dims):
        shape = [1] * dims
        shape[axis] = len(kernel)
        padding = [0] * (2 * dims)
        padding[2 * (dims - 1 - axis)] = padding[2 * (dims - 1 - axis) + 1] = radius
        weight = kernel.view(1, 1, *shape).expand(channels, 1, *shape)
        values = convolve(F.pad(values, padding, mode="replicate"), weight, groups=channels)
    return values
