"""Classes are found by their dotted path as Python would find them, and nothing is imported."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from medcyclegan.sources import Definition, find_class, find_init, package_exists

FILES = {
    "__init__.py": """
from .nets import Net, Renamed as Other
from .nets.wide import *
import shop_of_nets.nets.wide as w
""",
    "nets/__init__.py": """
from .net import Net, Renamed
from .net import net
from ..plain import Plain
""",
    "nets/net.py": """
raise RuntimeError("was imported")
class Net:
    def __init__(self, in_channels: int, width: int = 3, norm=print, **more): ...
class Renamed(Net):
    pass
Alias = alias = Net
def net(): ...
""",
    "nets/wide.py": """
if True:
    class Wide: ...
try:
    import x
except ImportError:
    class Spare: ...
""",
    "plain.py": """
from dataclasses import dataclass
@dataclass
class Plain:
    x: int = 1
""",
    "circle.py": "from .circle import Round",
    "lazy.py": "def __getattr__(name): ...",
    "folder/inner.py": "class Inner: ...",
}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        file = tmp_path / "shop_of_nets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "shop_of_nets"


@pytest.mark.parametrize(
    ("target", "module", "name"),
    [
        ("shop_of_nets.nets.net.Net", "nets.net", "Net"),
        ("shop_of_nets.nets.Net", "nets.net", "Net"),
        ("shop_of_nets.Net", "nets.net", "Net"),
        ("shop_of_nets.Other", "nets.net", "Renamed"),
        ("shop_of_nets.nets.net.alias", "nets.net", "Net"),
        ("shop_of_nets.nets.Plain", "plain", "Plain"),
        ("shop_of_nets.Wide", "nets.wide", "Wide"),
        ("shop_of_nets.w.Wide", "nets.wide", "Wide"),
        ("shop_of_nets.nets.wide.Spare", "nets.wide", "Spare"),
    ],
)
def test_re_exports_and_aliases_are_followed(shop: Path, target: str, module: str, name: str) -> None:
    found = find_class(target)
    assert isinstance(found, Definition)
    assert (found.module, found.node.name) == (f"shop_of_nets.{module}", name)
    assert not any(key.startswith("shop_of_nets") for key in sys.modules)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("shop_of_nets.Nett", "there is no 'Nett' in shop_of_nets. Did you mean 'Net'?"),
        ("shop_of_nets.nets.net", "shop_of_nets.nets.net.net is a function; a class is needed"),
        ("shop_of_nets.nets", "shop_of_nets.nets is a module; name a class in it"),
        ("shop_of_nets.nets.Net.inner", "'inner' is inside a class"),
    ],
)
def test_what_is_no_class_is_told(shop: Path, target: str, problem: str) -> None:
    assert find_class(target) == problem


@pytest.mark.parametrize(
    "target", ["shop_of_nets.circle.Round", "shop_of_nets.lazy.X", "shop_of_nets.folder.inner.Inner"]
)
def test_what_cannot_be_read_is_not_guessed(shop: Path, target: str) -> None:
    assert find_class(target) is None


def test_the_init_may_be_inherited_or_unwritten(shop: Path) -> None:
    inherited = find_class("shop_of_nets.Other")
    assert isinstance(inherited, Definition)
    init = find_init(inherited)
    assert init is not None and [a.arg for a in init.args.args] == ["self", "in_channels", "width", "norm"]
    generated = find_class("shop_of_nets.plain.Plain")
    assert isinstance(generated, Definition) and find_init(generated) is None


def test_packages() -> None:
    assert package_exists("monai.networks") and package_exists("sys")
    assert not package_exists("no_such_package_at_all.X") and not package_exists("")


@pytest.mark.parametrize("name", ["SwinUNETR", "Unet", "UNet", "AttentionUnet", "DenseNet121", "PatchDiscriminator"])
def test_agrees_with_what_python_imports(name: str) -> None:
    found = find_class(f"monai.networks.nets.{name}")
    cls = getattr(import_module("monai.networks.nets"), name)
    assert isinstance(found, Definition)
    assert (found.module, found.node.name) == (cls.__module__, cls.__name__)
