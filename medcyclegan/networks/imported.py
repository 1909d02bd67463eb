"""Generators of pytorch-CycleGAN-and-pix2pix (Zhu et al. 2017, Isola et al. 2017) with the weights trained there.

That program, *the reference*, sees slices as pictures: rows run downwards, columns to the right, grey values 0 to 255
stand for [-1, 1], and there may be three equal color channels. Here a slice has the axes (right, anterior) and one
channel. `ImportedGenerator` turns one into the other around the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from medcyclegan.networks.generators.resnet import ResNetGenerator
from medcyclegan.networks.generators.unet import UNetGenerator

BLOCKS = {"resnet_9blocks": 9, "resnet_6blocks": 6}
DEPTHS = {"unet_256": 8, "unet_128": 7}
ARCHITECTURES = (*BLOCKS, *DEPTHS)
# Directions in which rows (first) and columns (second) of a picture of an axial slice can run.
ORIENTATIONS = ("PL", "PR", "AL", "AR", "LP", "RP", "LA", "RA")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class ImportedGenerator(nn.Module):
    """A network of the reference on slices as they are here.

    With three channels the network gets the slice in each of them, and the mean of the channels that it gives is the
    result: exactly what the reference makes of a grey picture and averages.

    Args:
        in_channels: 1.
        out_channels: 1.
        spatial_dims: 2.
        architecture: as the reference calls it: resnet_9blocks, resnet_6blocks, unet_256 or unet_128.
        filters: the reference's `ngf`.
        source_channels: the reference's `input_nc`, 1 or 3.
        target_channels: the reference's `output_nc`, 1 or 3.
        orientation: the directions in which rows and columns of the reference's pictures run: "PL" means downwards to
            posterior and rightwards to the patient's left, as radiological viewers show axial slices.

    Shape: (B, 1, X, Y) with X to the right and Y to anterior, to the same, both in [-1, 1].
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        spatial_dims: int = 2,
        architecture: str = "resnet_9blocks",
        filters: int = 64,
        source_channels: int = 1,
        target_channels: int = 1,
        orientation: str = "PL",
    ) -> None:
        super().__init__()
        if (in_channels, out_channels, spatial_dims) != (1, 1, 2):
            raise ValueError(
                "an imported generator takes single axial slices: 1 channel in, 1 out, 2 dimensions; got "
                f"{in_channels}, {out_channels} and {spatial_dims}"
            )
        if {source_channels, target_channels} - {1, 3}:
            raise ValueError(f"channels are 1 or 3, got {source_channels} in and {target_channels} out")
        if orientation not in ORIENTATIONS:
            raise ValueError(f"orientation is one of {', '.join(ORIENTATIONS)}, got {orientation!r}")
        self.source_channels = source_channels
        self.orientation = orientation
        if architecture in BLOCKS:
            self.network: nn.Module = ResNetGenerator(
                source_channels,
                target_channels,
                filters=filters,
                blocks=BLOCKS[architecture],
                upsampling="transposed",
            )
        elif architecture in DEPTHS:
            self.network = UNetGenerator(
                source_channels, target_channels, filters=filters, depth=DEPTHS[architecture], upsampling="transposed"
            )
        else:
            raise ValueError(f"architecture is one of {', '.join(ARCHITECTURES)}, got {architecture!r}")

    def forward(self, x: Tensor) -> Tensor:
        picture = to_picture(x, self.orientation).expand(-1, self.source_channels, -1, -1)
        return from_picture(self.network(picture).mean(1, keepdim=True), self.orientation)


def to_picture(x: Tensor, orientation: str) -> Tensor:
    """(B, C, X, Y), to the right and to anterior, as (B, C, rows, columns)."""
    transposed = orientation[0] in "AP"
    return (x.transpose(2, 3) if transposed else x).flip(_backwards(orientation))


def from_picture(x: Tensor, orientation: str) -> Tensor:
    """The inverse of `to_picture`."""
    upright = x.flip(_backwards(orientation))
    return upright.transpose(2, 3) if orientation[0] in "AP" else upright


def _backwards(orientation: str) -> list[int]:
    """Axes of the picture that run to the left or to posterior."""
    return [axis for axis, direction in enumerate(orientation, start=2) if direction in "LP"]


