"""What is built and installed is what is here."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_wheel_and_sdist_are_whole(tmp_path: Path) -> None:
    """Every file of the package is in both, pages, styles, scripts, tables and py.typed included, and nothing else."""
    tree = tmp_path / "tree"
    tree.mkdir()
    shutil.copytree(ROOT / "medcyclegan", tree / "medcyclegan", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    expected = {str(path.relative_to(tree)) for path in (tree / "medcyclegan").rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in expected} >= {".py", ".html", ".css", ".js", ".json", ".typed"}
    for kind in ("wheel", "sdist"):
        build = f"from setuptools import build_meta; build_meta.build_{kind}({str(tmp_path)!r})"
        done = subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert expected | {"pyproject.toml", "README.md", "LICENSE"} <= packed
