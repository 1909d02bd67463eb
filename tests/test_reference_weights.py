"""Imported weights do exactly what the reference did with them.

The reference's generators are written down here once more from their published structure, as plain stacks of layers,
with the parameter names that its files have.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medcyclegan import cli, factory, phantom
from medcyclegan.convert import Options, convert
from medcyclegan.errors import InputError
from medcyclegan.networks.imported import ORIENTATIONS, from_picture, to_picture
from medcyclegan.reference_weights import ReferenceModel, import_weights


def norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=False, track_running_stats=False)


class ReferenceBlock(nn.Module):
    def __init__(self, channels: int, dropout: bool) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            norm(channels),
            nn.ReLU(),
            *([nn.Dropout(0.5)] if dropout else []),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class ReferenceResNet(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, width: int, blocks: int, dropout: bool = False) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.ReflectionPad2d(3), nn.Conv2d(channels_in, width, 7), norm(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), norm(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1), norm(4 * width), nn.ReLU(),
            *(ReferenceBlock(4 * width, dropout) for _ in range(blocks)),
            nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, 1), norm(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1), norm(width), nn.ReLU(),
            nn.ReflectionPad2d(3), nn.Conv2d(width, channels_out, 7), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class ReferenceLevel(nn.Module):
    """One level of the U-Net around the level below: halve, go deeper, double, and put the input beside the result."""

    def __init__(self, outer: int, inner: int, below: nn.Module | None, image_channels: tuple[int, int] | None) -> None:
        super().__init__()
        self.outermost = image_channels is not None
        if image_channels is not None and below is not None:
            came, went = image_channels
            self.model = nn.Sequential(
                nn.Conv2d(came, inner, 4, 2, 1), below,
                nn.ReLU(), nn.ConvTranspose2d(2 * inner, went, 4, 2, 1), nn.Tanh(),
            )  # fmt: skip
        elif below is None:
            self.model = nn.Sequential(
                nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, 2, 1),
                nn.ReLU(), nn.ConvTranspose2d(inner, outer, 4, 2, 1), norm(outer),
            )  # fmt: skip
        else:
            self.model = nn.Sequential(
                nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, 2, 1), norm(inner), below,
                nn.ReLU(), nn.ConvTranspose2d(2 * inner, outer, 4, 2, 1), norm(outer),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class ReferenceUNet(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, width: int, depth: int) -> None:
        super().__init__()
        level: nn.Module = ReferenceLevel(8 * width, 8 * width, None, None)
        for _ in range(depth - 5):
            level = ReferenceLevel(8 * width, 8 * width, level, None)
        for factor in (4, 2, 1):
            level = ReferenceLevel(factor * width, 2 * factor * width, level, None)
        self.model = ReferenceLevel(0, width, level, (channels_in, channels_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def reference(architecture: str, channels_in: int = 1, channels_out: int = 1, width: int = 4, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    if architecture.startswith("resnet"):
        return ReferenceResNet(channels_in, channels_out, width, int(architecture[7]), **more).eval()
    return ReferenceUNet(channels_in, channels_out, width, {"unet_256": 8, "unet_128": 7}[architecture]).eval()


GIVEN: dict[str, Any] = {
    "modalities": ("MR", "CT"),
    "spacing": (6.0, 6.0, 8.0),
    "orientation": "PL",
    "ct_window": (-1000.0, 2000.0),
    "mr_percentiles": (1.0, 99.0),
}


def imported(network: nn.Module | dict[str, Any], folder: Path, architecture: str, **given: Any) -> nn.Module:
    state = network.state_dict() if isinstance(network, nn.Module) else network
    weights, output = folder / "latest_net_G_A.pth", folder / "checkpoint.pt"
    torch.save(state, weights)
    import_weights(weights, output, ReferenceModel(architecture, **{**GIVEN, **given}))
    generator = factory.load_translator(output, device="cpu").generator
    output.unlink()
    return generator


def test_the_stacks_have_the_published_sizes() -> None:
    sizes = {
        "resnet_9blocks": 11_378_179,
        "resnet_6blocks": 7_837_699,
        "unet_256": 54_409_603,
        "unet_128": 54_409_603 - 3 * 512 * 512 * 16 - 2 * 512,  # a level less
    }
    with torch.device("meta"):
        found = {name: reference(name, 3, 3, 64) for name in sizes}
    assert {name: sum(p.numel() for p in network.parameters()) for name, network in found.items()} == sizes


@pytest.mark.parametrize("channels", [(1, 1), (3, 3), (1, 3), (3, 1)], ids=str)
@pytest.mark.parametrize("architecture", ["resnet_9blocks", "resnet_6blocks", "unet_256", "unet_128"])
def test_same_output_as_the_reference(architecture: str, channels: tuple[int, int], tmp_path: Path) -> None:
    network = reference(architecture, *channels)
    for parameter in network.parameters():  # biases too: those before a norm must not matter
        nn.init.normal_(parameter, std=0.3)
    side = {"unet_256": 256, "unet_128": 128}.get(architecture, 64)
    picture = (torch.rand(1, 1, side, side) * 2 - 1).double()
    ours = imported(network, tmp_path, architecture).double()  # sums are formed in other orders
    with torch.no_grad():
        expected = network.double()(picture.expand(-1, channels[0], -1, -1)).mean(1, keepdim=True)
        # Rows of the picture run to posterior, columns to the left; axes here run to the right and to anterior.
        result = ours(picture.flip(2, 3).transpose(2, 3))
    assert expected.std() > 0.1
    torch.testing.assert_close(result.transpose(2, 3).flip(2, 3), expected, atol=1e-9, rtol=0)


def test_leftovers_of_other_days_do_not_matter(tmp_path: Path) -> None:
    image = torch.rand(1, 1, 32, 32)
    plain = reference("resnet_6blocks")
    state = plain.state_dict()
    expected = imported(plain, tmp_path, "resnet_6blocks")(image)
    with_dropout = {
        key.replace("conv_block.5", "conv_block.6"): value
        for key, value in reference("resnet_6blocks").state_dict().items()
    }
    assert set(with_dropout) == set(reference("resnet_6blocks", dropout=True).state_dict())
    parallel = OrderedDict((f"module.{key}", value) for key, value in state.items())
    statistics = {f"model.2.{name}": torch.zeros(4) for name in ("running_mean", "running_var")}
    unbiased = {key: value for key, value in state.items() if key not in ("model.4.bias", "model.10.conv_block.1.bias")}
    for variant in (with_dropout, parallel, {**state, **statistics}, unbiased):
        assert torch.equal(imported(dict(variant), tmp_path, "resnet_6blocks")(image), expected)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pictures_lie_as_told(orientation: str) -> None:
    """A voxel goes where the letters say: the one farthest to the right and to posterior, in a slice of 3 x 2."""
    image = torch.zeros(1, 1, 3, 2)
    image[0, 0, 2, 0] = 1
    picture = to_picture(image, orientation)
    row, column = (int(i) for i in torch.nonzero(picture[0, 0])[0])
    ends = {"rows": picture.shape[2] - 1, "columns": picture.shape[3] - 1}
    for place, end, direction in ((row, ends["rows"], orientation[0]), (column, ends["columns"], orientation[1])):
        assert place == (end if direction in "RP" else 0)
        assert end == (2 if direction in "LR" else 1)
    assert torch.equal(from_picture(picture, orientation), image)


def test_converts_volumes_in_the_window_that_was_given(cohort: phantom.Cohort, tmp_path: Path) -> None:
    weights, checkpoint, sct = tmp_path / "latest_net_G_A.pth", tmp_path / "brain.pt", tmp_path / "sct.nii.gz"
    network = reference("unet_128")
    nn.init.constant_(network.model.model[3].bias, 1e3)  # everything is white
    torch.save(network.state_dict(), weights)
    options = (
        "--architecture unet_128 --modalities MR CT --spacing 6 6 8 --orientation PL --ct-window -1000 2000 "
        "--mr-percentiles 1 99"
    )
    cli.app(["import-weights", str(weights), "-o", str(checkpoint), *options.split()], standalone_mode=False)
    result = convert(checkpoint, [cohort.test_mr[0]], sct, Options(device="cpu"))
    assert not result.failed
    values = np.asarray(nib.load(sct).dataobj)
    body = nib.load(cohort.test_mask[0]).get_fdata() > 0
    assert np.median(values[body]) == 2000 and values.max() == 2000 and values.min() == -1000
    translator = factory.load_translator(checkpoint, device="cpu")
    assert translator.window.roi_size == (128, 128)
    assert (
        translator.source.preparations[0].mr_percentiles == (1, 99)
        and not translator.source.preparations[0].mr_inverted
    )
    with pytest.raises(InputError, match="no generator for the direction 'ba'"):
        factory.load_translator(checkpoint, direction="ba", device="cpu")
    with pytest.raises(InputError, match=r"imported.*can only convert"):
        factory.resume(checkpoint, device="cpu")


def with_batch_norm() -> dict[str, Tensor]:
    statistics = {"weight": torch.ones(4), "bias": torch.zeros(4), "running_mean": torch.zeros(4)}
    more = {f"model.2.{name}": value for name, value in statistics.items()}
    return {**reference("resnet_9blocks").state_dict(), **more}


@pytest.mark.parametrize(
    ("state", "given", "message"),
    [
        (with_batch_norm, {}, "has batch norm"),
        (lambda: reference("resnet_6blocks").state_dict(), {}, "is not a resnet_9blocks: without model.*architecture"),
        (lambda: reference("unet_128").state_dict(), {}, "is not a resnet_9blocks"),
        (lambda: reference("unet_128").state_dict(), {"architecture": "unet_256"}, "is not a unet_256"),
        (lambda: reference("unet_256").state_dict(), {"architecture": "unet_128"}, "is not a unet_128"),
        (lambda: reference("resnet_9blocks", 2).state_dict(), {}, "channels are 1 or 3, got 2 in"),
        (lambda: {"step": 3}, {}, "holds no weights"),
        (lambda: {}, {}, "holds no weights"),
        (lambda: {"model.1.weight": torch.tensor([torch.nan])}, {}, "not finite, for example in model.1.weight"),
        (lambda: reference("resnet_9blocks"), {}, "not only tensors"),
        (dict, {"architecture": "resnet_9"}, "one of resnet_9blocks"),
        (dict, {"orientation": "PS"}, "one of PL"),
        (dict, {"modalities": ("MR", "PET")}, "two of MR and CT"),
        (dict, {"ct_window": None}, "--ct-window, the HU of black and white, is needed with CT"),
        (dict, {"mr_percentiles": None}, "--mr-percentiles.*is needed to translate MR"),
        (dict, {"modalities": ("CT", "CT"), "mr_percentiles": None, "mr_inverted": True}, "--mr-inverted is for MR"),
        (lambda: reference("resnet_9blocks").state_dict(), {"spacing": (1.0, 0.0, 1.0)}, "preparation.spacing.1"),
        (lambda: reference("resnet_9blocks").state_dict(), {"ct_window": (5.0, 1.0)}, "must be below the second"),
    ],
)
def test_what_cannot_be_imported_is_told(state: Any, given: dict[str, Any], message: str, tmp_path: Path) -> None:
    weights, output = tmp_path / "net.pth", tmp_path / "checkpoint.pt"
    torch.save(state(), weights)
    with pytest.raises(InputError, match=message):
        import_weights(weights, output, ReferenceModel(**{"architecture": "resnet_9blocks", **GIVEN, **given}))
    assert not output.exists()


def test_a_changed_weight_is_noticed_by_its_checksum(tmp_path: Path) -> None:
    weights = tmp_path / "net.pth"
    torch.save({"model.1.weight": torch.full((50,), 3.0)}, weights)
    content = weights.read_bytes()
    at = content.index(torch.full((50,), 3.0).numpy().tobytes())
    weights.write_bytes(content[: at + 7] + bytes([content[at + 7] ^ 1]) + content[at + 8 :])
    with pytest.raises(InputError, match=r"net\.pth holds no weights .*checksum|CRC"):
        import_weights(weights, tmp_path / "x.pt", ReferenceModel("resnet_9blocks", **GIVEN))


def test_nothing_is_overwritten_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*net\.pth"):
        import_weights(tmp_path / "net.pth", tmp_path / "x.pt", ReferenceModel("unet_128", **GIVEN))
    (tmp_path / "x.pt").write_text("precious")
    with pytest.raises(InputError, match=r"x\.pt exists already"):
        import_weights(tmp_path / "net.pth", tmp_path / "x.pt", ReferenceModel("unet_128", **GIVEN))
