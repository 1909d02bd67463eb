"""No code runs because a config or checkpoint names it: a test per way that was found."""

from __future__ import annotations

import contextlib
import pickle
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medcyclegan import config
from medcyclegan.cli import app
from medcyclegan.config import REGISTRIES
from medcyclegan.errors import InputError
from medcyclegan.registry import GENERATORS, RECONSTRUCTION_LOSSES, STRUCTURE_LOSSES
from medcyclegan.trust import require_trusted, sealed

PLACES = ["model.generator", "model.discriminator", "objective", "losses.adversarial", "losses.reconstruction"]


@pytest.mark.parametrize("target", ["subprocess.Popen", "os.system", "builtins.eval", "torch.load", "pickle.loads"])
@pytest.mark.parametrize("place", [*PLACES, "losses.structure"])
def test_no_leaf_of_any_kind_starts_a_program(place: str, target: str, tmp_path: Path) -> None:
    left = tmp_path / "was_run"
    leaf = f"{{_target_: {target}, args: [touch, {left}]}}"
    for allow in ((), (target.split(".")[0],)):
        with pytest.raises(InputError, match=target.replace(".", r"\.")):
            experiment = config.load(
                None, [f"{place}={f'[{leaf}]' if place == 'losses.structure' else leaf}"], allow=allow
            )
            name = place.rpartition(".")[2]
            leaf_read = getattr(getattr(experiment, place.split(".")[0], None), name, None) or experiment.objective
            REGISTRIES[name].build(leaf_read[0] if isinstance(leaf_read, list) else leaf_read, allow)
    assert not left.exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("monai.networks.utils.torch.hub.load", "torch.hub.load is a function"),
        ("torch.nn.modules.module.torch.hub.load", "torch.hub.load is a function"),
        ("monai.networks.nets.resnet.hf_hub_download", "there is no 'hf_hub_download'"),
        ("monai.networks.utils.convert_to_onnx", "is a function; a class is needed"),
        ("monai.networks.trt_compiler.TrtCompiler", "a torch.nn.Module is needed"),
        ("monai.networks.layers.gmm.GaussianMixtureModel", "a torch.nn.Module is needed"),
        ("monai.networks.nets.swin_unetr.np.memmap", "is a module"),
        ("medcyclegan.factory.runs.Path", "a torch.nn.Module is needed"),
        ("medcyclegan.registry.importlib.import_module", "is a function; a class is needed"),
        ("medcyclegan.training.trainer.TranslationTrainer", "TranslationTrainer"),
        ("medcyclegan.inference.inferer.TranslatorInferer", "TranslatorInferer"),
        ("torch.nn.parallel.DistributedDataParallel", "--allow torch"),
        ("torch.utils.data.DataLoader", "--allow torch"),
        ("..os.system", "a name or a dotted path is needed"),
        ("../../etc.x", "a name or a dotted path is needed"),
        ("monai.networks.nets.UNet\n", "a name or a dotted path is needed"),
    ],
)
def test_the_path_to_a_class_does_not_count_but_where_it_is_written(target: str, message: str) -> None:
    for name in ("generator", "reconstruction"):
        (problem,) = REGISTRIES[name].check({"_target_": target})
        assert message in problem


def test_a_structure_loss_has_a_weight() -> None:
    with pytest.raises(InputError, match=r"L1Loss' cannot be built: it has no weight, as every structure loss needs"):
        STRUCTURE_LOSSES.build({"_target_": "torch.nn.L1Loss"}, windows=None)


SHOP = """
import subprocess
from subprocess import Popen
from torch import nn
from torch.utils.data import DataLoader as Loader
class Net(nn.Module):
    def __init__(self, in_channels, out_channels, spatial_dims, path: str = ""):
        super().__init__()
        open(path or "{left}", "w").close()
class Plain: ...
made = type("Made", (), dict(__init__=lambda self, **given: open("{left}", "w").close()))
def __getattr__(name):
    if name == "Late": return Net
    if name == "Stolen": return Popen
    raise AttributeError(name)
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that a user allows; what its class leaves behind when it is called."""
    (tmp_path / "shop_of_parts.py").write_text(SHOP.format(left=tmp_path / "was_called"))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "was_called"
    sys.modules.pop("shop_of_parts", None)


def test_an_allowed_module_is_allowed_for_what_it_defines_and_no_more(shop: Path) -> None:
    given = {"in_channels": 1, "out_channels": 1, "spatial_dims": 2}
    allow = ["shop_of_parts"]
    for name in ("subprocess.Popen", "Popen", "Loader", "Plain", "Stolen", "made"):
        with pytest.raises(InputError, match="shop_of_parts"):
            GENERATORS.build({"_target_": f"shop_of_parts.{name}"}, allow, **given)
    assert not shop.exists()
    for name in ("Net", "Late"):
        with pytest.raises(InputError, match="--allow shop_of_parts"):
            GENERATORS.build({"_target_": f"shop_of_parts.{name}"}, **given)
        assert not shop.exists()
        with pytest.raises(InputError, match="cannot be built: it cannot take an image"):
            GENERATORS.build({"_target_": f"shop_of_parts.{name}"}, allow, **given)
        shop.unlink()  # it was called


