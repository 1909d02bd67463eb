"""MONAI's Swin UNETR as a translator."""

from __future__ import annotations

from monai.networks.nets import SwinUNETR
from torch import Tensor, nn

from medcyclegan.networks.blocks import TanhHead, check_spatial_dims, crop_to, initialize, pad_to_halve
from medcyclegan.registry import GENERATORS

MULTIPLE = 32  # the network halves five times


@GENERATORS.register(
    "swin_unetr",
    paper="Hatamizadeh et al. 2022, Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI "
    "Images, MICCAI BrainLes workshop",
)
class SwinUNETRGenerator(nn.Module):
    """MONAI's Swin UNETR with a tanh: attention within shifted windows at every level, convolutions on the way up.

    Images are padded to multiples of 32 voxels inside, and to more than 32 along one axis at least.

    Args:
        in_channels: channels of the source image.
        out_channels: channels of the translated image.
        spatial_dims: 2 or 3.
        filters: channels at full resolution, a multiple of 12; 48 in the paper.
        checkpointing: compute the transformer's features again in the backward pass: less memory, more time.

    Shape: (B, in_channels, *spatial) to (B, out_channels, *spatial), both in [-1, 1].
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        spatial_dims: int = 2,
        filters: int = 24,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if filters < 12 or filters % 12:
            raise ValueError(f"filters is a multiple of 12, got {filters}")
        self.network = SwinUNETR(
            in_channels, out_channels, spatial_dims=spatial_dims, feature_size=filters, use_checkpoint=checkpointing
        )
        self.network.out = TanhHead(spatial_dims, filters, out_channels, kernel=1)  # type: ignore[assignment]
        initialize(self.network.out)

    def forward(self, x: Tensor) -> Tensor:
        return crop_to(self.network(pad_to_halve(x, MULTIPLE)), x.shape[2:])
