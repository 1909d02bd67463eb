"""The registry knows parts, arguments and mistakes without importing torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medcyclegan import registry
from medcyclegan.cli import app
from medcyclegan.errors import InputError
from medcyclegan.registry import (
    DISCRIMINATORS,
    GENERATORS,
    LISTED,
    OBJECTIVES,
    Registry,
    listing,
)


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


def test_dotted_paths_are_checked_without_importing_them() -> None:
    code = (
        "import sys; from medcyclegan import config; from medcyclegan.errors import InputError\n"
        "target = 'model.generator._target_=monai.networks.nets.SwinUNETR'\n"
        "config.load(None, [target, 'model.generator.feature_size=24'])\n"
        "try: config.load(None, [target, 'model.generator.feature_siz=24'])\n"
        "except InputError as error: assert \"Did you mean 'feature_size'?\" in str(error), error\n"
        "else: sys.exit(2)\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'monai')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_class_without_source_is_looked_at_before_it_is_called() -> None:
    leaf = {"_target_": "zlib.error", "blocks": 3}
    (problem,) = GENERATORS.check(leaf)
    assert "allow it with --allow zlib" in problem
    assert GENERATORS.check(leaf, allow=["zlib"]) == []
    with pytest.raises(InputError, match=r"zlib\.error' cannot serve: a class that is a torch\.nn\.Module"):
        GENERATORS.build(leaf, allow=["zlib"], spatial_dims=2)


def test_a_single_module_may_hold_several_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = (
        "@PARTS.register('one', paper='A 2001, ' 'Title')\nclass One:\n    '''First.'''\n"
        "@PARTS.register('two')\nclass Two:\n    def __init__(self, x: int | None = None): ...\n"
        "class Unnamed: ...\n"
    )
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses/many.py").write_text(source)
    parts = Registry("loss", "medcyclegan.losses.many").parts()
    assert list(parts) == ["one", "two"]
    assert parts["one"].module == parts["two"].module == "medcyclegan.losses.many"
    assert (parts["one"].paper, parts["one"].summary) == ("A 2001, Title", "First.")
    assert list(parts["two"].arguments) == ["x"]
    assert Registry("loss", "medcyclegan.losses").parts() == parts
    (tmp_path / "losses/again.py").write_text(source)
    with pytest.raises(ValueError, match="two losss are called 'one'"):
        Registry("loss", "medcyclegan.losses").parts()


@pytest.mark.parametrize("kind", LISTED)
def test_list_prints_every_part_with_paper_and_arguments(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--json"]):
        try:
            app(["list", kind, *options], standalone_mode=True)
        except SystemExit as ended:
            assert not ended.code
        output = capsys.readouterr().out
        names = [name for registry in LISTED[kind] for name in registry.parts()]
        if options:
            assert [part["name"] for part in json.loads(output)[kind]] == names
            for part in json.loads(output)[kind]:
                assert part["summary"] and part["paper"]
                assert all(a["required"] or "default" in a for a in part["arguments"])
        else:
            assert all(name in output for name in names)


def test_list_is_instant_and_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['medcyclegan', 'list', 'generators']; from medcyclegan.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(InputError, match=r"no kind 'generator'; there are: generators,.*Did you mean 'generators'"):
        listing("generator")
