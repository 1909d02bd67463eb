"""The PatchGAN discriminator (Isola et al. 2017, section 3.2.2 and appendix 6.1.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from medcyclegan.networks.blocks import CONV, INSTANCE_NORM, check_spatial_dims, initialize
from medcyclegan.registry import DISCRIMINATORS


@DISCRIMINATORS.register(
    "patchgan", paper="Isola et al. 2017, Image-to-Image Translation with Conditional Adversarial Networks, CVPR"
)
class PatchGAN(nn.Module):
    """Judges overlapping patches one by one; 70 x 70 voxels each with the default of three layers.

    C64-C128-C256-C512 of 4-wide convolutions with LeakyReLU 0.2, the first `layers` of them with stride 2, then one
    logit per patch. No norm in the first layer.

    Args:
        in_channels: channels of the judged image.
        spatial_dims: 2 or 3.
        filters: channels after the first convolution; they double per layer up to 8 times as many.
        layers: strided convolutions, 1 to 5; the receptive field is 16, 34, 70, 142, 286 voxels. The image is at
            least 3 x 2**layers voxels long. 0 judges every voxel alone (the paper's PixelGAN, C64-C128 of width 1).
        spectral_norm: bound every convolution's largest gain to 1 (Miyato et al. 2018, Spectral Normalization for
            Generative Adversarial Networks) in place of the instance norm.

    Shape: (B, in_channels, *spatial) in [-1, 1] to logits (B, 1, *patches), 30 x 30 of them on 256 x 256.
    """

    def __init__(
        self,
        in_channels: int = 1,
        spatial_dims: int = 2,
        filters: int = 64,
        layers: int = 3,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if filters < 1 or not 0 <= layers <= 5:
            raise ValueError(f"filters is at least 1 and layers 0 to 5, got filters={filters}, layers={layers}")
        conv = CONV[spatial_dims]
        # Kernel, stride and padding of the convolutions between the image and the last one.
        strided, straight, single = (4, 2, 1), (4, 1, 1), (1, 1, 0)
        steps = [*([strided] * layers), straight] if layers else [single, single]
        modules: list[nn.Module] = [conv(in_channels, filters, *steps[0]), nn.LeakyReLU(0.2, inplace=True)]
        channels = filters
        for layer, step in enumerate(steps[1:], start=1):
            wider = filters * min(2**layer, 8)
            modules.append(conv(channels, wider, *step, bias=spectral_norm))
            if not spectral_norm:
                modules.append(INSTANCE_NORM[spatial_dims](wider))
            modules.append(nn.LeakyReLU(0.2, inplace=True))
            channels = wider
        self.smallest = 3 * 2**layers if layers else 1
        self.layers = nn.Sequential(*modules, conv(channels, 1, *(straight if layers else single)))
        initialize(self)
        if spectral_norm:  # only now: it takes over the weights
            for module in self.layers:
                if isinstance(module, conv):
                    parametrizations.spectral_norm(module)

    def forward(self, x: Tensor) -> Tensor:
        require_size(x, self.smallest)
        return self.layers(x)


def require_size(x: Tensor, smallest: int) -> None:
    """Refuse images that are smaller than the receptive field allows."""
    if min(x.shape[2:]) < smallest:
        raise ValueError(
            f"this discriminator needs at least {smallest} voxels along each axis, got {tuple(x.shape[2:])}; give it "
            "fewer layers or scales, or the training larger patches"
        )