@pytest.mark.parametrize(
    "arguments",
    [
        {"act": "$__import__('os').system('true')"},
        {"act": ["relu", {"inplace": "@network"}]},
        {"act": "%configs/inference.json::network"},
        {"act": {"_target_": "subprocess.Popen"}},
        {"norm": [["instance", {"_mode_": "debug"}]]},
        {"norm": {"$import os": 1}},
        {"_mode_": "debug"},
        {"_requires_": "$1/0"},
    ],
)
def test_arguments_hide_nothing_that_a_bundle_would_run(arguments: dict[str, Any]) -> None:
    leaf = {"_target_": "monai.networks.nets.UNet", "channels": [4, 8], "strides": [2], **arguments}
    problems = GENERATORS.check(leaf)
    assert problems and all("an argument is plain data" in problem for problem in problems)


def test_checkpoints_are_held_to_the_same_rule() -> None:
    for target in ("resnet", "torch.nn.Conv2d", "monai.networks.nets.SwinUNETR", "monai.losses.SSIMLoss"):
        require_trusted({"model": {"generator": {"_target_": target}}}, "checkpoint.pt")
    ours = "medcyclegan.networks.generators.resnet.ResNetGenerator"
    require_trusted({"model": {"generator": {"_target_": ours}}}, "checkpoint.pt")
    for target in (
        "os.system",
        "subprocess.Popen",
        "torch.optim.Adam",
        "monai.networks.nets.swin_unetr.torch.hub.load",
        "monai.networks.utils.convert_to_onnx.x",
        "medcyclegan.factory.runs.Path",
        "builtins.eval",
        "no_such_package.Net",
    ):
        with pytest.raises(InputError, match=r"checkpoint\.pt names code of its own(.|\n)*--allow"):
            require_trusted({"model": {"generator": [{"_target_": target}]}}, "checkpoint.pt")
    require_trusted({"generator": {"_target_": "torch.optim.Adam"}}, "checkpoint.pt", allow=["torch.optim"])
    with pytest.raises(InputError, match=r"torch\.optim\.Adam"):
        require_trusted({"generator": {"_target_": "torch.optim.Adam"}}, "checkpoint.pt", allow=["torch.opti"])
    ring: list[Any] = []
    ring.append(ring)
    require_trusted(ring, "checkpoint.pt")


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("was unpickled",)


def test_nothing_is_downloaded_unpickled_or_started_for_an_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    loss = {"_target_": "monai.losses.PerceptualLoss", "spatial_dims": 3, "is_fake_3d": False}
    with pytest.raises(InputError, match=r"PerceptualLoss' cannot be built: it would .*--allow"):
        RECONSTRUCTION_LOSSES.build({**loss, "network_type": "medicalnet_resnet10_23datasets"})
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(_Evil()))

    def unpickle() -> None:
        torch.load(path, weights_only=False)

    def connect() -> None:
        socket.create_connection(("127.0.0.1", 9))

    def start() -> None:
        import subprocess

        subprocess.run(["true"], check=True)

    def from_the_hub() -> None:
        (tmp_path / "hub" / "hubconf.py").open()

    for way, message in ((unpickle, "unpickle"), (connect, "network"), (start, "program"), (from_the_hub, "torch hub")):
        # Libraries try, and go on without.
        with pytest.raises(InputError, match=rf"it would .*{message}"), sealed("it"), contextlib.suppress(Exception):
            way()
    assert "was unpickled" not in capsys.readouterr().out
    start()  # outside nothing is refused


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system [touch {left}]", "!!python/name:os.system ''"])
def test_yaml_tags_run_nothing(tmp_path: Path, text: str) -> None:
    left = tmp_path / "was_run"
    file = tmp_path / "config.yaml"
    file.write_text(f"seed: {text.format(left=left)}\n")
    for arguments in ((file,), (None, [f"seed={text.format(left=left)}"])):
        with pytest.raises(InputError, match="python"):
            config.load(*arguments)
    assert not left.exists()


@pytest.mark.parametrize("verb", ["train", "plan", "prepare", "benchmark"])
def test_verbs_with_a_config_take_allow(verb: str, tmp_path: Path, shop: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: {generator: {_target_: shop_of_parts.Net, pth: x}}\n")
    options = {"benchmark": ["train"], "prepare": ["-o", str(tmp_path / "o")]}.get(verb, [])
    more = ["-o", str(tmp_path / "run")] if verb == "train" else []
    with pytest.raises(InputError, match=r"code from elsewhere.*--allow shop_of_parts"):
        app([verb, *options, str(file), *more], standalone_mode=False)
    with pytest.raises(InputError, match="Did you mean 'path'"):
        app([verb, *options, str(file), *more, "--allow", "shop_of_parts"], standalone_mode=False)
    assert not shop.exists() and "shop_of_parts" not in sys.modules
