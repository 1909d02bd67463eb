"""Contracts that every registered generator and discriminator joins by being registered."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medcyclegan.errors import InputError
from medcyclegan.networks.blocks import ResidualBlock, crop_to, pad_to_multiple
from medcyclegan.networks.discriminators.multiscale import MultiscalePatchGAN
from medcyclegan.networks.discriminators.patchgan import PatchGAN
from medcyclegan.networks.generators.attention_unet import AttentionGate
from medcyclegan.networks.generators.mask_guided import MaskGuidedGenerator
from medcyclegan.networks.generators.resnet import ResNetGenerator
from medcyclegan.networks.generators.unet import UNetGenerator
from medcyclegan.networks.generators.vit_unet import TokenTransformer, positions
from medcyclegan.registry import DISCRIMINATORS, GENERATORS, Registry

# Narrower than the defaults, so that the battery takes seconds. A part that is not named here is tested as it is.
SMALL: dict[str, dict[str, Any]] = {
    "resnet": {"filters": 4, "blocks": 1},
    "unet": {"filters": 4},
    "attention_unet": {"filters": 4, "depth": 2},
    "mask_guided": {"filters": 4, "blocks": 1},
    "vit_unet": {"filters": 4, "depth": 2, "blocks": 2},
    "swin_unetr": {"filters": 12},
    "patchgan": {"filters": 4, "layers": 2},
    "multiscale": {"filters": 4, "layers": 1},
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("resnet", {"upsampling": "transposed", "checkpointing": True}),
    ("unet", {"upsampling": "transposed", "depth": 8}),
    ("attention_unet", {"gates": False}),
    ("patchgan", {"layers": 0}),
    ("patchgan", {"spectral_norm": True}),
]
SIZES = {2: (37, 50), 3: (18, 34, 16)}


def make(registry: Registry, leaf: dict[str, Any], spatial_dims: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    extra = {"out_channels": 1} if registry is GENERATORS else {}
    leaf = {**SMALL.get(leaf["_target_"], {}), **leaf}
    network: nn.Module = registry.build(leaf, in_channels=1, spatial_dims=spatial_dims, **extra)
    return network


def tensors(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A discriminator may judge at several scales."""
    return output if isinstance(output, tuple) else (output,)


NETWORKS = [
    pytest.param(registry, {"_target_": name}, dims, id=f"{name}-{dims}d")
    for registry in (GENERATORS, DISCRIMINATORS)
    for name in registry.parts()
    for dims in (2, 3)
] + [
    pytest.param(
        GENERATORS if name in GENERATORS.parts() else DISCRIMINATORS,
        {"_target_": name, **arguments},
        2,
        id=f"{name}-2d-{'-'.join(map(str, arguments.values()))}",
    )
    for name, arguments in VARIANTS
]


