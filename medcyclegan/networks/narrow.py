"""A wide convolution to a few channels as one matrix product per kernel tap and a sum of shifted images.

Libraries block a convolution over its output channels; with one of those, most of the work is thrown away. Here every
voxel's features are multiplied by all taps at once, (taps, C) times (C, voxels), and the products are moved to where
they belong and added.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def narrow_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """`conv2d(x, weight)` without padding and bias: the same sums, added in another order.

    Args:
        x: (B, C, H, W), best with its channels last.
        weight: (O, C, K, K).

    Returns:
        (B, O, H - K + 1, W - K + 1).
    """
    (batch, channels, height, width), kernel = x.shape, weight.shape[-1]
    taps = weight.flip(2, 3).permute(0, 2, 3, 1).reshape(-1, channels)
    products = taps @ x.permute(0, 2, 3, 1).reshape(batch, height * width, channels).transpose(1, 2)
    # Every voxel writes to the outputs that see it; those with an incomplete kernel lie at the border.
    spread = F.fold(products, (height + kernel - 1, width + kernel - 1), kernel)
    return spread[:, :, kernel - 1 : height, kernel - 1 : width]
