"""Shared instance-norm statistics: those of one instance norm over all windows, and nothing else changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medcyclegan.inference.statistics import SharedNormNetwork, check_statistics
from medcyclegan.networks.generators.resnet import ResNetGenerator


def windows(count: int, seed: int = 0) -> torch.Tensor:
    random = np.random.default_rng(seed)
    loc = random.normal(size=(count, 3, 1, 1))
    return torch.from_numpy((random.normal(size=(count, 3, 6, 5)) + loc).astype(np.float32))


@pytest.mark.parametrize("affine", [False, True])
def test_volume_statistics_are_those_of_one_norm_over_everything(affine: bool) -> None:
    norm = nn.InstanceNorm2d(3, affine=affine)
    if affine:
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([1.0, 2.0, -0.5]))
            norm.bias.copy_(torch.tensor([0.0, 1.0, 3.0]))
    x = windows(7)
    shared = SharedNormNetwork(norm)
    for part in (slice(0, 4), slice(4, 7)):  # in two batches, as a volume is
        shared.gather(list(range(7))[part])
        shared(x[part])
    shared.freeze([0, 1, 2, 3, 4, 5, 6], "volume")
    values = x.double().numpy()
    expected = (values - values.mean((0, 2, 3), keepdims=True)) / np.sqrt(values.var((0, 2, 3), keepdims=True) + 1e-5)
    if affine:
        expected = expected * np.array([1.0, 2.0, -0.5])[:, None, None] + np.array([0.0, 1.0, 3.0])[:, None, None]
    np.testing.assert_allclose(shared(x).detach().numpy(), expected, atol=1e-5)


def test_neighbors_are_weighted_by_their_distance() -> None:
    x = windows(3)
    shared = SharedNormNetwork(nn.InstanceNorm2d(3))
    shared.gather([0, 1, 2])
    shared(x)
    shared.freeze([1], "neighbors")
    weights = np.exp(-0.5 * (np.array([-1, 0, 1]) / 1.5) ** 2)
    weights /= weights.sum()
    values = x.double().numpy()
    mean = np.einsum("b,bc->c", weights, values.mean((2, 3)))
    square = np.einsum("b,bc->c", weights, (values**2).mean((2, 3)))
    expected = (values[1] - mean[:, None, None]) / np.sqrt(square - mean**2 + 1e-5)[:, None, None]
    np.testing.assert_allclose(shared(x[1:2])[0].numpy(), expected, atol=1e-5)


def test_far_from_everything_gathered_the_nearest_counts_alone() -> None:
    x = windows(2)
    shared = SharedNormNetwork(nn.InstanceNorm2d(3))
    shared.gather([0, 1])
    shared(x)
    shared.freeze([500], "neighbors")
    assert torch.allclose(shared(x[1:]), nn.InstanceNorm2d(3)(x[1:]), atol=1e-5)


def test_slices_that_are_alike_come_out_as_with_their_own_statistics() -> None:
    torch.manual_seed(0)
    generator = ResNetGenerator(filters=4, blocks=1).eval()
    x = torch.rand(1, 1, 32, 32).expand(4, -1, -1, -1) * 2 - 1
    shared = SharedNormNetwork(generator)
    shared.gather([0, 1, 2, 3])
    own = shared(x)
    assert torch.equal(own, generator(x))
    for statistics in ("neighbors", "volume"):
        shared.freeze([0, 1, 2, 3], statistics)  # type: ignore[arg-type]
        assert torch.allclose(shared(x), own, atol=1e-4)
    shared.free()
    assert torch.equal(shared(x), own)


def test_the_network_is_left_alone_and_its_weights_are_shared() -> None:
    generator = ResNetGenerator(filters=4, blocks=1)
    before = [type(module) for module in generator.modules()]
    shared = SharedNormNetwork(generator)
    assert [type(module) for module in generator.modules()] == before
    assert {id(p) for p in shared.parameters()} == {id(p) for p in generator.parameters()}
    assert shared.gathers and not SharedNormNetwork(nn.Conv2d(1, 1, 3)).gathers
    assert not SharedNormNetwork(nn.InstanceNorm2d(2, track_running_stats=True)).gathers


def test_what_a_failed_call_gathered_is_forgotten() -> None:
    x = windows(4)
    shared, clean = (SharedNormNetwork(nn.Sequential(nn.InstanceNorm2d(3), nn.InstanceNorm2d(3))) for _ in range(2))
    for network in (shared, clean):
        network.gather([0, 1])
        network(x[:2])
    shared.gather([2, 3])
    shared.norms[0](x[2:])  # the first layer saw it, the second did not
    shared.forget_after(2)
    for network in (shared, clean):
        network.freeze([0], "volume")
    assert torch.equal(shared(x), clean(x))


def test_unknown_words_and_a_freeze_before_a_gather_are_refused() -> None:
    with pytest.raises(ValueError, match="window, neighbors, volume"):
        check_statistics("slice")
    with pytest.raises(ValueError, match="none were gathered"):
        SharedNormNetwork(nn.InstanceNorm2d(1)).freeze([0], "volume")
