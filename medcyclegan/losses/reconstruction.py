"""Reconstruction losses: how far an image is from the one it should equal. (B, C, *spatial) in [-1, 1] to a scalar."""

from __future__ import annotations

from typing import Protocol

import torch
from monai.losses import SSIMLoss
from torch import Tensor
from torch.nn import functional as F

from medcyclegan.registry import RECONSTRUCTION_LOSSES


class ReconstructionLoss(Protocol):
    """How far an image is from the target; 0 if they are equal."""

    def __call__(self, image: Tensor, wanted: Tensor) -> Tensor: ...


@RECONSTRUCTION_LOSSES.register("l1", paper="Zhu et al. 2017, CycleGAN, equation 2")
class L1:
    """Mean absolute difference."""

    def __call__(self, image: Tensor, wanted: Tensor) -> Tensor:
        return F.l1_loss(_exact(image), _exact(wanted))


@RECONSTRUCTION_LOSSES.register("l2", paper="mean squared error")
class L2:
    """Mean squared difference."""

    def __call__(self, image: Tensor, wanted: Tensor) -> Tensor:
        return F.mse_loss(_exact(image), _exact(wanted))


@RECONSTRUCTION_LOSSES.register("l1_ssim", paper="Zhao et al. 2017, Loss Functions for Image Restoration, equation 9")
class L1SSIM:
    """(1 - ssim_share) L1 + ssim_share (1 - SSIM), with SSIM over 11-voxel windows and a data range of 2.

    Args:
        ssim_share: weight of the SSIM term; 0.84 in the paper, which uses it for natural images.
    """

    def __init__(self, ssim_share: float = 0.5) -> None:
        if not 0 <= ssim_share <= 1:
            raise ValueError(f"ssim_share is between 0 and 1, got {ssim_share}")
        self.ssim_share = ssim_share
        self.ssim = {dims: SSIMLoss(spatial_dims=dims, data_range=2.0) for dims in (2, 3)}

    def __call__(self, image: Tensor, wanted: Tensor) -> Tensor:
        image, wanted = _exact(image), _exact(wanted)
        with torch.autocast(image.device.type, enabled=False):
            dissimilarity = self.ssim[image.dim() - 2](image, wanted)
        return (1 - self.ssim_share) * F.l1_loss(image, wanted) + self.ssim_share * dissimilarity


def _exact(image: Tensor) -> Tensor:
    """In float32 or better."""
    return image.to(torch.promote_types(image.dtype, torch.float32))
