"""Mutual information between a translation and its source."""

from __future__ import annotations

import torch
from monai.losses import GlobalMutualInformationLoss
from torch import Tensor

from medcyclegan.losses.structure import View
from medcyclegan.registry import STRUCTURE_LOSSES


@STRUCTURE_LOSSES.register(
    "mutual_information", paper="Viola and Wells 1997; Mattes et al. 2003; histograms by MONAI's Parzen windows"
)
class MutualInformation:
    """Minus the mutual information in nats, of whole images or of blocks of them.

    Args:
        weight: of the term.
        bins: of the histograms over [-1, 1].
        block: edge in voxels of the blocks whose mutual information is averaged (local); 0 takes whole images (global).
    """

    def __init__(self, weight: float = 1.0, bins: int = 24, block: int = 0) -> None:
        if bins < 4 or block < 0 or 0 < block < 8:
            raise ValueError(f"bins is at least 4 and block 0 or at least 8, got {bins} and {block}")
        self.weight = weight
        self.block = block
        self.information = GlobalMutualInformationLoss(kernel_type="gaussian", num_bins=bins)

    def __call__(self, view: View) -> Tensor:
        translated, source = ((image.float().mean(1, keepdim=True) + 1) / 2 for image in (view.translated, view.source))
        if self.block:
            translated, source = _blocks(translated, self.block), _blocks(source, self.block)
            # A constant block holds no information and would only dilute the mean.
            shown = source.flatten(1).std(dim=1) > 1e-3
            if not bool(shown.any()):
                return translated.sum() * 0
            translated, source = translated[shown], source[shown]
        with torch.autocast(source.device.type, enabled=False):
            information: Tensor = self.information(translated.clamp(0, 1), source)
        return information


def _blocks(image: Tensor, edge: int) -> Tensor:
    """(B, 1, *spatial) to (B n, 1, *edges): the whole blocks of an image as a batch; the remainder is left out."""
    for axis in range(2, image.dim()):
        edge_here = min(edge, image.shape[axis])
        image = image.narrow(axis, 0, image.shape[axis] // edge_here * edge_here)
        parts = image.split(edge_here, dim=axis)
        image = torch.cat(parts, dim=0)
    return image
