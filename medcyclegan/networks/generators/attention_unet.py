"""A U-Net whose skip connections are gated by the decoder's features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medcyclegan.networks.blocks import CONV, TanhHead, check_spatial_dims, initialize
from medcyclegan.networks.pyramid import Pyramid
from medcyclegan.registry import GENERATORS


@GENERATORS.register(
    "attention_unet", paper="Oktay et al. 2018, Attention U-Net: Learning Where to Look for the Pancreas, MIDL"
)
class AttentionUNetGenerator(nn.Module):
    """A U-Net with attention gates on its skip connections.

    MONAI's network of this name has batch norm, which mixes the images of a batch; this one has instance norm. The gate
    works on the decoder's features after they were raised to the skip connection's resolution.

    Args:
        in_channels: channels of the source image.
        out_channels: channels of the translated image.
        spatial_dims: 2 or 3.
        filters: channels at full resolution, at least 2; they double per level.
        depth: halvings, at least 1.
        gates: False leaves the skip connections as they are, which makes it a plain U-Net and a sixth faster.

    Shape: (B, in_channels, *spatial) to (B, out_channels, *spatial), both in [-1, 1].
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        spatial_dims: int = 2,
        filters: int = 32,
        depth: int = 4,
        gates: bool = True,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if filters < 2:
            raise ValueError(f"filters is at least 2, got {filters}")
        gate = (lambda width: AttentionGate(spatial_dims, width)) if gates else None
        self.features = Pyramid(spatial_dims, in_channels, filters, depth, gate=gate)
        self.head = TanhHead(spatial_dims, filters, out_channels, kernel=3)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class AttentionGate(nn.Module):
    """skip * sigmoid(psi(relu(W_x skip + W_g gating + b_g)) + b_psi): Oktay et al. 2018, equations 1 and 2.

    Args:
        spatial_dims: 2 or 3.
        channels: of the skip connection and of the gating features.

    Shape: two of (B, channels, *spatial) to the same.
    """

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        conv = CONV[spatial_dims]
        self.of_skip = conv(channels, channels // 2, 1, bias=False)
        self.of_gating = conv(channels, channels // 2, 1)
        self.psi = conv(channels // 2, 1, 1)

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        return skip * torch.sigmoid(self.psi(torch.relu(self.of_skip(skip) + self.of_gating(gating))))
