"""PatchGANs at several resolutions (Wang et al. 2018, section 3.2)."""

from __future__ import annotations

from torch import Tensor, nn

from medcyclegan.networks.blocks import AVERAGE_POOL, check_spatial_dims
from medcyclegan.networks.discriminators.patchgan import PatchGAN, require_size
from medcyclegan.registry import DISCRIMINATORS


@DISCRIMINATORS.register(
    "multiscale",
    paper="Wang et al. 2018, High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs, CVPR",
)
class MultiscalePatchGAN(nn.Module):
    """Equal PatchGANs that see the image at full, half, quarter, ... resolution.

    The coarse ones judge the whole, the fine ones the texture.

    Args:
        in_channels: channels of the judged image.
        spatial_dims: 2 or 3.
        filters: channels after the first convolution of each.
        layers: strided convolutions of each, 0 to 5. The image is at least 3 x 2**(layers + scales - 1) voxels long.
        scales: resolutions, at least 2; 3 in the paper.
        spectral_norm: as in `patchgan`.

    Shape: (B, in_channels, *spatial) in [-1, 1] to a tuple of logits (B, 1, *patches), the finest first.
    """

    def __init__(
        self,
        in_channels: int = 1,
        spatial_dims: int = 2,
        filters: int = 64,
        layers: int = 3,
        scales: int = 2,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if scales < 2:
            raise ValueError(f"scales is at least 2, got {scales}; for one scale take patchgan")
        self.judges = nn.ModuleList(
            PatchGAN(in_channels, spatial_dims, filters, layers, spectral_norm) for _ in range(scales)
        )
        self.smallest = 3 * 2 ** (layers + scales - 1) if layers else 2 ** (scales - 1)
        self.halve = AVERAGE_POOL[spatial_dims](3, stride=2, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        require_size(x, self.smallest)
        logits: list[Tensor] = []
        for scale, judge in enumerate(self.judges):
            if scale:
                x = self.halve(x)
            logits.append(judge(x))
        return tuple(logits)
