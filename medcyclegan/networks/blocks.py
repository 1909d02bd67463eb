"""Building blocks of the networks, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Padding = Literal["reflect", "replicate", "zeros"]
CONV = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
AVERAGE_POOL = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


def _leaves_autocast(x: Tensor) -> bool:
    """Whether rounding-sensitive layers run in float32 under autocast: in inference only.

    In training, gradients are noisier than the rounding, and memory is short.
    """
    return torch.is_autocast_enabled(x.device.type) and not torch.is_grad_enabled()


def check_spatial_dims(spatial_dims: int) -> None:
    if spatial_dims not in CONV:
        raise ValueError(f"spatial_dims is 2 or 3, got {spatial_dims!r}")


def conv_norm_act(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    *,
    kernel: int,
    stride: int = 1,
    padding_mode: Padding = "zeros",
    relu: bool = True,
) -> nn.Sequential:
    """Convolution, instance norm without parameters and, unless `relu` is False, ReLU; odd kernels keep the size.

    The convolution has no bias: the norm subtracts it again, and what is left of its gradient is rounding noise.
    """
    layers: list[nn.Module] = [
        CONV[spatial_dims](
            in_channels, out_channels, kernel, stride, (kernel - 1) // 2, padding_mode=padding_mode, bias=False
        ),
        INSTANCE_NORM[spatial_dims](out_channels),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class ResidualBlock(nn.Module):
    """x + norm(conv(dropout(relu(norm(conv(x)))))), shape kept. (B, C, *spatial).

    In inference, x stays float32 even under autocast: through many blocks it would be rounded
    again and again, and it is larger than what each of them adds.
    """

    def __init__(self, spatial_dims: int, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        first, second = (
            conv_norm_act(spatial_dims, channels, channels, kernel=3, padding_mode="reflect", relu=relu)
            for relu in (True, False)
        )
        if dropout:
            first.append(nn.Dropout(dropout))
        self.body = nn.Sequential(first, second)

    def forward(self, x: Tensor) -> Tensor:
        if _leaves_autocast(x):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x + self.body(x)


class Upsample(nn.Sequential):
    """Doubles every axis, then norm and ReLU.

    `resize` repeats each voxel and convolves, so every output voxel is made by the same number of kernel taps: no
    checkerboard (Odena et al., Deconvolution and Checkerboard Artifacts, Distill 2016). `transposed` is the original
    paper's fractionally strided convolution.

    In inference, float32 even under autocast: errors this close to the output are not averaged
    out. In a ResNet-9 they were a third of what bfloat16 changed in the result, for a sixth of the time on
    a processor.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, mode: str) -> None:
        if mode == "resize":
            super().__init__(
                nn.Upsample(scale_factor=2, mode="nearest"),
                conv_norm_act(spatial_dims, in_channels, out_channels, kernel=3, padding_mode="reflect"),
            )
        elif mode == "transposed":
            super().__init__(
                CONV_TRANSPOSE[spatial_dims](
                    in_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=False
                ),
                INSTANCE_NORM[spatial_dims](out_channels),
                nn.ReLU(inplace=True),
            )
        else:
            raise ValueError(f"upsampling is 'resize' or 'transposed', got {mode!r}")

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor
        if _leaves_autocast(x):
            with torch.autocast(x.device.type, enabled=False):
                result = super().forward(x.to(torch.promote_types(x.dtype, torch.float32)))
        else:
            result = super().forward(x)
        return result


class TanhHead(nn.Module):
    """The last convolution and tanh, in float32 (or better) even under autocast.

    bfloat16 has 8 significant bits: around 0 HU, which is -0.5 in [-1, 1], its steps are 4 HU wide.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the features.
        out_channels: channels of the image.
        kernel: width of the convolution: odd, or 4 for a transposed one.
        transposed: a transposed convolution that doubles every axis, instead of one that keeps them.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, kernel: int, transposed: bool = False
    ) -> None:
        super().__init__()
        self.conv: nn.Module
        if transposed:
            self.conv = CONV_TRANSPOSE[spatial_dims](in_channels, out_channels, kernel, stride=2, padding=1)
        else:
            self.conv = CONV[spatial_dims](
                in_channels,
                out_channels,
                kernel,
                padding=kernel // 2,
                padding_mode="reflect" if kernel > 1 else "zeros",
            )

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return torch.tanh(self.conv(x.to(torch.promote_types(x.dtype, torch.float32))))


def run_layers(layers: Iterable[nn.Module], x: Tensor, checkpointing: bool) -> Tensor:
    """Apply layers one after the other.

    With `checkpointing`, what a layer computes inside is not kept for the backward pass but computed again there: the
    memory of one layer instead of all, for about a third more time (Chen et al., Training Deep Nets with Sublinear
    Memory Cost, 2016). The gradients are the same numbers.
    """
    for layer in layers:
        recompute = checkpointing and torch.is_grad_enabled()
        x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
    return x


def pad_to_multiple(x: Tensor, multiple: int, at_least: int = 1) -> Tensor:
    """Repeat the last voxels of each spatial axis until its length is a multiple of `multiple`, and `at_least`."""
    missing = [max(at_least - n, 0) + (-max(n, at_least)) % multiple for n in x.shape[2:]]
    # An exported program has no branches: padding by nothing there is what lets it take every size.
    if not torch.compiler.is_exporting() and not any(missing):
        return x
    return F.pad(x, [pad for n in reversed(missing) for pad in (0, n)], mode="replicate")


def pad_to_halve(x: Tensor, multiple: int) -> Tensor:
    """Pad so that `multiple` divides every axis into more than one voxel: instance norm needs two."""
    return pad_to_multiple(x, multiple, at_least=2 * multiple if max(x.shape[2:]) <= multiple else 1)


def crop_to(x: Tensor, shape: torch.Size) -> Tensor:
    """Keep the first `shape` voxels of the spatial axes: undoes `pad_to_multiple`."""
    for axis, length in enumerate(shape, start=2):
        if torch.compiler.is_exporting():
            # A view would tie the exported program to sizes that leave the memory's layout alike.
            x = x.index_select(axis, torch.arange(length, device=x.device))
        else:
            x = x.narrow(axis, 0, length)
    return x


@torch.no_grad()
def initialize(network: nn.Module) -> None:
    """Weights from N(0, 0.02^2), biases 0 (Radford et al. 2016, section 3; Zhu et al. 2017, section 7.1)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            module.weight.normal_(0.0, 0.02)
            if module.bias is not None:
                module.bias.zero_()
