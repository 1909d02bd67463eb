"""The one place where plain layers become fast ones, and the rules by which they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from medcyclegan.networks.cpu.instance_norm import CHANNELS_LAST, InstanceNorm2d, InstanceNorm3d
from medcyclegan.networks.cpu.winograd import Kernels, doubled_convolution, reflected_convolution

MANY_CHANNELS = 128  # of input and output; Winograd is faster from here on


def accelerate(network: nn.Module) -> None:
    """Make a network faster on a processor, once: layers get another class, and weights lie with their channels last.

    Parameters stay the same objects with the same names and values, so checkpoints do not change. Layers
    without a faster form are left alone, and a second call changes nothing.

    Args:
        network: on the CPU; it is changed in place and is to stay there.
    """
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            _join_doubling(module)
    for module in network.modules():
        for fits, faster in _RULES:
            if fits(module):
                module.__class__ = faster
                break
    _use_channels_last(network)


class CachesKernels(nn.Module):
    """A layer that can cache its transformed weights; the transform takes up to a tenth of its time."""

    kernels: Kernels | None = None

    def cache_kernels(self) -> None:
        """Transform the weights once and not for every image; only for a copy whose weights do not change."""
        self.kernels = {}


class WinogradConvolution(CachesKernels, nn.Conv2d):
    """A 3 x 3 convolution with one reflected voxel around. (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return reflected_convolution(x, self.weight, self.kernels)


class DoublingConvolution2d(CachesKernels, nn.Conv2d):
    """Doubles every axis (nearest neighbor), then a 3 x 3 convolution with one reflected voxel around. (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return doubled_convolution(x, self.weight, self.kernels)


class DoublingConvolution3d(CachesKernels, nn.Conv3d):
    """As in 2D. (B, C, X, Y, Z)."""

    def forward(self, x: Tensor) -> Tensor:
        return doubled_convolution(x, self.weight, self.kernels)


def _reflects(module: Any, kernel: int | None = None) -> bool:
    """Whether it is a plain convolution with reflection padding, stride 1 and no groups, which keeps the size."""
    if type(module) not in (nn.Conv2d, nn.Conv3d) or module.padding_mode != "reflect":
        return False
    width = module.kernel_size[0]
    same_on_all_axes = all(n == width for n in module.kernel_size) and all(n == width // 2 for n in module.padding)
    simple = module.groups == 1 and set(module.stride) == set(module.dilation) == {1}
    return same_on_all_axes and simple and width % 2 == 1 and kernel in (None, width)


def _is_wide(module: Any) -> bool:
    many = type(module) is nn.Conv2d and min(module.in_channels, module.out_channels) >= MANY_CHANNELS
    return many and _reflects(module, 3) and module.bias is None


def _is_norm(kind: type[nn.Module]) -> Callable[[Any], bool]:
    return lambda module: type(module) is kind and not module.affine and not module.track_running_stats


_RULES: list[tuple[Callable[[Any], bool], type[nn.Module]]] = [
    (_is_wide, WinogradConvolution),
    (_is_norm(nn.InstanceNorm2d), InstanceNorm2d),
    (_is_norm(nn.InstanceNorm3d), InstanceNorm3d),
]


def _join_doubling(layers: nn.Sequential) -> None:
    """Let a convolution after a doubling do both."""
    for place, (layer, following) in enumerate(zip(list(layers), list(layers)[1:], strict=False)):
        doubles = type(layer) is nn.Upsample and layer.scale_factor == 2 and layer.mode == "nearest"
        conv = following[0] if isinstance(following, nn.Sequential) and len(following) else following
        if doubles and _reflects(conv, 3) and conv.bias is None:
            layers[place] = nn.Identity()
            conv.__class__ = DoublingConvolution2d if type(conv) is nn.Conv2d else DoublingConvolution3d


def _use_channels_last(network: nn.Module) -> None:
    """Lay the weights of all convolutions out with their channels last, which makes their results come out so too.

    Networks with other instance norms than ours are left alone: those would rearrange every image.
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
