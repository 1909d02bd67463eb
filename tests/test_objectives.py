"""Objectives: the laws of the mathematics, with networks simple enough to work by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medcyclegan.losses.adversarial import LSGAN, WGANGP, Hinge
from medcyclegan.losses.reconstruction import L2
from medcyclegan.losses.structure import View, mean_inside
from medcyclegan.losses.structure.patch_nce import PatchNCE
from medcyclegan.training.objectives import Images, Losses, Objective, judge
from medcyclegan.training.objectives.cut import CUT
from medcyclegan.training.objectives.cyclegan import CycleGAN
from medcyclegan.training.objectives.pix2pix import Pix2Pix


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


def generator_losses(objective: Objective, batch: Images) -> tuple[Losses, Images]:
    """Of all directions."""
    losses: Losses = {}
    images: Images = {}
    for direction in objective.directions:
        found, made = objective.generator_losses(batch, direction)
        losses, images = losses | found, images | made
    return losses, images


def discriminator_losses(objective: Objective, batch: Images, images: Images) -> Losses:
    losses: Losses = {}
    for direction in objective.directions:
        losses |= objective.discriminator_losses(batch, images, direction)
    return losses


def test_identity_networks_have_no_cycle_and_no_identity_loss() -> None:
    losses, images = generator_losses(CycleGAN(networks()), batch())
    for name in ("cycle_a", "cycle_b", "identity_a", "identity_b"):
        assert losses[name].item() == 0, name
    assert torch.equal(images["fake_b"], batch()["a"])


def test_losses_equal_the_formula() -> None:
    # gen_ab(x) = 2 x, gen_ba(x) = x + 0.1; disc(x) = x
    objective = CycleGAN(networks(gen_ab=Affine(2.0), gen_ba=Affine(1.0, 0.1)), cycle_weight=10, identity_weight=0.5)
    losses, images = generator_losses(objective, batch())
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
    found = discriminator_losses(objective, batch(), images)
    # disc_b judges real b against gen_ab(a) = (1, -1), disc_a judges real a against gen_ba(b) = (0.3, 0.7)
    real_b, fake_b = ((0.2 - 1) ** 2 + (0.6 - 1) ** 2) / 2, (1.0 + 1.0) / 2
    real_a, fake_a = ((0.5 - 1) ** 2 + (-0.5 - 1) ** 2) / 2, (0.3**2 + 0.7**2) / 2
    assert found["discriminator_b"].item() == pytest.approx((real_b + fake_b) / 2, abs=1e-6)
    assert found["discriminator_a"].item() == pytest.approx((real_a + fake_a) / 2, abs=1e-6)


def test_without_identity_the_term_is_gone_and_the_rest_unchanged() -> None:
    nets = networks(gen_ab=Affine(2.0), gen_ba=Affine(1.0, 0.1))
    with_identity, _ = generator_losses(CycleGAN(nets), batch())
    without, _ = generator_losses(CycleGAN(nets, identity_weight=0), batch())
    assert set(with_identity) - set(without) == {"identity_a", "identity_b"}
    for name, value in without.items():
        assert value == with_identity[name]


def test_discriminator_losses_leave_the_generators_alone() -> None:
    objective = CycleGAN(networks())
    _, images = generator_losses(objective, batch())
    sum(discriminator_losses(objective, batch(), images).values()).backward()  # type: ignore[union-attr]
    for name in objective.generators:
        assert all(p.grad is None for p in objective.networks[name].parameters()), name
    for name in objective.discriminators:
        assert all(p.grad is not None for p in objective.networks[name].parameters()), name


def test_discriminators_are_fed_from_the_pool() -> None:
    objective = CycleGAN(networks(), pool_size=3)
    for _ in range(5):
        _, images = generator_losses(objective, batch())
        discriminator_losses(objective, batch(), images)
    assert [len(pool.images) for pool in objective.pools.values()] == [3, 3]


def test_negative_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        CycleGAN(networks(), cycle_weight=-1)


def test_reconstruction_and_adversarial_losses_are_replaceable() -> None:
    nets = networks(gen_ab=Affine(2.0), gen_ba=Affine(1.0, 0.1))
    losses, images = generator_losses(CycleGAN(nets, adversarial=Hinge(), reconstruction=L2()), batch())
    assert losses["identity_a"].item() == pytest.approx(5 * 0.1**2, abs=1e-6)
    assert losses["adversarial_ab"].item() == pytest.approx(-(1.0 - 1.0) / 2, abs=1e-6)  # -mean of 2 a
    found = discriminator_losses(CycleGAN(nets, adversarial=Hinge()), batch(), images)
    # real a 0.5, -0.5 against gen_ba(b) = 0.3, 0.7: relu(1 - D(real)) and relu(1 + D(fake))
    assert found["discriminator_a"].item() == pytest.approx((0.5 + 1.5) / 2 + (1.3 + 1.7) / 2, abs=1e-6)


class PixelCritic(nn.Module):
    """(B, C, 1, 2) to one logit per image with slope 3."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x[:, :1, :, :1]


