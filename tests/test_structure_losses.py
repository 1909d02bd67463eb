"""Structure losses: what they ignore, what they punish, and their formulas worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medcyclegan.losses.reconstruction import L1, L1SSIM, L2
from medcyclegan.losses.structure import View, mean_inside
from medcyclegan.losses.structure.gradient_correlation import GradientCorrelation
from medcyclegan.losses.structure.mask_consistency import MaskConsistency
from medcyclegan.losses.structure.mind import MIND, descriptor
from medcyclegan.losses.structure.mutual_information import MutualInformation
from medcyclegan.losses.structure.patch_nce import PatchNCE
from medcyclegan.registry import STRUCTURE_LOSSES

CT = (-1024.0, 3071.0)


def picture(spatial_dims: int = 2, size: int = 24) -> Tensor:
    """A smooth random image in [-0.7, 0.7]."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand([1, 1] + [6] * spatial_dims, generator=generator) * 1.4 - 0.7
    mode = {2: "bicubic", 3: "trilinear"}[spatial_dims]
    return nn.functional.interpolate(coarse, size=[size] * spatial_dims, mode=mode).clamp(-0.7, 0.7)


def view(source: Tensor, translated: Tensor, cycle: Tensor | None = None, body: Tensor | None = None) -> View:
    inside = torch.ones_like(source, dtype=torch.bool) if body is None else body
    return View(source, translated, cycle, inside, "b", nn.Identity())


@pytest.mark.parametrize("dims", [2, 3])
def test_mind_is_zero_for_affinely_rescaled_images_and_grows_with_a_shift(dims: int) -> None:
    image = picture(dims)
    loss = MIND()
    assert loss(view(image, image)).item() == 0
    for scaled in (0.5 * image, -0.8 * image, 0.3 * image + 0.2):
        assert loss(view(image, scaled)).item() < 2e-4
    shifted = [loss(view(image, image.roll(voxels, dims=2))).item() for voxels in (1, 2, 3)]
    assert 0.01 < shifted[0] < shifted[1] < shifted[2]


def test_mind_equals_the_formula_without_smoothing() -> None:
    """Around one bright voxel, with patches so narrow that they are one voxel."""
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 1.0
    found = descriptor(image, sigma=1e-3)[0, :, 2, 3]
    # At (2, 3) the neighbor below in axis 3 is the bright voxel: D = (0, 0, 1, 0), V = 1/4; exp(-4) against exp(0) = 1.
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, math.exp(-4), 1.0]))


def test_mind_of_flat_regions_is_not_noise() -> None:
    image = picture()
    image[..., :12] = 0.1
    noisy = image.clone()
    noisy[..., :12] += 1e-5 * torch.randn(1, 1, 24, 12, generator=torch.Generator().manual_seed(0))
    assert (descriptor(noisy) - descriptor(image))[..., :10].abs().max() < 0.01


def test_gradient_correlation_knows_sign_and_scale() -> None:
    image = picture()
    assert GradientCorrelation()(view(image, 0.4 * image + 0.1)).item() == pytest.approx(0, abs=1e-5)
    assert GradientCorrelation()(view(image, -image)).item() == pytest.approx(2, abs=1e-5)
    assert GradientCorrelation(absolute=True)(view(image, -image)).item() == pytest.approx(0, abs=1e-5)
    flat = torch.full_like(image, 0.3)
    assert GradientCorrelation()(view(image, flat)).item() == pytest.approx(1, abs=1e-5)


def test_gradient_correlation_equals_the_correlation_of_the_differences() -> None:
    x, y = picture(), picture().flip(2)
    expected = [
        np.corrcoef(np.diff(x[0, 0].numpy(), axis=axis).ravel(), np.diff(y[0, 0].numpy(), axis=axis).ravel())[0, 1]
        for axis in (0, 1)
    ]
    assert GradientCorrelation()(view(x, y)).item() == pytest.approx(1 - float(np.mean(expected)), abs=1e-5)


