"""The PatchGAN discriminator (Isola et al. 2017, section 3.2.2 and appendix 6.1.2)."""

from __future__ import annotations

from torch import Tensor, nn

from medcyclegan.networks.blocks import CONV, INSTANCE_NORM, check_spatial_dims, initialize
from medcyclegan.registry import DISCRIMINATORS


@DISCRIMINATORS.register("patchgan")
class PatchGAN(nn.Module):
    """Judges overlapping patches one by one; 70 x 70 voxels each with the default of three layers.

    C64-C128-C256-C512 of 4-wide convolutions with LeakyReLU 0.2, the first `layers` of them with stride 2, then one
    logit per patch. No norm in the first layer.

    Args:
        in_channels: channels of the judged image.
        spatial_dims: 2 or 3.
        filters: channels after the first convolution; they double per layer up to 8 times as many.
        layers: strided convolutions, at least 1; the receptive field is 16, 34, 70, 142, 286 voxels for 1 to 5.

    Shape: (B, in_channels, *spatial) in [-1, 1] to logits (B, 1, *patches), 30 x 30 of them on 256 x 256.
    """

    def __init__(self, in_channels: int = 1, spatial_dims: int = 2, filters: int = 64, layers: int = 3) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if filters < 1 or layers < 1:
            raise ValueError(f"filters and layers are at least 1, got filters={filters}, layers={layers}")
        conv = CONV[spatial_dims]
        modules: list[nn.Module] = [conv(in_channels, filters, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        channels = filters
        for layer in range(1, layers + 1):
            wider = filters * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            modules += [
                conv(channels, wider, 4, stride, 1, bias=False),
                INSTANCE_NORM[spatial_dims](wider),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            channels = wider
        self.layers = nn.Sequential(*modules, conv(channels, 1, 4, 1, 1))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
