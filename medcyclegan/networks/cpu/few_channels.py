"""A wide convolution to a few channels as one matrix product per kernel tap and a sum of shifted images.

Libraries block a convolution over its output channels; with one of those, most of the work is thrown away. Here every
voxel's features are multiplied by all taps at once, (taps, C) times (C, voxels), and the products are moved to where
they belong and added. Gradients are the adjoints of the same steps, laid out channels last as the features are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def few_channel_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """`conv2d(x, weight)` without padding and bias: the same sums, added in another order.

    Args:
        x: (B, C, H, W), best with its channels last.
        weight: (O, C, K, K).

    Returns:
        (B, O, H - K + 1, W - K + 1).
    """
    result: Tensor = _FewChannels.apply(x, weight)
    return result


class _FewChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        height, width, border = *x.shape[2:], weight.shape[-1] - 1
        products = torch.bmm(_taps(weight).expand(len(x), -1, -1), _voxels(x).transpose(1, 2))
        # Moved along one axis and then along the other: torch's own `fold` moves every tap by itself.
        products = products.view(len(x), len(weight), border + 1, border + 1, height, width)
        along_rows = _moved_sum(products, 3, 5)
        return _moved_sum(along_rows, 2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        border = weight.shape[-1] - 1
        seen = F.unfold(F.pad(gradient, [border] * 4), border + 1)  # (B, O K K, voxels)
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_voxels = torch.bmm(seen.transpose(1, 2), _taps(weight).expand(len(x), -1, -1))
            to_x = to_voxels.view(len(x), *x.shape[2:], -1).movedim(-1, 1)
        if ctx.needs_input_grad[1]:
            to_taps = torch.bmm(seen, _voxels(x)).sum(0).view(len(weight), *weight.shape[2:], -1)
            to_weight = to_taps.movedim(-1, 1).flip(2, 3)
        return to_x, to_weight


def _moved_sum(products: Tensor, taps: int, axis: int) -> Tensor:
    """The sum over an axis of taps, the last tap first, each where an output finds it along a spatial axis.

    Outputs are as many as have all their taps. The taps' axis is gone.
    """
    count = products.shape[taps]
    outputs = products.shape[axis] - count + 1
    last_first = [products.select(taps, count - 1 - tap).narrow(axis - 1, tap, outputs) for tap in range(count)]
    total = last_first[0].clone()
    for moved in last_first[1:]:
        total.add_(moved)
    return total


def _taps(weight: Tensor) -> Tensor:
    """(O, C, K, K) to (O K K, C), the last tap first, as `_moved_sum` takes them."""
    return weight.flip(2, 3).permute(0, 2, 3, 1).reshape(-1, weight.shape[1])


def _voxels(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, voxels, C)."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])
