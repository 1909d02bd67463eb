"""Nearest-neighbor doubling followed by a 3-wide convolution, without ever making the doubled image.

Two neighboring voxels of the doubled image are one voxel of the small one, so that along each axis a kernel (u, v, w)
sees only two different voxels: it is (u, v + w) around an output voxel of even index and (u + v, w) around one of odd
index. Each of the 2**dims combinations, a *phase*, is a 2-wide convolution of the small image: 4 multiplications for 9
in 2D, 8 for 27 in 3D. Reflecting the doubled image at its border is repeating the last voxel of the small one.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from medcyclegan.networks.instance_norm import CHANNELS_LAST

CONVOLVE = {2: F.conv2d, 3: F.conv3d}


def doubled_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """`conv(reflect(double(x)), weight)`: the same sums, added in another order.

    Args:
        x: (B, C, *spatial).
        weight: (O, C, 3, 3) or (O, C, 3, 3, 3).

    Returns:
        (B, O, *doubled), channels last.
    """
    dims = x.dim() - 2
    kernels = torch.cat([_phase(weight, offsets) for offsets in product((0, 1), repeat=dims)])
    padded = F.pad(x, [1, 1] * dims, mode="replicate")
    phases = CONVOLVE[dims](padded, kernels.contiguous(memory_format=CHANNELS_LAST[x.dim()]))
    result: Tensor = _Interleave.apply(phases)
    return result


def _phase(weight: Tensor, offsets: tuple[int, ...]) -> Tensor:
    """(O, C, 3, ...) to (O, C, 2, ...): the kernel around output voxels of even (0) or odd (1) index, per axis."""
    for axis, odd in enumerate(offsets, start=2):
        u, v, w = weight.unbind(axis)
        weight = torch.stack([u + v, w] if odd else [u, v + w], axis)
    return weight


class _Interleave(torch.autograd.Function):
    """(B, 2**dims O, *(spatial + 1)) to (B, O, *(2 spatial)); phase p begins at voxel p of its part."""

    @staticmethod
    def forward(ctx: Any, phases: Tensor) -> Tensor:
        dims = phases.dim() - 2
        channels = phases.shape[1] // 2**dims
        size = [2 * (n - 1) for n in phases.shape[2:]]
        memory_format = CHANNELS_LAST[phases.dim()]
        whole = phases.new_empty(len(phases), channels, *size).to(memory_format=memory_format)
        for into, source in _places(phases.shape, channels):
            whole[into] = phases[source]
        ctx.shape = phases.shape
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        phases = gradient.new_zeros(ctx.shape).to(memory_format=CHANNELS_LAST[gradient.dim()])
        for into, source in _places(ctx.shape, gradient.shape[1]):
            phases[source] = gradient[into]
        return phases


def _places(shape: torch.Size, channels: int) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """For each phase, where it goes in the whole and where it lies among the phases, (B, C, *spatial) each."""
    places = []
    for number, offsets in enumerate(product((0, 1), repeat=len(shape) - 2)):
        own = slice(number * channels, (number + 1) * channels)
        into = (slice(None), slice(None), *(slice(p, None, 2) for p in offsets))
        lengths = [n - 1 for n in shape[2:]]
        source = (slice(None), own, *(slice(p, p + n) for p, n in zip(offsets, lengths, strict=True)))
        places.append((into, source))
    return places
