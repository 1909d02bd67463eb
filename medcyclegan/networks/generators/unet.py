"""The U-Net generator of Pix2Pix (Isola et al. 2017, appendix 6.1.1)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from medcyclegan.networks.blocks import (
    CONV,
    CONV_TRANSPOSE,
    INSTANCE_NORM,
    TanhHead,
    check_spatial_dims,
    crop_to,
    initialize,
    pad_to_multiple,
)
from medcyclegan.registry import GENERATORS

WIDEST = 8  # features grow up to this many times `filters`


@GENERATORS.register(
    "unet", paper="Isola et al. 2017, Image-to-Image Translation with Conditional Adversarial Networks, CVPR"
)
class UNetGenerator(nn.Module):
    """Halves the image `depth` times and doubles it again, with skip connections; the Pix2Pix paper's generator.

    Encoder C64-C128-C256-C512-C512-... of 4-wide convolutions of stride 2 with LeakyReLU 0.2, decoder the reverse with
    ReLU; instance norm without parameters everywhere but in the first and the innermost convolution; tanh. Images are
    padded to multiples of 2**depth voxels inside, so more depth than the patch has halvings only costs.

    Args:
        in_channels: channels of the source image.
        out_channels: channels of the translated image.
        spatial_dims: 2 or 3.
        filters: channels after the first convolution; they double per level up to 8 times as many.
        depth: halvings, at least 2; the paper's 8 shrink 256 x 256 to one voxel.
        upsampling: "resize" (no checkerboard) or "transposed" (as in the paper).
        dropout: share of features left out in the decoder's innermost widest levels in training; 0.5 in the paper,
            which also leaves them out when translating. Here translating is deterministic.

    Shape: (B, in_channels, *spatial) to (B, out_channels, *spatial), both in [-1, 1].
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        spatial_dims: int = 2,
        filters: int = 64,
        depth: int = 5,
        upsampling: str = "resize",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if filters < 1 or depth < 2:
            raise ValueError(f"filters is at least 1 and depth at least 2, got filters={filters}, depth={depth}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is a share from 0 to below 1, got {dropout}")
        self.multiple = 2**depth
        widths = [filters * min(2**level, WIDEST) for level in range(depth)]
        conv, norm = CONV[spatial_dims], INSTANCE_NORM[spatial_dims]

        downs: list[nn.Module] = [conv(in_channels, filters, 4, 2, 1)]
        for wide, wider in pairwise(widths[:-1]):
            downs.append(nn.Sequential(nn.LeakyReLU(0.2), conv(wide, wider, 4, 2, 1, bias=False), norm(wider)))
        # One voxel per channel has no statistics: the innermost convolution has a bias and no norm.
        downs.append(nn.Sequential(nn.LeakyReLU(0.2), conv(widths[-2], widths[-1], 4, 2, 1)))
        ups: list[nn.Module] = []
        for level in reversed(range(1, depth)):
            innermost = level == depth - 1
            channels = widths[level] if innermost else 2 * widths[level]
            layers = [nn.ReLU(), _doubling(spatial_dims, channels, widths[level - 1], upsampling)]
            layers.append(norm(widths[level - 1]))
            if dropout and not innermost and widths[level - 1] == WIDEST * filters:
                layers.append(nn.Dropout(dropout))
            ups.append(nn.Sequential(*layers))
        self.downs = nn.ModuleList(downs)
        self.ups = nn.ModuleList(ups)
        if upsampling == "transposed":
            self.head = nn.Sequential(nn.ReLU(), TanhHead(spatial_dims, 2 * filters, out_channels, 4, transposed=True))
        else:
            self.head = nn.Sequential(
                nn.ReLU(),
                nn.Upsample(scale_factor=2, mode="nearest"),
                TanhHead(spatial_dims, 2 * filters, out_channels, 3),
            )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        features = pad_to_multiple(x, self.multiple)
        skips: list[Tensor] = []
        for down in self.downs:
            features = down(features)
            skips.append(features)
        skips.pop()
        for up in self.ups:
            features = torch.cat([skips.pop(), up(features)], dim=1)
        return crop_to(self.head(features), x.shape[2:])


def _doubling(spatial_dims: int, in_channels: int, out_channels: int, mode: str) -> nn.Module:
    if mode == "resize":
        conv = CONV[spatial_dims](in_channels, out_channels, 3, padding=1, padding_mode="reflect", bias=False)
        return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv)
    if mode == "transposed":
        return CONV_TRANSPOSE[spatial_dims](in_channels, out_channels, 4, stride=2, padding=1, bias=False)
    raise ValueError(f"upsampling is 'resize' or 'transposed', got {mode!r}")
