"""The registry knows parts, arguments and mistakes without importing torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medcyclegan.errors import InputError
from medcyclegan.registry import DISCRIMINATORS, GENERATORS, OBJECTIVES


def test_parts_are_found_in_the_sources() -> None:
    assert "resnet" in GENERATORS.parts()
    assert "patchgan" in DISCRIMINATORS.parts()
    assert "cyclegan" in OBJECTIVES.parts()
    assert GENERATORS.parts()["resnet"].summary.startswith("Strided convolutions down")


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ({"_target_": "resnt"}, "Did you mean 'resnet'?"),
        ({"_target_": "resnet", "block": 3}, "Did you mean 'blocks'?"),
        ({"_target_": "resnet", "in_channels": 3}, "set by the program"),
        ({"_target_": "resnet", "blocks": "nine"}, "'blocks' must be a int, got 'nine'"),
        ({"_target_": "resnet", "blocks": True}, "must be a int"),
    ],
)
def test_mistakes_are_named(leaf: dict[str, object], message: str) -> None:
    (problem,) = GENERATORS.check(leaf)
    assert message in problem


def test_all_mistakes_are_reported_at_once() -> None:
    assert len(GENERATORS.check({"_target_": "resnet", "block": 3, "filter": 2})) == 2


def test_complete_spells_out_defaults_and_keeps_what_is_given() -> None:
    leaf = GENERATORS.complete({"_target_": "resnet", "blocks": 6})
    defaults = {"filters": 64, "downsamplings": 2, "upsampling": "resize", "dropout": 0.0, "checkpointing": False}
    assert leaf == {"_target_": "resnet", "blocks": 6, **defaults}


def test_a_value_that_the_class_refuses_is_an_input_error() -> None:
    with pytest.raises(InputError, match="upsampling is 'resize' or 'transposed', got 'cubic'"):
        GENERATORS.build({"_target_": "resnet", "upsampling": "cubic"}, spatial_dims=2)


def test_checking_imports_nothing_heavy() -> None:
    code = (
        "import sys; from medcyclegan import config; config.load(None, ['model.generator.blocks=6']);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'monai', 'SimpleITK', 'nibabel', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
