"""A U-Net with a vision transformer at its lowest resolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcyclegan.networks.blocks import TanhHead, initialize
from medcyclegan.networks.pyramid import Pyramid
from medcyclegan.registry import GENERATORS


@GENERATORS.register(
    "vit_unet",
    paper="Torbunov et al. 2023, UVCGAN: UNet Vision Transformer Cycle-consistent GAN for Unpaired Image-to-Image "
    "Translation, WACV",
)
class ViTUNetGenerator(nn.Module):
    """A U-Net whose bottleneck is a transformer with global attention.

    The voxels of the lowest level are the tokens. Two things differ from the paper: positions are encoded by fixed
    sines of the distance from the image's center, so that one network takes images of any size; and the residual
    branches start at a tenth of their weight and not at zero, so that every parameter learns from the first step.

    Args:
        in_channels: channels of the source image.
        out_channels: channels of the translated image.
        spatial_dims: 2 or 3.
        filters: channels at full resolution; they double per level. 48 in the paper.
        depth: halvings before the transformer. 4 in the paper.
        blocks: transformer blocks. 12 in the paper.
        heads: attention heads, which divide the tokens' filters x 2**depth channels. 6 in the paper.

    Shape: (B, in_channels, *spatial) to (B, out_channels, *spatial), both in [-1, 1].
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        spatial_dims: int = 2,
        filters: int = 32,
        depth: int = 4,
        blocks: int = 6,
        heads: int = 4,
    ) -> None:
        super().__init__()
        channels = filters * 2**depth
        if blocks < 1 or heads < 1 or channels % heads:
            raise ValueError(
                f"blocks and heads are at least 1, and heads divides the {channels} channels of the lowest level, got "
                f"blocks={blocks}, heads={heads}"
            )
        self.features = Pyramid(spatial_dims, in_channels, filters, depth, TokenTransformer(channels, blocks, heads))
        self.head = TanhHead(spatial_dims, filters, out_channels, kernel=3)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class TokenTransformer(nn.Module):
    """Transformer blocks over the voxels of an image, (B, channels, *spatial) to the same."""

    def __init__(self, channels: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(TransformerBlock(channels, heads) for _ in range(blocks)))
        # No bias: it would be the same everywhere, and the instance norm that follows subtracts it.
        self.norm = nn.LayerNorm(channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + positions(x.shape[2:], x.shape[1], x.device)
        return self.norm(self.blocks(tokens)).transpose(1, 2).reshape(x.shape)


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each normed before and added to what came in.

    Dosovitskiy et al. 2021, equations 2 and 3, with learned weights of the two branches (Touvron et al. 2021, Going
    deeper with Image Transformers, equation 3). Shape: (B, tokens, channels) to the same.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(channels), nn.LayerNorm(channels)])
        self.queries, self.values = nn.Linear(channels, channels), nn.Linear(channels, channels)
        # A bias of the keys adds the same to all logits of a query, which softmax subtracts again.
        self.keys = nn.Linear(channels, channels, bias=False)
        self.mixed = nn.Linear(channels, channels)
        self.perceptron = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.weights = nn.Parameter(torch.full((2, channels), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norms[0](x)
        q, k, v = (
            linear(normed).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for linear in (self.queries, self.keys, self.values)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.weights[0] * self.mixed(attended)
        return x + self.weights[1] * self.perceptron(self.norms[1](x))


def positions(shape: torch.Size, channels: int, device: torch.device) -> Tensor:
    """Sines and cosines of each token's distance from the center along each axis.

    Vaswani et al. 2017, section 3.5, with the channels shared out among the axes; what is left over is 0.

    Args:
        shape: of the image of tokens, (*spatial).
        channels: of a token.
        device: where the result is wanted.

    Returns:
        (tokens, channels), tokens in the order of `flatten`, in [-1, 1].
    """
    frequencies = max(1, channels // (2 * len(shape)))
    rates = torch.exp(-math.log(1e4) * torch.arange(frequencies, device=device) / frequencies)
    encoded = []
    for axis, length in enumerate(shape):
        angles = (torch.arange(1 - length, length, 2, device=device) / 2)[:, None] * rates
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        view = [1] * len(shape) + [2 * frequencies]
        view[axis] = length
        encoded.append(waves.view(view).expand(*shape, -1).flatten(0, -2))
    table = torch.cat(encoded, dim=1)[:, :channels]
    return F.pad(table, (0, channels - table.shape[1]))
