"""Networks from elsewhere keep the contract, or are refused with the reason."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medcyclegan import config, factory, phantom
from medcyclegan.errors import InputError
from medcyclegan.networks.foreign import ForeignGenerator, adapt_discriminator, adapt_generator
from medcyclegan.registry import DISCRIMINATORS, GENERATORS
from medcyclegan.training.checkpoint import load_checkpoint

UNET = {"_target_": "monai.networks.nets.UNet", "channels": [4, 8, 16], "strides": [2, 2], "norm": "INSTANCE"}


class Given(nn.Module):
    """A 1 x 1 convolution and whatever is asked to come after it."""

    def __init__(self, after: Any = lambda x: x, channels: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 1)
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.conv(x))


@pytest.mark.parametrize(("dims", "size"), [(2, (37, 50)), (3, (18, 21, 16))])
def test_monai_networks_become_generators(dims: int, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = GENERATORS.build(UNET, in_channels=1, out_channels=1, spatial_dims=dims)
    image = torch.randn(2, 1, *size)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(100 * image)
    assert output.shape == image.shape and output.dtype == torch.float32
    assert output.abs().max() <= 1
    assert torch.equal(output, network(100 * image)), "computed in float32 whatever the precision of the training"


def test_a_tanh_is_added_once() -> None:
    image = torch.linspace(-1, 1, 64 * 32).view(1, 1, 64, 32)
    for network in (Given(), Given(torch.tanh), Given(nn.Tanh()), Given(lambda x: torch.tanh(x)[:, :, :, :])):
        adapted = adapt_generator(network, 1, 1, 2)
        torch.testing.assert_close(adapted(image), torch.tanh(network.conv(image)))
    assert network.training, "the look at the network changes nothing in it"


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Given(torch.sigmoid), "this ends in Sigmoid"),
        (Given(lambda x: x.clamp(-1, 1)), "this ends in Clamp"),
        (Given(channels=2), "it is to give 1 channels of the same size, but gives (1, 2, 64, 32)"),
        (Given(lambda x: x[..., 1:]), "but gives (1, 1, 64, 31)"),
        (Given(lambda x: [x]), "gives one tensor, this gives a list"),
        (torch.tanh, "torch.nn.Module is needed"),
    ],
)
def test_what_is_no_generator_is_refused(network: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        adapt_generator(network, 1, 1, 2)
    assert message in str(raised.value)


def test_monai_discriminator_gives_its_last_features() -> None:
    leaf = {"_target_": "monai.networks.nets.PatchDiscriminator", "channels": 4, "num_layers_d": 2}
    network = DISCRIMINATORS.build(leaf, in_channels=1, spatial_dims=2).eval()
    image = torch.randn(1, 1, 40, 40)
    assert torch.equal(network(image), network.network(image)[-1])
    scales = adapt_discriminator(Given(lambda x: (x, x)), 1, 2)(image)
    assert isinstance(scales, tuple) and len(scales) == 2
    with pytest.raises(TypeError, match="gives no logits"):
        adapt_discriminator(Given(lambda x: ([x], x)), 1, 2)(image)


OWN = """
from pathlib import Path
from torch import nn
Path(__file__).with_name("was_imported").touch()
class Generator(nn.Module):
    def __init__(self, in_channels, out_channels, spatial_dims, width: int = 4):
        super().__init__()
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.last = nn.Conv2d(width, out_channels, 1)
    def forward(self, x):
        return self.last(self.first(x).relu())
class Picky(Generator):
    def forward(self, x):
        return super().forward(x).view(-1, 7)
class OnlyFlat(nn.Module):
    def __init__(self, in_channels, out_channels): ...
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module `own_networks`, which leaves a file behind when it is imported."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder)
    yield folder / "was_imported"
    sys.modules.pop("own_networks", None)


def test_mistakes_in_dotted_paths_are_told_without_importing(own: Path) -> None:
    allow = ["own_networks"]
    (problem,) = GENERATORS.check({"_target_": "own_networks.Generator", "widht": 8}, allow)
    assert "has no argument 'widht'" in problem and "Did you mean 'width'?" in problem
    (problem,) = GENERATORS.check({"_target_": "own_networks.Generator", "width": "wide"}, allow)
    assert "'width' must be a int" in problem
    (problem,) = GENERATORS.check({"_target_": "own_networks.Generatr"})
    assert "Did you mean 'Generator'?" in problem
    (problem,) = GENERATORS.check({"_target_": "own_netwrks.Generator"})
    assert "there is no package 'own_netwrks'" in problem
    (problem,) = GENERATORS.check({"_target_": "own_networks.OnlyFlat"}, allow)
    assert "does not take spatial_dims" in problem
    assert GENERATORS.check({"_target_": "own_networks.Generator", "width": 8}, allow) == []
    assert not own.exists()
    with pytest.raises(
        InputError, match=r"own_networks\.Picky' cannot be built: it cannot take an image of \(1, 1, 64"
    ):
        GENERATORS.build({"_target_": "own_networks.Picky"}, allow, in_channels=1, out_channels=1, spatial_dims=2)
    (own.parent / "torn_networks.py").write_text("class Generator:\n    def (")
    (problem,) = GENERATORS.check({"_target_": "torn_networks.Generator"})
    assert "torn_networks.py is not valid Python, line 2" in problem


def test_a_checkpoint_imports_strangers_only_when_allowed(
    own: Path, experiment: config.Experiment, cohort: phantom.Cohort, tmp_path: Path
) -> None:
    content = experiment.model_dump(mode="json")
    content["model"]["generator"] = {"_target_": "own_networks.Generator", "width": 3}
    run = tmp_path / "run"
    with pytest.raises(InputError, match=r"model\.generator: generator is code from elsewhere.*--allow own_networks"):
        config.parse(content, "the test")
    assert not own.exists(), "the stranger's code ran"
    factory.train(config.parse(content, "the test", allow=["own_networks"]), run, device="cpu")
    assert own.exists()
    own.unlink()
    sys.modules.pop("own_networks")
    for attempt in (load_checkpoint, factory.load_translator, factory.resume):
        with pytest.raises(InputError, match=r"own_networks\.Generator.*--allow own_networks"):
            attempt(run)
    assert not own.exists(), "the stranger's code ran"
    translator = factory.load_translator(run, device="cpu", allow=["own_networks"])
    assert own.exists()
    assert isinstance(translator.generator, ForeignGenerator)
    assert np.isfinite(translator(cohort.test_mr[0]).array).all()
