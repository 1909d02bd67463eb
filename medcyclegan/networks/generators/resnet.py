"""The ResNet generator of CycleGAN (Zhu et al. 2017, section 7.2; Johnson et al. 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from medcyclegan.networks.blocks import (
    ResidualBlock,
    TanhHead,
    Upsample,
    check_spatial_dims,
    conv_norm_act,
    crop_to,
    initialize,
    pad_to_multiple,
    run_layers,
)
from medcyclegan.registry import GENERATORS


@GENERATORS.register(
    "resnet",
    paper="Zhu et al. 2017, Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks, ICCV",
)
class ResNetGenerator(nn.Module):
    """Strided convolutions down, residual blocks, up-samplings; the CycleGAN paper's generator.

    In the paper's notation c7s1-F, d2F, 4F, R4F x blocks, u2F, uF, c7s1-out with F = `filters`; reflection padding,
    instance norm without parameters, tanh. Axes of any length of at least 16 voxels are taken.

    Args:
        in_channels: channels of the source image.
        out_channels: channels of the translated image.
        spatial_dims: 2 or 3.
        filters: channels after the first convolution.
        blocks: residual blocks; the paper uses 6 for 128 x 128 and 9 for 256 x 256.
        downsamplings: strided convolutions; 2 in the paper. With 1 the residual blocks work at half and not at a
            quarter of the resolution, at the same cost, which keeps structures that are one or two voxels thin.
        upsampling: "resize" (no checkerboard) or "transposed" (as in the paper).
        dropout: share of features left out within the residual blocks in training; the reference has 0.5 or none.
        checkpointing: compute features again in the backward pass instead of keeping them: less memory, more time.

    Shape: (B, in_channels, *spatial) to (B, out_channels, *spatial), both in [-1, 1].
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        spatial_dims: int = 2,
        filters: int = 64,
        blocks: int = 9,
        downsamplings: int = 2,
        upsampling: str = "resize",
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.multiple = 2**downsamplings
        self.checkpointing = checkpointing
        trunk = resnet_trunk(spatial_dims, in_channels, filters, blocks, downsamplings, upsampling, dropout)
        self.layers = nn.Sequential(*trunk, TanhHead(spatial_dims, filters, out_channels, kernel=7))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        # Two voxels at the lowest resolution are the least that instance norm takes.
        padded = pad_to_multiple(x, self.multiple, at_least=2 * self.multiple)
        return crop_to(run_layers(self.layers, padded, self.checkpointing), x.shape[2:])


def resnet_trunk(
    spatial_dims: int,
    in_channels: int,
    filters: int,
    blocks: int,
    downsamplings: int,
    upsampling: str,
    dropout: float = 0.0,
) -> list[nn.Module]:
    """The generator's layers without the last one; arguments as there.

    Shape: (B, in_channels, *spatial), multiples of 2**downsamplings, to (B, filters, *spatial).
    """
    check_spatial_dims(spatial_dims)
    if min(filters, blocks, downsamplings) < 1:
        raise ValueError(
            f"filters, blocks and downsamplings are at least 1, got {filters}, {blocks} and {downsamplings}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a share from 0 to below 1, got {dropout}")
    widths = [filters * 2**level for level in range(downsamplings + 1)]

    return [
        conv_norm_act(spatial_dims, in_channels, filters, kernel=7, padding_mode="reflect"),
        # Zero padding, as in the paper: only the stride-1 convolutions reflect.
        *(conv_norm_act(spatial_dims, width, 2 * width, kernel=3, stride=2) for width in widths[:-1]),
        *(ResidualBlock(spatial_dims, widths[-1], dropout) for _ in range(blocks)),
        *(Upsample(spatial_dims, 2 * width, width, upsampling) for width in reversed(widths[:-1])),
    ]
