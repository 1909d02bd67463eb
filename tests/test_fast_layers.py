"""Layers computed in ways of our own: the same numbers as the plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcyclegan.inference.statistics import SharedNormNetwork
from medcyclegan.networks.blocks import ResidualBlock, TanhHead, Upsample, conv_norm_act
from medcyclegan.networks.cpu import accelerate, winograd
from medcyclegan.networks.cpu.acceleration import (
    MANY_CHANNELS,
    DoublingConvolution2d,
    DoublingConvolution3d,
    WinogradConvolution,
)
from medcyclegan.networks.cpu.instance_norm import InstanceNorm2d, InstanceNorm3d
from medcyclegan.networks.cpu.winograd import doubled_convolution, reflected_convolution


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def reflecting(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode="reflect", bias=False)


def wide_convolution() -> nn.Module:
    return reflecting(MANY_CHANNELS, MANY_CHANNELS)


def same_with_gradients(found: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(expected.detach())
    pairs = (torch.autograd.grad((image * weights).sum(), inputs) for image in (found, expected))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 2, 1, 3), (1, 2, 3, 4, 2)])
def test_doubling_and_convolving_is_one_step(shape: tuple[int, ...]) -> None:
    dims = len(shape) - 2
    x, weight = values(*shape), values(4, shape[1], *[3] * dims, seed=1)
    convolve = F.conv2d if dims == 2 else F.conv3d
    doubled = F.interpolate(x, scale_factor=2, mode="nearest")
    expected = convolve(F.pad(doubled, [1, 1] * dims, mode="reflect"), weight)
    same_with_gradients(doubled_convolution(x, weight), expected, x, weight)


@pytest.mark.parametrize("slab", [2**23, 1])  # all at once, and a group at a time
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 6, 4), (1, 2, 5, 7), (2, 2, 2, 3), (1, 2, 3, 4, 2), (2, 3, 8, 12), (1, 2, 9, 11), (1, 2, 8, 9, 10)],
)
def test_fewer_multiplications_make_the_same_convolution(
    shape: tuple[int, ...], slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "SLAB_BYTES", slab)
    dims = len(shape) - 2
    x, weight = values(*shape), values(4, shape[1], *[3] * dims, seed=1)
    convolve = F.conv2d if dims == 2 else F.conv3d
    expected = convolve(F.pad(x, [1, 1] * dims, mode="reflect"), weight)
    same_with_gradients(reflected_convolution(x, weight), expected, x, weight)


@pytest.mark.parametrize("convolution", [reflected_convolution, doubled_convolution])
def test_fewer_multiplications_know_which_gradients_are_wanted(convolution: Callable[..., Tensor]) -> None:
    x, weight = values(1, 2, 4, 4), values(2, 2, 3, 3, seed=1)
    both = torch.autograd.grad(convolution(x, weight).square().sum(), (x, weight))
    (to_x,) = torch.autograd.grad(convolution(x, weight.detach()).square().sum(), x)
    (to_weight,) = torch.autograd.grad(convolution(x.detach(), weight).square().sum(), weight)
    assert torch.equal(to_x, both[0])
    assert torch.equal(to_weight, both[1])


@pytest.mark.parametrize("last", [False, True])
def test_gradients_of_weights_lie_in_memory_as_the_weights_do(last: bool) -> None:
    x, weight = values(1, 2, 4, 4), values(3, 2, 3, 3, seed=1)
    if last:
        weight = weight.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(reflected_convolution(x, weight).sum(), weight)
    assert gradient.stride() == weight.stride()  # fused optimizers go through memory


@pytest.mark.parametrize("convolution", [reflected_convolution, doubled_convolution])
def test_float32_keeps_five_digits(convolution: Callable[..., Tensor]) -> None:
    x, weight = (
        tensor.detach()
        for tensor in (values(1, MANY_CHANNELS, 16, 16), values(MANY_CHANNELS, MANY_CHANNELS, 3, 3, seed=1))
    )
    exact = convolution(x, weight)
    assert float((convolution(x.float(), weight.float()) - exact).norm() / exact.norm()) < 5e-6


def test_memory_of_an_inference_serves_a_training_after_it() -> None:
    x, weight = values(1, 2, 8, 8), values(2, 2, 3, 3, seed=1)
    with torch.inference_mode():
        before = reflected_convolution(x, weight)
    after = reflected_convolution(x, weight)
    after.sum().backward()
    reflected_convolution(2 * x, weight)  # into the same memory
    assert torch.equal(before, after.detach())


def test_rounding_to_bfloat16_costs_less_than_a_percent_of_a_convolution() -> None:
    layer = wide_convolution()
    accelerate(layer)
    x = torch.randn(1, MANY_CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
        exact = F.conv2d(F.pad(x, [1] * 4, mode="reflect").double(), layer.weight.double())
    assert rounded.dtype == torch.bfloat16
    assert rounded.is_contiguous(memory_format=torch.channels_last)
    assert float((rounded - exact).norm() / exact.norm()) < 0.01


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (lambda: Upsample(2, 4, 3, "resize"), DoublingConvolution2d),
        (lambda: Upsample(3, 4, 3, "resize"), DoublingConvolution3d),
        (lambda: nn.Sequential(nn.Upsample(scale_factor=2), reflecting(4, 3)), DoublingConvolution2d),
        (lambda: nn.Sequential(nn.Conv2d(4, MANY_CHANNELS, 1), wide_convolution()), WinogradConvolution),
        (lambda: conv_norm_act(2, 4, 4, kernel=3, relu=False), InstanceNorm2d),
        (lambda: conv_norm_act(3, 4, 4, kernel=3, relu=False), InstanceNorm3d),
    ],
    ids=["up", "up 3D", "up and convolution", "wide", "norm", "norm 3D"],
)
def test_accelerated_layers_give_the_same_with_the_same_weights(
    layer: Callable[[], nn.Module], kind: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    plain = layer()
    fast = copy.deepcopy(plain)
    names = list(plain.state_dict())
    accelerate(fast)
    assert any(type(module) is kind for module in fast.modules())
    assert list(fast.state_dict()) == names and all(map(torch.equal, fast.parameters(), plain.parameters()))
    dims = 3 if "3d" in kind.__name__ else 2
    x = torch.randn(1, 4, *[8, 10, 6][:dims], generator=torch.Generator().manual_seed(0))
    expected = plain(x)
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
    accelerate(fast)  # again: nothing more
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        reflecting(4, 4),  # few channels
        nn.Conv2d(MANY_CHANNELS, MANY_CHANNELS, 3, padding=1),  # padded by zeros
        nn.Conv2d(MANY_CHANNELS, MANY_CHANNELS, 3, padding=1, padding_mode="reflect", groups=2, bias=False),
        nn.Conv2d(MANY_CHANNELS, MANY_CHANNELS, 3, padding=2, dilation=2, padding_mode="reflect", bias=False),
        nn.Conv2d(MANY_CHANNELS, MANY_CHANNELS, 3, stride=2, padding=1, padding_mode="reflect", bias=False),
        TanhHead(2, 4, 1, kernel=7),
        nn.InstanceNorm2d(4, affine=True),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), reflecting(4, 4)),
        nn.Sequential(nn.Upsample(scale_factor=3), reflecting(4, 4)),
    ],
)
def test_what_no_rule_fits_stays_plain(layer: nn.Module) -> None:
    before = [type(module) for module in layer.modules()]
    accelerate(layer)
    assert [type(module) for module in layer.modules()] == before


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("last", [False, True])
def test_instance_norm_equals_its_formula_in_both_formats(dims: int, last: bool) -> None:
    x = values(2, 3, *[4] * dims)
    form = (torch.channels_last if dims == 2 else torch.channels_last_3d) if last else torch.contiguous_format
    given = x.contiguous(memory_format=form)
    axes = tuple(range(2, 2 + dims))
    mean = x.mean(axes, keepdim=True)
    expected = (x - mean) / (((x - mean) ** 2).mean(axes, keepdim=True) + 1e-5).sqrt()
    norm = InstanceNorm2d(3) if dims == 2 else InstanceNorm3d(3)
    found = norm(given)
    assert found.is_contiguous(memory_format=form)
    same_with_gradients(found, expected, x)


@pytest.mark.parametrize("last", [False, True])
def test_instance_norm_of_bfloat16_has_float32_statistics(last: bool) -> None:
    x = (torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)) + 30).bfloat16()
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    exact = F.instance_norm(x.double())
    found = InstanceNorm2d(4)(x)
    assert found.dtype == torch.bfloat16
    # Half a unit in the last of 8 bits; statistics in bfloat16 are off by 0.07 of a standard deviation.
    assert bool(((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-3).all())


def test_channels_last_changes_no_value() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv3d(2, 3, 3), nn.Linear(2, 2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    accelerate(network)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("dims", [2, 3])
def test_an_image_of_one_channel_is_answered_with_channels_last(dims: int) -> None:
    # With one channel both formats look alike, and a first layer that answers in the other slows down all that follow.
    first = (nn.Conv2d if dims == 2 else nn.Conv3d)(1, 16, 7)
    accelerate(first)
    form = torch.channels_last if dims == 2 else torch.channels_last_3d
    assert first(torch.zeros(1, 1, *[24] * dims)).is_contiguous(memory_format=form)


@pytest.mark.parametrize(("dims", "mode"), [(2, "resize"), (2, "transposed"), (3, "resize")])
def test_upsampling_is_not_rounded_where_only_the_result_is_wanted(dims: int, mode: str) -> None:
    x, layer = values(1, 4, *[6] * dims).float(), Upsample(dims, 4, 2, mode)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16  # in a training
        with torch.inference_mode():
            found = layer(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)


def test_what_residual_blocks_add_to_is_not_rounded_where_only_the_result_is_wanted() -> None:
    x, block = values(1, 4, 6, 6).float(), ResidualBlock(2, 4)
    for convolution in (block.body[0][0], block.body[1][0]):
        nn.init.zeros_(convolution.weight)  # so that nothing is added
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert torch.equal(block(x), x)
        assert block(x.bfloat16()).dtype == torch.float32
        assert torch.equal(block.double()(x.double()), x.double())


def test_kernels_are_made_once_for_a_volume_and_anew_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    make = winograd._kernels
    monkeypatch.setattr(winograd, "_kernels", lambda *arguments: made.append(arguments) or make(*arguments))
    norm = nn.InstanceNorm2d(MANY_CHANNELS)
    network = nn.Sequential(wide_convolution(), norm, Upsample(2, MANY_CHANNELS, 3, "resize"))
    accelerate(network)
    x = values(1, MANY_CHANNELS, 5, 6).float()
    for factor in (1, 2, 3):
        network[0].weight.data.mul_(factor)  # unseen by torch's counters
        made.clear()
        with torch.inference_mode():
            expected = network(x)
            assert len(made) == 2
            volume = SharedNormNetwork(network)
            for _ in range(3):
                assert torch.equal(volume(x), expected)
        assert len(made) == 4
        volume(x.requires_grad_()).sum().backward()  # nothing kept is of an inference
        assert len(made) == 6
        assert network[0].kernels is None