@pytest.mark.parametrize(("registry", "leaf", "dims"), NETWORKS)
class TestNetworkContract:
    def test_every_parameter_learns(self, registry: Registry, leaf: dict[str, Any], dims: int) -> None:
        network = make(registry, leaf, dims)
        outputs = tensors(network(torch.randn(2, 1, *SIZES[dims])))
        sum((output.square().mean() for output in outputs), torch.zeros(())).backward()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
            # A parameter that has no effect has a gradient of rounding noise; those of weights of 0.02 are larger.
            assert parameter.grad.abs().max() > 1e-9, key

    def test_generator_keeps_shape_and_range(self, registry: Registry, leaf: dict[str, Any], dims: int) -> None:
        if registry is not GENERATORS:
            return
        network = make(registry, leaf, dims)
        for size in (SIZES[dims], (16,) * dims):
            with torch.no_grad():
                output = network(10 * torch.randn(2, 1, *size))
            assert output.shape == (2, 1, *size)
            assert output.abs().max() <= 1 and output.isfinite().all()

    def test_discriminator_gives_logits(self, registry: Registry, leaf: dict[str, Any], dims: int) -> None:
        if registry is not DISCRIMINATORS:
            return
        network, image = make(registry, leaf, dims).eval(), torch.randn(2, 1, *SIZES[dims])
        with torch.no_grad():
            logits = tensors(network(image))
            for scale in logits:
                assert scale.shape[:2] == (2, 1) and scale.dim() == dims + 2
                assert scale.max() > scale.min()
            *_, last = (module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
            assert last.bias is not None
            last.bias += 7  # nothing bounds what comes after it
            torch.testing.assert_close(tensors(network(image))[-1], logits[-1] + 7)

    def test_images_of_a_batch_do_not_touch(self, registry: Registry, leaf: dict[str, Any], dims: int) -> None:
        network, batch = make(registry, leaf, dims).eval(), torch.randn(2, 1, *SIZES[dims])
        with torch.no_grad():
            for both, alone in zip(tensors(network(batch)), tensors(network(batch[:1])), strict=True):
                torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=1e-3)

    def test_same_seed_same_weights_and_state_round_trip(
        self, registry: Registry, leaf: dict[str, Any], dims: int
    ) -> None:
        network, again, other = make(registry, leaf, dims), make(registry, leaf, dims), make(registry, leaf, dims, 1)
        for (key, a), (_, b) in zip(network.state_dict().items(), again.state_dict().items(), strict=True):
            assert torch.equal(a, b), key
        other.load_state_dict(network.state_dict())
        image = torch.randn(1, 1, *SIZES[dims])
        with torch.no_grad():
            for a, b in zip(tensors(network(image)), tensors(other(image)), strict=True):
                assert torch.equal(a, b)

    def test_bf16_stays_near_float32(self, registry: Registry, leaf: dict[str, Any], dims: int) -> None:
        network, image = make(registry, leaf, dims).eval(), torch.randn(1, 1, *SIZES[dims])
        with torch.no_grad():
            full = tensors(network(image))
            with torch.autocast("cpu", torch.bfloat16):
                half = tensors(network(image))
        for a, b in zip(half, full, strict=True):
            assert (a.float() - b).abs().mean() < 0.05 * b.abs().mean() + 1e-3
        if registry is GENERATORS:
            assert half[0].dtype == torch.float32, "bfloat16 near 0 HU has steps of 4 HU"

    def test_has_a_summary_and_a_paper(self, registry: Registry, leaf: dict[str, Any], dims: int) -> None:
        part = registry.parts()[leaf["_target_"]]
        assert part.summary.endswith(".") and any(character.isdigit() for character in part.paper)

    def test_refuses_other_dimensions(self, registry: Registry, leaf: dict[str, Any], dims: int) -> None:
        with pytest.raises(InputError, match="spatial_dims is 2 or 3, got 4"):
            make(registry, leaf, 4)


@pytest.mark.parametrize("name", GENERATORS.parts())
def test_generators_take_stacks_of_slices(name: str) -> None:
    """2.5D: neighboring slices as channels in, one slice out. Some generators cannot and say so."""
    leaf = {"_target_": name, **SMALL.get(name, {})}
    if name == "mask_guided":
        with pytest.raises(InputError, match="as many channels in as out, got 3 and 1"):
            GENERATORS.build(leaf, in_channels=3, out_channels=1, spatial_dims=2)
        return
    network = GENERATORS.build(leaf, in_channels=3, out_channels=1, spatial_dims=2)
    assert network(torch.randn(1, 3, 20, 24)).shape == (1, 1, 20, 24)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts_of_the_papers() -> None:
    """The reference's sizes with 3 channels and instance norm; it counts biases that the norm cancels."""
    idle_in_generator = 64 + 128 + 256 + 18 * 256 + 128 + 64
    assert count(ResNetGenerator(3, 3)) + idle_in_generator == 11_378_179
    down, up = 128 + 256 + 4 * 512, 4 * 512 + 256 + 128 + 64
    assert count(UNetGenerator(3, 3, depth=8, upsampling="transposed")) + down + up == 54_409_603
    idle_in_discriminator = 128 + 256 + 512
    assert count(PatchGAN(3)) + idle_in_discriminator == 2_764_737


def without_norms(network: nn.Module) -> nn.Module:
    """The norm mixes all voxels; without it a gradient shows the convolutions alone."""
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for i, layer in enumerate(module):
                if isinstance(layer, nn.InstanceNorm2d):
                    module[i] = nn.Identity()
    return network