def test_gradient_penalty_joins_the_discriminator_with_its_weight() -> None:
    nets = networks(disc_a=PixelCritic(), disc_b=PixelCritic())
    objective = CycleGAN(nets, adversarial=WGANGP(penalty_weight=10))
    _, images = generator_losses(objective, batch())
    losses = discriminator_losses(objective, batch(), images)
    assert losses["gradient_penalty_a"].item() == pytest.approx(10 * (3 - 1) ** 2, abs=1e-4)
    assert set(losses) == {"discriminator_a", "gradient_penalty_a", "discriminator_b", "gradient_penalty_b"}


class Distance:
    """A structure loss worked by hand: mean |translated - source| inside the body."""

    weight = 3.0

    def __call__(self, view: View) -> Tensor:
        return mean_inside((view.translated - view.source).abs(), view.body)


def test_structure_losses_see_both_directions_and_get_their_weight() -> None:
    nets = networks(gen_ab=Affine(2.0), gen_ba=Affine(1.0, 0.1))
    bodies = {"body_a": torch.tensor([[[[True, False]]]]), "body_b": torch.tensor([[[[True, True]]]])}
    losses, _ = generator_losses(CycleGAN(nets, structure={"distance": Distance()}), batch() | bodies)
    assert losses["distance_ab"].item() == pytest.approx(3 * 0.5, abs=1e-6)  # |2 * 0.5 - 0.5|
    assert losses["distance_ba"].item() == pytest.approx(3 * 0.1, abs=1e-6)


class Masked(nn.Module):
    """A mask of 1/4 everywhere, 3/4 at the second voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(0.0))

    def forward_with_mask(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mask = torch.tensor([0.25, 0.75]).expand(len(x), 1, 1, 2) + self.bias
        return x, mask, x

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_with_mask(x)[0]


def test_attention_masks_are_kept_sparse_and_on_the_body() -> None:
    nets = networks(gen_ab=Masked())
    bodies = {"body_a": torch.tensor([[[[False, True]]]]), "body_b": torch.tensor([[[[True, True]]]])}
    objective = CycleGAN(nets, mask_sparsity=2.0, mask_agreement=4.0)
    losses, _ = generator_losses(objective, batch() | bodies)
    assert losses["mask_sparsity_ab"].item() == pytest.approx(2 * 0.5)
    assert losses["mask_agreement_ab"].item() == pytest.approx(4 * 0.25)
    assert not any(name.endswith("_ba") and name.startswith("mask") for name in losses)


def test_identity_is_left_out_with_a_message_when_channels_differ() -> None:
    example = {"a": torch.zeros(1, 2, 4, 4), "b": torch.zeros(1, 1, 4, 4)}
    with pytest.warns(UserWarning, match="identity loss is left out: a has 2 channels and b 1"):
        assert CycleGAN(networks(), example=example).identity_weight == 0


class Condition(nn.Module):
    """Logit = source + 10 image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x[:, :1] + 10 * x[:, 1:])