@pytest.mark.parametrize("block", [0, 12])
def test_mutual_information_is_largest_for_a_function_of_the_source(block: int) -> None:
    image = picture()
    loss = MutualInformation(block=block)
    same, inverted, shifted, flat = (
        loss(view(image, x)).item() for x in (image, -image, image.roll(5, dims=3), torch.zeros_like(image))
    )
    assert same < shifted < flat and inverted < shifted
    assert flat == pytest.approx(0, abs=1e-4)
    assert inverted == pytest.approx(same, rel=0.05)


def test_local_information_takes_blocks_of_the_image() -> None:
    """Per block the translation is a function of the source, over the image it is not."""
    image = picture()
    signs = torch.ones(1, 1, 24, 24)
    signs[..., :12, :] = -1
    patchwork = image * signs
    whole = [MutualInformation()(view(image, x)).item() for x in (patchwork, image)]
    blocks = [MutualInformation(block=12)(view(image, x)).item() for x in (patchwork, image)]
    assert whole[0] > whole[1] * 0.95  # information lost
    assert blocks[0] == pytest.approx(blocks[1], rel=0.05)


def body_square(size: int = 8) -> Tensor:
    body = torch.zeros(1, 1, size, size, dtype=torch.bool)
    body[..., 2:6, 2:6] = True
    return body