@pytest.mark.parametrize(("layers", "field"), [(0, 1), (1, 16), (2, 34), (3, 70), (4, 142)])
def test_receptive_field_of_patchgan_measured_by_gradient(layers: int, field: int) -> None:
    network = without_norms(PatchGAN(filters=64 if layers == 3 else 4, layers=layers))
    image = torch.randn(1, 1, 256, 256, requires_grad=True)
    logits = network(image)
    if layers == 3:
        assert logits.shape == (1, 1, 30, 30)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    assert image.grad is not None
    for indices in torch.nonzero(image.grad[0, 0], as_tuple=True):
        assert int(indices.max() - indices.min()) + 1 == field


def test_coarse_scale_sees_more() -> None:
    """The second of two scales sees 70 voxels of an image that was averaged by threes and halved: 2 * 69 + 3."""
    network = without_norms(MultiscalePatchGAN(filters=4))
    image = torch.randn(1, 1, 256, 256, requires_grad=True)
    logits = network(image)
    assert [scale.shape[-1] for scale in logits] == [30, 14]
    logits[1][0, 0, 7, 7].backward()
    assert image.grad is not None
    rows, _ = torch.nonzero(image.grad[0, 0], as_tuple=True)
    assert int(rows.max() - rows.min()) + 1 == 141


def test_spectral_norm_bounds_the_gain() -> None:
    network = PatchGAN(filters=8, layers=2, spectral_norm=True)
    for _ in range(50):  # every forward pass in training brings the estimate closer
        network(torch.randn(1, 1, 32, 32))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            largest = torch.linalg.svdvals(module.weight.detach().flatten(1))[0]
            assert float(largest) == pytest.approx(1, abs=0.02)


def test_small_images_are_refused_by_name() -> None:
    PatchGAN(filters=4)(torch.zeros(1, 1, 24, 24))
    with pytest.raises(ValueError, match=r"at least 24 voxels along each axis, got \(23, 40\)"):
        PatchGAN(filters=4)(torch.zeros(1, 1, 23, 40))
    MultiscalePatchGAN(filters=4)(torch.zeros(1, 1, 48, 48))
    with pytest.raises(ValueError, match=r"at least 48 voxels along each axis, got \(47, 48\)"):
        MultiscalePatchGAN(filters=4)(torch.zeros(1, 1, 47, 48))


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
    networks = [ResidualBlock(2, 4), *(make(GENERATORS, {"_target_": name}, 2) for name in GENERATORS.parts())]
    for network in [*networks, PatchGAN(filters=4)]:
        for layer, following in pairwise(network.modules()):
            if isinstance(following, nn.InstanceNorm2d) and isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                assert layer.bias is None


@pytest.mark.parametrize("name", ["resnet", "mask_guided"])
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    """The same numbers to the last bit, dropout included."""
    image = torch.randn(1, 1, 20, 24, 18)
    gradients = []
    for checkpointing in (False, True):
        leaf = {"_target_": name, "checkpointing": checkpointing, **({"dropout": 0.5} if name == "resnet" else {})}
        network = make(GENERATORS, leaf, 3)
        torch.manual_seed(1)
        network(image).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None and recomputed is not None
        assert torch.equal(plain, recomputed)


def test_dropout_is_off_when_translating() -> None:
    for network in (ResNetGenerator(filters=4, blocks=1, dropout=0.5), UNetGenerator(filters=4, depth=6, dropout=0.5)):
        image = torch.randn(1, 1, 64, 64)
        assert not torch.equal(network(image), network(image))
        network.eval()
        assert torch.equal(network(image), network(image))


def test_mask_guided_mixes_input_and_content() -> None:
    network = MaskGuidedGenerator(filters=4, blocks=1)
    image = torch.rand(2, 1, 21, 30) * 2 - 1
    output, mask, content = network.forward_with_mask(image)
    assert mask.shape == (2, 1, 21, 30) and content.shape == image.shape
    assert mask.min() >= 0 and mask.max() <= 1
    torch.testing.assert_close(output, mask * content + (1 - mask) * image)
    assert torch.equal(network(image), output)
    assert network.mask.bias is not None
    nn.init.constant_(network.mask.bias, -100)  # a mask of nothing keeps the image
    assert torch.equal(network(image), image)
    nn.init.constant_(network.mask.bias, 100)
    _, mask, content = network.forward_with_mask(image)
    assert torch.equal(network(image), content)


