"""Who may import whom: the house's table, held as data, against the imports in the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "medcyclegan"
GROUND = {"atomic", "documents", "errors", "machine", "progress", "registry"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "atomic": set(),
    "progress": set(),
    "sources": set(),
    "machine": set(),
    "interruption": set(),
    "trust": {"errors", "sources"},
    "registry": {"errors", "sources", "trust"},
    "ranks": {"errors"},
    "changes": {"errors"},
    "documents": {"errors"},
    "config": {"documents", "errors", "registry"},
    "phantom": {"atomic", "errors"},
    "io": {"atomic", "errors", "progress"},
    "networks": {"registry"},
    "losses": {"registry"},
    "transforms": {"errors", "io"},
    "process_pool": {"errors", "interruption", "machine", "progress"},
    "survey": {"errors", "io", "transforms"},
    "cohort": GROUND | {"io", "survey"},
    "qc": GROUND | {"", "cohort", "io", "process_pool", "report", "survey"},
    "data": GROUND | {"cohort", "io", "process_pool", "qc", "survey", "transforms"},
    "training": GROUND | {"", "losses", "networks", "ranks", "trust"},
    "inference": GROUND | {"io", "losses", "machine", "survey", "transforms"},
    "evaluation": GROUND | {"", "io", "process_pool", "transforms"},
    "report": GROUND | {"", "evaluation", "io", "transforms"},
    "factory": GROUND
    | {
        "",
        "changes",
        "cohort",
        "config",
        "data",
        "evaluation",
        "inference",
        "io",
        "losses",
        "machine",
        "networks",
        "ranks",
        "survey",
        "training",
        "transforms",
    },
    "record": {"", "atomic", "documents", "errors"},
    "convert": GROUND | {"", "cohort", "factory", "inference", "io", "ranks", "record", "survey", "training"},
    "reference_weights": GROUND | {"", "config", "networks", "training", "transforms"},
    "plan": GROUND | {"", "cohort", "factory", "config", "data", "io", "machine", "ranks", "survey", "transforms"},
    "benchmark": GROUND | {"factory", "config", "data", "inference", "losses", "networks", "training"},
    "export": GROUND
    | {"", "factory", "config", "evaluation", "inference", "io", "networks", "training", "transforms", "trust"},
    "demo": GROUND | {"", "factory", "config", "convert", "evaluation", "inference", "io", "phantom", "report"},
    "cli": GROUND
    | {
        "",
        "benchmark",
        "factory",
        "config",
        "cohort",
        "convert",
        "demo",
        "evaluation",
        "export",
        "inference",
        "plan",
        "qc",
        "ranks",
        "reference_weights",
        "report",
    },
    "__main__": {"cli"},
}
# Plain tensors only: what these may not touch even from outside the package.
TENSOR_ONLY = ("networks", "losses", "training/objectives")
# MONAI's networks and losses are modules from tensor to tensor; its data structures and transforms are not.
PLAIN_IN_MONAI = ("monai.networks", "monai.losses")
FOREIGN_TO_TENSORS = {"monai", "nibabel", "SimpleITK", "pathlib", "yaml", "pydantic"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every imported name in full, lazy imports inside functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # `from medcyclegan import factory` imports a module, `from medcyclegan import __version__` the package.
            whole = node.module == "medcyclegan"
            found |= {
                f"medcyclegan.{alias.name}" if whole and not alias.name.startswith("__") else str(node.module)
                for alias in node.names
            }
    return found


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return  # loads its public names lazily
    own = unit(path)
    used = {
        name.removeprefix("medcyclegan").removeprefix(".").split(".")[0]
        for name in imports(path)
        if name.split(".")[0] == "medcyclegan"
    }
    assert used - {own} <= ALLOWED[own], f"{own} may not import {sorted(used - {own} - ALLOWED[own])}"


@pytest.mark.parametrize("folder", TENSOR_ONLY)
def test_tensor_code_sees_plain_tensors_only(folder: str) -> None:
    for path in (PACKAGE / folder).rglob("*.py"):
        names = [name for name in imports(path) if not name.startswith(PLAIN_IN_MONAI)]
        foreign = {name.split(".")[0] for name in names} & FOREIGN_TO_TENSORS
        assert not foreign, f"{path} imports {sorted(foreign)}"


def test_every_unit_is_in_the_table() -> None:
    units = {unit(path) for path in modules()} - {"__init__"}
    assert units == set(ALLOWED)


def test_no_drawer_names() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "base", "misc"}
    assert not [path for path in modules() if path.stem in drawers or drawers & set(path.parts)]
