"""Objectives: the laws of the mathematics, with networks simple enough to work by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medcyclegan.training.objectives.cyclegan import CycleGAN


class Affine(nn.Module):
    """x -> scale x + shift, both learned."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


def networks(**given: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({name: Affine() for name in ("gen_ab", "gen_ba", "disc_a", "disc_b")} | given)


def batch() -> dict[str, Tensor]:
    return {"a": torch.tensor([[[[0.5, -0.5]]]]), "b": torch.tensor([[[[0.2, 0.6]]]])}


def test_identity_networks_have_no_cycle_and_no_identity_loss() -> None:
    losses, images = CycleGAN(networks()).generator_losses(batch())
    for name in ("cycle_a", "cycle_b", "identity_a", "identity_b"):
        assert losses[name].item() == 0, name
    assert torch.equal(images["fake_b"], batch()["a"])


def test_losses_equal_the_formula() -> None:
    # gen_ab(x) = 2 x, gen_ba(x) = x + 0.1; disc(x) = x
    objective = CycleGAN(networks(gen_ab=Affine(2.0), gen_ba=Affine(1.0, 0.1)), cycle_weight=10, identity_weight=0.5)
    losses, images = objective.generator_losses(batch())
    expected = {
        "cycle_a": 10 * (abs(2 * 0.5 + 0.1 - 0.5) + abs(2 * -0.5 + 0.1 + 0.5)) / 2,
        "cycle_b": 10 * (abs(2 * (0.2 + 0.1) - 0.2) + abs(2 * (0.6 + 0.1) - 0.6)) / 2,
        "identity_a": 5 * 0.1,
        "identity_b": 5 * (0.2 + 0.6) / 2,
        "adversarial_ab": ((1.0 - 1) ** 2 + (-1.0 - 1) ** 2) / 2,
        "adversarial_ba": ((0.3 - 1) ** 2 + (0.7 - 1) ** 2) / 2,
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, abs=1e-6), name
    found = objective.discriminator_losses(batch(), images)
    # disc_b judges real b against gen_ab(a) = (1, -1), disc_a judges real a against gen_ba(b) = (0.3, 0.7)
    real_b, fake_b = ((0.2 - 1) ** 2 + (0.6 - 1) ** 2) / 2, (1.0 + 1.0) / 2
    real_a, fake_a = ((0.5 - 1) ** 2 + (-0.5 - 1) ** 2) / 2, (0.3**2 + 0.7**2) / 2
    assert found["discriminator_b"].item() == pytest.approx((real_b + fake_b) / 2, abs=1e-6)
    assert found["discriminator_a"].item() == pytest.approx((real_a + fake_a) / 2, abs=1e-6)


def test_without_identity_the_term_is_gone_and_the_rest_unchanged() -> None:
    nets = networks(gen_ab=Affine(2.0), gen_ba=Affine(1.0, 0.1))
    with_identity, _ = CycleGAN(nets).generator_losses(batch())
    without, _ = CycleGAN(nets, identity_weight=0).generator_losses(batch())
    assert set(with_identity) - set(without) == {"identity_a", "identity_b"}
    for name, value in without.items():
        assert value == with_identity[name]


def test_discriminator_losses_leave_the_generators_alone() -> None:
    objective = CycleGAN(networks())
    _, images = objective.generator_losses(batch())
    sum(objective.discriminator_losses(batch(), images).values()).backward()  # type: ignore[union-attr]
    for name in objective.generators:
        assert all(p.grad is None for p in objective.networks[name].parameters()), name
    for name in objective.discriminators:
        assert all(p.grad is not None for p in objective.networks[name].parameters()), name


def test_discriminators_are_fed_from_the_pool() -> None:
    objective = CycleGAN(networks(), pool_size=3)
    for _ in range(5):
        _, images = objective.generator_losses(batch())
        objective.discriminator_losses(batch(), images)
    assert [len(pool.images) for pool in objective.pools.values()] == [3, 3]


def test_negative_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        CycleGAN(networks(), cycle_weight=-1)
