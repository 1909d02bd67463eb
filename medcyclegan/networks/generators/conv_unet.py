"""A U-Net with two convolutions per level (Ronneberger et al. 2015), for translation."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcyclegan.networks.blocks import (
    TanhHead,
    check_spatial_dims,
    conv_norm_act,
    crop_to,
    initialize,
    pad_to_multiple,
)
from medcyclegan.registry import GENERATORS


@GENERATORS.register(
    "conv_unet", paper="Ronneberger et al. 2015, U-Net; instance norm as in nnU-Net, Isensee et al. 2021"
)
class ConvUNetGenerator(nn.Module):
    """Two 3-wide convolutions per level, strided convolutions down, repeated voxels up, skips at every resolution.

    The skips carry thin structures at full resolution past the lower levels, so it learns where borders lie several
    times faster than a ResNet of the same cost.

    Args:
        in_channels: channels of the source image.
        out_channels: channels of the translated image.
        spatial_dims: 2 or 3.
        filters: channels at full resolution; they double per level up to 8 times as many.
        depth: strided convolutions; the lowest level must keep at least 2 voxels per axis for its norm.

    Shape: (B, in_channels, *spatial) to (B, out_channels, *spatial), both in [-1, 1].
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        spatial_dims: int = 2,
        filters: int = 32,
        depth: int = 3,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if filters < 1 or depth < 1:
            raise ValueError(f"filters and depth are at least 1, got {filters} and {depth}")
        self.multiple = 2**depth
        widths = [filters * min(2**level, 8) for level in range(depth + 1)]

        def block(channels: int, wider: int, stride: int = 1) -> nn.Module:
            # Zero padding in the strided convolutions only, as in the ResNet generator.
            return conv_norm_act(
                spatial_dims,
                channels,
                wider,
                kernel=3,
                stride=stride,
                padding_mode="reflect" if stride == 1 else "zeros",
                activation=nn.ReLU(inplace=True),
            )

        self.stem = nn.Sequential(block(in_channels, filters), block(filters, filters))
        self.down = nn.ModuleList(
            nn.Sequential(block(width, wider, stride=2), block(wider, wider)) for width, wider in pairwise(widths)
        )
        self.up = nn.ModuleList(block(widths[level + 1], widths[level]) for level in range(depth))
        self.merge = nn.ModuleList(
            nn.Sequential(block(2 * widths[level], widths[level]), block(widths[level], widths[level]))
            for level in range(depth)
        )
        self.head = TanhHead(spatial_dims, filters, out_channels, kernel=3)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(pad_to_multiple(x, self.multiple))]
        for down in self.down:
            features.append(down(features[-1]))
        y = features.pop()
        for level in reversed(range(len(self.down))):
            y = self.up[level](F.interpolate(y, scale_factor=2.0, mode="nearest"))
            y = self.merge[level](torch.cat([y, features[level]], dim=1))
        return crop_to(self.head(y), x.shape[2:])