def test_pix2pix_equals_the_formula_and_its_discriminator_sees_the_source() -> None:
    nets = nn.ModuleDict({"gen_ab": Affine(2.0), "disc_b": Condition()})
    objective = Pix2Pix(nets, adversarial=LSGAN())
    losses, images = generator_losses(objective, batch())
    fake = (1.0, -1.0)
    expected = {
        "reconstruction_b": 100 * (abs(fake[0] - 0.2) + abs(fake[1] - 0.6)) / 2,
        "adversarial_ab": ((0.5 + 10 - 1) ** 2 + (-0.5 - 10 - 1) ** 2) / 2,
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5)
    found = discriminator_losses(objective, batch(), images)
    real = ((0.5 + 2 - 1) ** 2 + (-0.5 + 6 - 1) ** 2) / 2
    assert found["discriminator_b"].item() == pytest.approx((real + (10.5**2 + 10.5**2) / 2) / 2, rel=1e-5)
    assert objective.paired


def conv_networks() -> nn.ModuleDict:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1), nn.Tanh()]
    return nn.ModuleDict({"gen_ab": nn.Sequential(*layers), "disc_b": nn.Conv2d(1, 1, 4)})


def images(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    real = {d: torch.rand(2, 1, 16, 16, generator=generator) * 2 - 1 for d in ("a", "b")}
    return real | {f"body_{d}": real[d] > -2 for d in ("a", "b")}


def test_cut_has_its_terms_and_learns_its_heads() -> None:
    example = {d: torch.zeros(1, 1, 16, 16) for d in ("a", "b")}
    objective = CUT(conv_networks(), example, layers=2, patches=32, size=8)
    assert objective.generators == ("gen_ab", "heads_ab") and not objective.paired
    losses, made = generator_losses(objective, images())
    assert set(losses) == {"adversarial_ab", "patch_nce_ab", "identity_b"} and set(made) == {"fake_b"}
    sum(losses.values()).backward()  # type: ignore[union-attr]
    for name in objective.generators:
        assert all(p.grad is not None for p in objective.networks[name].parameters()), name
    without = CUT(conv_networks(), example, identity_weight=0, layers=2, patches=32, size=8)
    assert set(generator_losses(without, images())[0]) == {"adversarial_ab", "patch_nce_ab"}
    with pytest.raises(ValueError, match="given twice"):
        CUT(conv_networks(), example, structure={"patch_nce": PatchNCE()})


def test_cyclegan_learns_the_heads_of_patch_nce() -> None:
    nets = conv_networks()
    nets["gen_ba"], nets["disc_a"] = conv_networks().values()
    example = {d: torch.zeros(1, 1, 16, 16) for d in ("a", "b")}
    objective = CycleGAN(nets, structure={"patch_nce": PatchNCE(layers=2, patches=32, size=8)}, example=example)
    assert objective.generators == ("gen_ab", "gen_ba", "heads_ab", "heads_ba")
    losses, _ = generator_losses(objective, images())
    assert losses["patch_nce_ab"] > 0 and losses["patch_nce_ba"] > 0


def test_a_lazy_penalty_comes_every_so_many_steps_and_counts_as_often() -> None:
    class Steep(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return 3 * image.flatten(1).sum(dim=1).view(-1, 1, 1, 1)

    # |grad D| is 3 times the root of 4 pixels, whatever the image: the penalty is (6 - 1)^2.
    loss = WGANGP(penalty_weight=10.0, lazy=4)
    real, fake, found = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), []
    for step in range(1, 9):
        loss.step = step
        found.append(float(judge(Steep(), loss, real, fake, "b")["gradient_penalty_b"]))
    assert found == pytest.approx([0, 0, 0, 4 * 10 * 25] * 2)
    assert sum(found) / 8 == pytest.approx(float(judge(Steep(), WGANGP(), real, fake, "b")["gradient_penalty_b"]))
    with pytest.raises(ValueError, match="lazy"):
        WGANGP(lazy=0)