def translate_state(state: Mapping[str, Any], architecture: str) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The weights of one of the reference's generators under the names that they have here.

    The reference has biases before its instance norms, which subtract them again; they are left out. So are the unused
    running statistics of instance norms that old versions of PyTorch saved, as the reference does itself.

    Args:
        state: name -> tensor, as in `latest_net_G_A.pth`.
        architecture: one of `ARCHITECTURES`.

    Returns:
        The state dict of an `ImportedGenerator`, and its arguments filters, source_channels and target_channels.

    Raises:
        ValueError: the weights are of another architecture or have batch norm.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}  # left by DataParallel
    if any(isinstance(v, Tensor) and v.dim() == 1 and key.endswith("weight") for key, v in state.items()):
        raise ValueError("has batch norm (or an instance norm with parameters); only networks with plain instance norm")
    state = {key: value for key, value in state.items() if not key.endswith(STATISTICS)}
    names = _names_of_resnet(architecture, state) if architecture in BLOCKS else _names_of_unet(DEPTHS[architecture])
    missing = [name for name in names.values() if name not in state]
    idle = {name.removesuffix("weight") + "bias" for name in names.values()}
    unknown = [key for key in state if key not in names.values() and key not in idle]
    if missing or unknown:
        shown = [f"without {name}" for name in missing[:2]] + [f"with {key}" for key in unknown[:2]]
        raise ValueError(
            f"is not a {architecture}: {', '.join(shown)} ({len(missing)} missing, {len(unknown)} unknown)"
        )
    first, *_ = names.values()
    last = list(names.values())[-1]
    filters, source_channels = state[first].shape[:2]
    settings = {"filters": filters, "source_channels": source_channels, "target_channels": len(state[last])}
    translated = {ours: state[theirs].float() for ours, theirs in names.items()}
    wanted = ImportedGenerator(architecture=architecture, **settings).state_dict()
    for ours, theirs in names.items():
        if translated[ours].shape != wanted[ours].shape:
            raise ValueError(
                f"is not a {architecture} of {filters} filters: {theirs} has the shape "
                f"{tuple(translated[ours].shape)} instead of {tuple(wanted[ours].shape)}"
            )
    return translated, settings


def _names_of_resnet(architecture: str, state: Mapping[str, Any]) -> dict[str, str]:
    """Our name -> the reference's. Its `model` counts paddings, norms and activations too."""
    blocks = BLOCKS[architecture]
    names = {f"layers.{i}.0.weight": f"model.{1 + 3 * i}.weight" for i in range(3)}
    second = 6 if "model.10.conv_block.6.weight" in state else 5  # a dropout layer lies between
    for i in range(blocks):
        names[f"layers.{3 + i}.body.0.0.weight"] = f"model.{10 + i}.conv_block.1.weight"
        names[f"layers.{3 + i}.body.1.0.weight"] = f"model.{10 + i}.conv_block.{second}.weight"
    for i in range(2):
        names[f"layers.{3 + blocks + i}.0.weight"] = f"model.{10 + blocks + 3 * i}.weight"
    for kind in ("weight", "bias"):
        names[f"layers.{5 + blocks}.conv.{kind}"] = f"model.{17 + blocks}.{kind}"
    return {f"network.{ours}": theirs for ours, theirs in names.items()}


def _names_of_unet(depth: int) -> dict[str, str]:
    """Our name -> the reference's. There every level is a block within the block of the level above."""
    levels = ["model.model", *("model.model.1.model" + ".3.model" * i for i in range(depth - 1))]
    names = {f"downs.0.{kind}": f"{levels[0]}.0.{kind}" for kind in ("weight", "bias")}
    names |= {f"downs.{i}.1.weight": f"{levels[i]}.1.weight" for i in range(1, depth)}
    names[f"downs.{depth - 1}.1.bias"] = f"{levels[-1]}.1.bias"
    names["ups.0.1.weight"] = f"{levels[-1]}.3.weight"
    names |= {f"ups.{depth - 1 - i}.1.weight": f"{levels[i]}.5.weight" for i in reversed(range(1, depth - 1))}
    names |= {f"head.1.conv.{kind}": f"{levels[0]}.3.{kind}" for kind in ("weight", "bias")}
    return {f"network.{ours}": theirs for ours, theirs in names.items()}
