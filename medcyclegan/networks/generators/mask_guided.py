"""A generator that predicts a mask of where it changes the image, and keeps the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medcyclegan.networks.blocks import CONV, TanhHead, crop_to, initialize, pad_to_multiple, run_layers
from medcyclegan.networks.generators.resnet import resnet_trunk
from medcyclegan.registry import GENERATORS


@GENERATORS.register(
    "mask_guided", paper="Mejjati et al. 2018, Unsupervised Attention-guided Image-to-Image Translation, NeurIPS"
)
class MaskGuidedGenerator(nn.Module):
    """Predicts content and a mask: output = mask x content + (1 - mask) x input.

    One ResNet trunk with two heads (as in Tang et al. 2019, Attention-Guided GANs, equation 2), a tanh for the content
    and a sigmoid for the mask. What the mask leaves out is the input, voxel by voxel. `forward_with_mask` gives the
    mask too, for pictures and for losses on it.

    Args:
        in_channels: channels of the source image.
        out_channels: channels of the translated image; as many as `in_channels`, since input is mixed into output.
        spatial_dims: 2 or 3.
        filters: channels after the first convolution.
        blocks: residual blocks.
        downsamplings: strided convolutions.
        upsampling: "resize" (no checkerboard) or "transposed".
        checkpointing: compute features again in the backward pass instead of keeping them: less memory, more time.

    Shape: (B, in_channels, *spatial) to (B, out_channels, *spatial), both in [-1, 1]; the input is clipped to it.
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
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(
                f"mask_guided mixes the input into the output and needs as many channels in as out, got {in_channels} "
                f"and {out_channels}; take another generator, or single slices instead of stacks"
            )
        self.multiple = 2**downsamplings
        self.checkpointing = checkpointing
        self.trunk = nn.Sequential(*resnet_trunk(spatial_dims, in_channels, filters, blocks, downsamplings, upsampling))
        self.content = TanhHead(spatial_dims, filters, out_channels, kernel=7)
        self.mask = CONV[spatial_dims](filters, 1, 7, padding=3, padding_mode="reflect")
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_with_mask(x)[0]

    def forward_with_mask(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Translate, and give the mask and the content too.

        Args:
            x: (B, in_channels, *spatial) in [-1, 1].

        Returns:
            The output (B, out_channels, *spatial) in [-1, 1]; the mask (B, 1, *spatial) in [0, 1], 1 where the
            output is the content; the content, shape and range as the output.
        """
        padded = pad_to_multiple(x, self.multiple, at_least=2 * self.multiple)
        features = run_layers(self.trunk, padded, self.checkpointing)
        with torch.autocast(x.device.type, enabled=False):
            mask = crop_to(torch.sigmoid(self.mask(features.float())), x.shape[2:])
            content = crop_to(self.content(features), x.shape[2:])
            output = mask * content + (1 - mask) * x.float().clamp(-1, 1)
        return output, mask, content
