"""Adapters for networks from elsewhere, such as MONAI's.

A generator here gives [-1, 1] and takes any size. MONAI's networks, and most others, end in a plain convolution and
take only some sizes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medcyclegan.networks.blocks import crop_to, pad_to_halve

MULTIPLE = 32  # most networks halve at most five times
PROBE = (64, 32, 32)  # voxels of the image that a generator is shown
# Operations that only rearrange values, by the start of their name in the autograd graph.
REARRANGING = ("Slice", "View", "Narrow", "Reshape", "UnsafeView", "Clone", "Alias", "Permute", "Transpose", "Squeeze")
BOUNDING = ("Sigmoid", "Softmax", "Relu", "Hardtanh", "Clamp")


def adapt_generator(network: nn.Module, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Wrap a network that may not keep the contract as a generator that does.

    The network is shown one small image, so that what does not fit is reported before a training starts.

    Args:
        network: (B, in_channels, *spatial) to (B, out_channels, *spatial), for axes that are multiples of 32, one of
            them at least 64. Its values are unbounded, or end in a tanh.
        in_channels: channels of the source image.
        out_channels: channels of the translated image.
        spatial_dims: 2 or 3.

    Raises:
        TypeError: it is no `nn.Module`, or does not give a tensor.
        ValueError: it cannot take such images, its output has another shape, or is bounded otherwise than by a tanh.
    """
    _require_module(network)
    training = network.training
    shape = PROBE[:spatial_dims]
    image = torch.linspace(-1, 1, in_channels * math.prod(shape)).view(1, in_channels, *shape)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            output = network.eval()(image)
    except RuntimeError as error:
        raise ValueError(f"it cannot take an image of {tuple(image.shape)}: {error}") from error
    network.train(training)
    if not isinstance(output, Tensor):
        raise TypeError(f"a generator gives one tensor, this gives a {type(output).__name__}")
    if output.shape != (1, out_channels, *shape):
        raise ValueError(
            f"a generator keeps the size: for (1, {in_channels}, {', '.join(map(str, shape))}) it is to give "
            f"{out_channels} channels of the same size, but gives {tuple(output.shape)}"
        )
    ends_in = _last_operation(output)
    if ends_in.startswith(BOUNDING):
        raise ValueError(f"a generator's values are unbounded or end in a tanh; this ends in {ends_in}")
    return ForeignGenerator(network, tanh=not ends_in.startswith("Tanh"))


def adapt_discriminator(network: nn.Module, in_channels: int, spatial_dims: int) -> nn.Module:
    """A discriminator around a network that gives logits, a tuple of them, or a list of features that ends in logits.

    Raises:
        TypeError: it is no `nn.Module`.
    """
    _require_module(network)
    return ForeignDiscriminator(network)


class ForeignGenerator(nn.Module):
    """Padding around a network, and a tanh if it has none.

    All in float32 even under autocast: the last layer of an unknown network cannot be recognized, and
    bfloat16 there would cost several HU.

    Args:
        network: see `adapt_generator`.
        tanh: whether to add one.
    """

    def __init__(self, network: nn.Module, tanh: bool) -> None:
        super().__init__()
        self.network = network
        self.tanh = tanh

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            output = self.network(pad_to_halve(x.float(), MULTIPLE))
            return crop_to(torch.tanh(output) if self.tanh else output, x.shape[2:])


class ForeignDiscriminator(nn.Module):
    """Takes the logits from what a network gives: MONAI's PatchDiscriminator gives a list of features, logits last."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        output = self.network(x)
        if isinstance(output, list):
            output = output[-1]
        if not (isinstance(output, Tensor) or all(isinstance(scale, Tensor) for scale in output)):
            raise TypeError(
                f"{type(self.network).__name__} gives no logits but a {type(output).__name__} of other things"
            )
        return output


def _require_module(network: object) -> None:
    if not isinstance(network, nn.Module):
        raise TypeError(f"a torch.nn.Module is needed, got a {type(network).__name__}")


def _last_operation(output: Tensor) -> str:
    """Name of the operation that made the values, for example "TanhBackward0"; empty for values without a gradient."""
    node = output.grad_fn
    while node is not None and node.name().startswith(REARRANGING):
        node = node.next_functions[0][0]
    return "" if node is None else node.name()
