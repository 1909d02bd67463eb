"""Gradient correlation between a translation and its source."""

from __future__ import annotations

import torch
from torch import Tensor

from medcyclegan.losses.structure import View
from medcyclegan.registry import STRUCTURE_LOSSES


@STRUCTURE_LOSSES.register(
    "gradient_correlation",
    paper="Hiasa et al. 2018, CycleGAN with gradient consistency, equation 4; Penney et al. 1998",
)
class GradientCorrelation:
    """1 - mean over the axes of the normalized cross-correlation of the image gradients along that axis.

    Args:
        weight: of the term.
        absolute: take the correlations' absolute values, for domains whose borders may have opposite signs. Between MR
            and CT the MR is inverted by default, and most borders then have the same sign.
    """

    def __init__(self, weight: float = 1.0, absolute: bool = False) -> None:
        self.weight = weight
        self.absolute = absolute

    def __call__(self, view: View) -> Tensor:
        translated, source = view.translated.float().mean(1, keepdim=True), view.source.float().mean(1, keepdim=True)
        correlations = []
        for axis in range(2, source.dim()):
            correlation = _correlation(torch.diff(translated, dim=axis), torch.diff(source, dim=axis))
            correlations.append(correlation.abs() if self.absolute else correlation)
        return 1 - torch.stack(correlations).mean()


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Normalized cross-correlation per image, (B,). 0 where one of the two is constant."""
    x, y = x.flatten(1), y.flatten(1)
    x, y = x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True)
    return (x * y).sum(dim=1) / (x.square().sum(dim=1) * y.square().sum(dim=1) + 1e-12).sqrt()