def test_mask_consistency_equals_the_formula() -> None:
    body = body_square()
    loss = MaskConsistency({"a": None, "b": CT})
    good = torch.where(body, torch.tensor(-0.48), torch.tensor(-1.0))  # 40 HU in air
    source = torch.where(body, torch.tensor(0.1), torch.tensor(-1.0))
    assert loss(view(source, good, source, body)).item() == pytest.approx(0, abs=1e-6)
    # Outside raised by 0.2 in half of the background: (0.2 / 2) / 2.
    leaking = good.clone()
    outside = (~body).nonzero()
    for index in outside[: len(outside) // 2]:
        leaking[tuple(index)] += 0.2
    assert loss(view(source, leaking, source, body)).item() == pytest.approx(0.05, abs=1e-6)
    # Skin turned into air: -1 lies (2 * 624 / 4095) below -400 HU, in all 12 voxels of the rim.
    skinless = torch.where(body, torch.tensor(-1.0), torch.tensor(-1.0))
    assert loss(view(source, skinless, source, body)).item() == pytest.approx(2 * 624 / 4095, abs=1e-6)


def test_bone_must_survive_the_cycle() -> None:
    """Direction ba: the source is CT, whose bone is thresholded before and after."""
    body = body_square()
    loss = MaskConsistency({"a": None, "b": CT})
    source = torch.where(body, torch.tensor(-0.48), torch.tensor(-1.0))
    source[..., 3, 3:5] = 0.3  # 1638 HU
    fake = torch.where(body, torch.tensor(0.2), torch.tensor(-1.0))
    kept, lost = source.clone(), source.clone()
    lost[..., 3, 3:5] = -0.48
    moved = lost.clone()
    moved[..., 4, 3:5] = 0.3
    values = [loss(View(source, fake, cycle, body, "a", nn.Identity())).item() for cycle in (kept, lost, moved)]
    assert values[0] == pytest.approx(0, abs=1e-3)
    # Two voxels of bone: nothing left gives 1 - 1 / (2 + 0 + 1), all moved 1 - 1 / (2 + 2 + 1).
    assert values[1] == pytest.approx(2 / 3, abs=0.03)
    assert values[2] == pytest.approx(4 / 5, abs=0.03)


def test_the_border_of_a_crop_is_not_skin() -> None:
    body = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    air = torch.full((1, 1, 8, 8), -1.0)
    assert MaskConsistency({"a": None, "b": CT})(view(air, air, air, body)).item() == 0


class Tiny(nn.Module):
    """Two convolutions that see single voxels, so features stay where they are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layers(x))


def test_patch_nce_is_low_where_patches_match_and_its_floor_is_the_softmax() -> None:
    generator, loss = Tiny(), PatchNCE(layers=1, patches=64, size=16)
    heads = loss.connect(generator, "b", torch.zeros(1, 1, 8, 8))
    assert next(heads.parameters()).shape == (16, 8)
    image = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    shuffled = image.flatten()[torch.randperm(64, generator=torch.Generator().manual_seed(1))].reshape(1, 1, 8, 8)
    matched = loss(View(image, image, None, image > 2, "b", generator)).item()
    unmatched = loss(View(image, shuffled, None, image > 2, "b", generator)).item()
    assert matched < unmatched
    # With equal features everywhere every place is as likely as any other: log(64).
    flat = torch.zeros(1, 1, 8, 8)
    assert loss(View(flat, flat, None, flat > 2, "b", generator)).item() == pytest.approx(math.log(64), abs=1e-4)


def test_patch_nce_moves_the_translation_and_the_heads_only() -> None:
    generator, loss = Tiny(), PatchNCE(layers=1, patches=32, size=16)
    heads = loss.connect(generator, "b", torch.zeros(1, 1, 8, 8))
    source, fake = (torch.rand(1, 1, 8, 8, requires_grad=True) for _ in range(2))
    loss(View(source, fake, None, source > 2, "b", generator)).backward()
    assert source.grad is None and fake.grad is not None and fake.grad.abs().sum() > 0
    assert all(p.grad is not None for p in heads.parameters())


def test_mean_inside_is_the_mean_over_the_body_and_zero_without_one() -> None:
    values = torch.arange(4.0).reshape(1, 1, 2, 2)
    body = torch.tensor([[[[True, False], [False, True]]]])
    assert mean_inside(values, body).item() == 1.5
    assert mean_inside(values, torch.zeros_like(body)).item() == 0
    assert mean_inside(values.expand(1, 3, 2, 2), body).item() == 1.5


def test_reconstruction_losses_equal_their_formulas() -> None:
    image, wanted = picture(), picture().flip(3)
    l1, l2 = (image - wanted).abs().mean().item(), (image - wanted).square().mean().item()
    assert L1()(image, wanted).item() == pytest.approx(l1, abs=1e-6)
    assert L2()(image, wanted).item() == pytest.approx(l2, abs=1e-6)
    assert L1SSIM(ssim_share=0)(image, wanted).item() == pytest.approx(l1, abs=1e-6)
    for loss in (L1(), L2(), L1SSIM()):
        assert loss(image, image).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
def test_ssim_of_two_constants_is_its_luminance_term(dims: int) -> None:
    # (2 x y + c1) / (x^2 + y^2 + c1) with c1 = (0.01 * 2)^2
    x, y = torch.full([1, 1] + [16] * dims, 0.2), torch.full([1, 1] + [16] * dims, 0.6)
    luminance = (2 * 0.12 + 0.0004) / (0.04 + 0.36 + 0.0004)
    assert L1SSIM(ssim_share=1)(x, y).item() == pytest.approx(1 - luminance, abs=1e-3)


def losses_by_name() -> list[str]:
    return sorted(STRUCTURE_LOSSES.parts())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", losses_by_name())
def test_every_structure_loss_moves_the_translation_in_any_dimension(name: str, dims: int) -> None:
    """A new file in losses/structure joins by itself."""
    loss = STRUCTURE_LOSSES.build({"_target_": name}, windows={"a": None, "b": CT})
    generator = nn.Sequential(*[{2: nn.Conv2d, 3: nn.Conv3d}[dims](1, 1, 3, padding=1) for _ in range(4)])
    if isinstance(loss, PatchNCE):
        loss.connect(generator, "b", picture(dims, 16))
    source = picture(dims, 16)
    body = torch.zeros_like(source, dtype=torch.bool)
    body[:, :, 3:13, 3:13] = True
    fake = (source.roll(2, dims=2) - 0.2).requires_grad_(True)
    value = loss(View(source, fake, source * 0.9, body, "b", generator))
    assert value.shape == () and torch.isfinite(value)
    value.backward()
    assert fake.grad is not None and torch.isfinite(fake.grad).all() and fake.grad.abs().sum() > 0
    assert loss.weight == 1.0


def test_every_structure_loss_names_its_source() -> None:
    folder = Path(__file__).parents[1] / "medcyclegan" / "losses" / "structure"
    for file in folder.glob("[a-z]*.py"):
        assert "paper=" in file.read_text(encoding="utf-8"), file.name
