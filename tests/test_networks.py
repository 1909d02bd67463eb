"""Contracts that every registered generator and discriminator joins by being registered."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from medcyclegan.networks.blocks import ResidualBlock, crop_to, pad_to_multiple
from medcyclegan.networks.discriminators.patchgan import PatchGAN
from medcyclegan.networks.generators.resnet import ResNetGenerator
from medcyclegan.registry import DISCRIMINATORS, GENERATORS

SMALL: dict[str, dict[str, Any]] = {"resnet": {"filters": 4, "blocks": 1}, "patchgan": {"filters": 4, "layers": 2}}
SIZES = {2: (37, 50), 3: (18, 21, 16)}


def make(registry: Any, name: str, spatial_dims: int) -> nn.Module:
    torch.manual_seed(0)
    extra = {"out_channels": 1} if registry is GENERATORS else {}
    return registry.build({"_target_": name, **SMALL.get(name, {})}, in_channels=1, spatial_dims=spatial_dims, **extra)


NETWORKS = [
    pytest.param(registry, name, dims, id=f"{name}-{dims}d")
    for registry in (GENERATORS, DISCRIMINATORS)
    for name in registry.parts()
    for dims in (2, 3)
]


@pytest.mark.parametrize(("registry", "name", "dims"), NETWORKS)
class TestNetworkContract:
    def test_every_parameter_learns(self, registry: Any, name: str, dims: int) -> None:
        network = make(registry, name, dims)
        network(torch.randn(2, 1, *SIZES[dims])).square().mean().backward()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, key

    def test_generator_keeps_shape_and_range(self, registry: Any, name: str, dims: int) -> None:
        if registry is not GENERATORS:
            return
        output = make(registry, name, dims)(10 * torch.randn(2, 1, *SIZES[dims]))
        assert output.shape == (2, 1, *SIZES[dims])
        assert output.abs().max() <= 1

    def test_images_of_a_batch_do_not_touch(self, registry: Any, name: str, dims: int) -> None:
        network, batch = make(registry, name, dims), torch.randn(2, 1, *SIZES[dims])
        torch.testing.assert_close(network(batch)[:1], network(batch[:1]), atol=1e-5, rtol=1e-4)

    def test_same_seed_same_weights_and_state_round_trip(self, registry: Any, name: str, dims: int) -> None:
        network, again = make(registry, name, dims), make(registry, name, dims)
        for (key, a), (_, b) in zip(network.state_dict().items(), again.state_dict().items(), strict=True):
            assert torch.equal(a, b), key
        torch.manual_seed(1)
        for parameter in again.parameters():
            nn.init.normal_(parameter)
        again.load_state_dict(network.state_dict())
        image = torch.randn(1, 1, *SIZES[dims])
        assert torch.equal(network(image), again(image))

    def test_bf16_stays_near_float32(self, registry: Any, name: str, dims: int) -> None:
        network, image = make(registry, name, dims), torch.randn(1, 1, *SIZES[dims])
        with torch.autocast("cpu", torch.bfloat16):
            half = network(image)
        full = network(image)
        assert (half.float() - full).abs().mean() < 0.05 * full.abs().mean() + 1e-3


def test_parameter_counts_of_the_paper() -> None:
    """The reference has 11.378 M and 2.765 M with 3 channels; it counts biases that instance norm cancels."""
    count = lambda network: sum(p.numel() for p in network.parameters())  # noqa: E731
    idle_in_generator = 64 + 128 + 256 + 18 * 256 + 128 + 64
    assert count(ResNetGenerator(3, 3)) + idle_in_generator == 11_378_179
    idle_in_discriminator = 128 + 256 + 512
    assert count(PatchGAN(3)) + idle_in_discriminator == 2_764_737


def test_patchgan_sees_70_voxels_measured_by_gradient() -> None:
    network = PatchGAN()
    for module in network.modules():  # the norm mixes all voxels; without it the gradient shows the convolutions alone
        if isinstance(module, nn.Sequential):
            for i, layer in enumerate(module):
                if isinstance(layer, nn.InstanceNorm2d):
                    module[i] = nn.Identity()
    image = torch.randn(1, 1, 256, 256, requires_grad=True)
    logits = network(image)
    assert logits.shape == (1, 1, 30, 30)
    logits[0, 0, 15, 15].backward()
    assert image.grad is not None
    rows, columns = torch.nonzero(image.grad[0, 0], as_tuple=True)
    assert int(rows.max() - rows.min()) + 1 == 70
    assert int(columns.max() - columns.min()) + 1 == 70


def test_resize_upsampling_has_no_checkerboard_and_transposed_has() -> None:
    """A constant input through positive kernels shows how many taps make each voxel."""

    def ripple(upsampling: str) -> float:
        network = ResNetGenerator(filters=4, blocks=1, upsampling=upsampling)
        up = network.layers[-2]
        for module in up.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.ones_(module.weight)
        layers = [m for m in up.modules() if isinstance(m, nn.Upsample | nn.Conv2d | nn.ConvTranspose2d)]
        inner = nn.Sequential(*layers)(torch.ones(1, 8, 12, 12))[0, 0, 6:-6, 6:-6]
        return float((inner.std() / inner.mean()).detach())

    assert ripple("resize") < 1e-6
    assert ripple("transposed") > 0.2


def test_no_bias_before_a_norm() -> None:
    for block in (ResidualBlock(2, 4), ResNetGenerator(filters=4, blocks=1), PatchGAN(filters=4)):
        layers = list(block.modules())
        for layer, following in pairwise(layers):
            if isinstance(following, nn.InstanceNorm2d) and isinstance(layer, nn.Conv2d):
                assert layer.bias is None


def test_padding_and_cropping_undo_each_other() -> None:
    image = torch.randn(1, 1, 17, 22)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (1, 1, 20, 24)
    assert torch.equal(padded[..., 17:, :22], image[..., 16:17, :].expand(-1, -1, 3, -1))
    assert torch.equal(crop_to(padded, image.shape[2:]), image)


@pytest.mark.parametrize("arguments", [{"spatial_dims": 4}, {"filters": 0}, {"blocks": 0}, {"upsampling": "cubic"}])
def test_generator_refuses_nonsense(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(arguments)):
        ResNetGenerator(**arguments)