def test_attention_gate_is_the_formula() -> None:
    gate = AttentionGate(2, 2)
    weights = {
        "of_skip.weight": 2.0,
        "of_gating.weight": 3.0,
        "of_gating.bias": -1.0,
        "psi.weight": 0.5,
        "psi.bias": 0.25,
    }
    gate.load_state_dict({k: torch.full_like(v, weights[k]) for k, v in gate.state_dict().items()})
    skip, gating = torch.tensor([0.5, 1.0]).view(1, 2, 1, 1), torch.tensor([1.0, -0.5]).view(1, 2, 1, 1)
    # relu(2 * 1.5 + 3 * 0.5 - 1) = 3.5; sigmoid(0.5 * 3.5 + 0.25) = sigmoid(2)
    expected = skip * 0.8807970779778823
    torch.testing.assert_close(gate(skip, gating), expected)


def test_transformer_knows_places_and_sees_all() -> None:
    torch.manual_seed(0)
    transformer = TokenTransformer(16, 1, 2)
    image = torch.randn(1, 16, 4, 6, requires_grad=True)
    transformer(image)[0, :, 0, 0].sum().backward()
    assert image.grad is not None and (image.grad.abs().sum(1) > 0).all()
    # Without positions, exchanging two tokens would exchange their outputs and nothing else.
    with torch.no_grad():
        flipped = transformer(image.flip(3)).flip(3)
        assert not torch.allclose(transformer(image), flipped, atol=1e-3)


def test_positions_are_sines_from_the_center() -> None:
    table = positions(torch.Size((3, 5)), 8, torch.device("cpu")).view(3, 5, 8)
    assert torch.equal(table[1, 2], torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1]))
    torch.testing.assert_close(table[2, 4, [0, 1]], torch.tensor([1.0, 0.01]).sin())
    torch.testing.assert_close(table[2, 4, [4, 6]], torch.tensor([0.9092974268, -0.4161468365]))  # sin 2, cos 2
    assert len(table.flatten(0, 1).unique(dim=0)) == 15
    # The middle of a larger image is encoded as the smaller image is.
    assert torch.equal(positions(torch.Size((5, 7)), 8, torch.device("cpu")).view(5, 7, 8)[1:-1, 1:-1], table)


def test_padding_and_cropping_undo_each_other() -> None:
    image = torch.randn(1, 1, 17, 22)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (1, 1, 20, 24)
    assert torch.equal(padded[..., 17:, :22], image[..., 16:17, :].expand(-1, -1, 3, -1))
    assert torch.equal(crop_to(padded, image.shape[2:]), image)
    assert pad_to_multiple(image, 8, at_least=24).shape == (1, 1, 24, 24)
    assert pad_to_multiple(image, 8, at_least=18).shape == (1, 1, 24, 24)


@pytest.mark.parametrize(
    ("registry", "leaf", "message"),
    [
        (GENERATORS, {"_target_": "resnet", "filters": 0}, "filters, blocks and downsamplings are at least 1"),
        (GENERATORS, {"_target_": "resnet", "blocks": 0}, "filters, blocks and downsamplings are at least 1"),
        (GENERATORS, {"_target_": "resnet", "upsampling": "cubic"}, "upsampling is 'resize' or 'transposed'"),
        (GENERATORS, {"_target_": "resnet", "dropout": 1.0}, "dropout is a share"),
        (GENERATORS, {"_target_": "unet", "depth": 1}, "depth at least 2"),
        (GENERATORS, {"_target_": "unet", "upsampling": "cubic"}, "upsampling is 'resize' or 'transposed'"),
        (GENERATORS, {"_target_": "attention_unet", "filters": 1}, "filters is at least 2"),
        (GENERATORS, {"_target_": "vit_unet", "heads": 5}, "heads divides the 64 channels"),
        (GENERATORS, {"_target_": "swin_unetr", "filters": 16}, "multiple of 12"),
        (DISCRIMINATORS, {"_target_": "patchgan", "layers": 6}, "layers 0 to 5"),
        (DISCRIMINATORS, {"_target_": "multiscale", "scales": 1}, "at least 2, got 1; for one scale take patchgan"),
    ],
)
def test_nonsense_is_refused(registry: Registry, leaf: dict[str, Any], message: str) -> None:
    small = {"filters": 4} if leaf["_target_"] == "vit_unet" else {}
    with pytest.raises(InputError, match=message):
        make(registry, {**small, "depth": 4, **leaf} if small else leaf, 2)
