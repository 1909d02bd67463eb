"""Instance norm (Ulyanov et al. 2016, equation 4) with statistics in float32, fast in both memory formats.

On a processor torch keeps the statistics of an instance norm without parameters in the type of its input: in bfloat16,
a channel whose mean is 30 standard deviations comes out wrong by up to 0.07 of one. And it knows only the contiguous
format: what comes in channels-last is rearranged before, and its result stays so.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the dimensions of a tensor


class InstanceNorm2d(nn.InstanceNorm2d):
    """Zero mean and unit variance of every image and channel, no parameters. (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, self.eps)


class InstanceNorm3d(nn.InstanceNorm3d):
    """Zero mean and unit variance of every image and channel, no parameters. (B, C, X, Y, Z)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, self.eps)


def normalize(x: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over the spatial axes, statistics in float32 or better, format and type kept.

    Args:
        x: (B, C, *spatial).
    """
    if x.device.type != "cpu" or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return F.instance_norm(x, eps=eps)
    # Parameters of that type are what makes torch keep the statistics in it.
    exact = torch.promote_types(x.dtype, torch.float32)
    gain, offset = torch.ones(x.shape[1], dtype=exact), torch.zeros(x.shape[1], dtype=exact)
    if x.is_contiguous() or not x.is_contiguous(memory_format=CHANNELS_LAST[x.dim()]):
        return F.instance_norm(x, weight=gain, bias=offset, eps=eps)
    # Instance norm of one image is batch norm, which keeps channels-last.
    images = [F.batch_norm(image, None, None, gain, offset, training=True, eps=eps) for image in x.split(1)]
    return images[0] if len(images) == 1 else torch.cat(images)


def use_channels_last(network: nn.Module) -> None:
    """Lay the weights of all convolutions out with their channels last, which makes their results come out so too.

    Values, shapes and what a checkpoint holds stay the same. A network with instance norms of torch's own is left as it
    is: they would rearrange every image.
    """
    own = (InstanceNorm2d, InstanceNorm3d)
    if any(isinstance(m, nn.InstanceNorm2d | nn.InstanceNorm3d) and not isinstance(m, own) for m in network.modules()):
        return
    for parameter in network.parameters():
        if parameter.dim() in CHANNELS_LAST:
            last = parameter.data.movedim(1, -1).contiguous()
            # Written out, because weights for one channel pass for channels last as they are, and torch then takes
            # their strides for those of the other format.
            row = last.shape[-1]
            strides = [row]
            for length in reversed(last.shape[2:-1]):
                strides.insert(0, strides[0] * length)
            parameter.data = last.as_strided(parameter.shape, (strides[0] * last.shape[1], 1, *strides))
