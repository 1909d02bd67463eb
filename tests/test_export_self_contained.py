"""A self-contained bundle runs where this package cannot be imported, and how far it is from `convert` is known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import TINY
from test_export_bundle import difference, exams

from medcyclegan import build, config
from medcyclegan.convert import convert
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.errors import InputError
from medcyclegan.export.formats import export_run

__all__ = ["exams"]
# In front of everything else, a package of our name that cannot be imported.
BLOCK = 'raise ImportError("this package is not installed here")\n'


def run_alone(bundle: Path, volumes: Path, output: Path, scratch: Path) -> None:
    (scratch / "blocked" / "medcyclegan").mkdir(parents=True)
    (scratch / "blocked" / "medcyclegan" / "__init__.py").write_text(BLOCK)
    environment = {**os.environ, "PYTHONPATH": str(scratch / "blocked"), "OMP_NUM_THREADS": "1"}
    importing = [sys.executable, "-c", "import medcyclegan"]
    tried = subprocess.run(importing, cwd=scratch, env=environment, capture_output=True, check=False)
    assert tried.returncode != 0
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--dataset_dir", str(volumes), "--output_dir", str(output)]
    done = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("direction", ["ab", pytest.param("ba", marks=pytest.mark.slow)])
def test_close_to_convert_without_this_package(
    direction: str, run: Path, exams: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.translators, "bf16_is_safe", lambda device: False)
    export_run(run, tmp_path / "bundle", direction=direction, self_contained=True)
    assert "not exactly" in (tmp_path / "bundle" / "docs" / "README.md").read_text()
    volumes = exams / ("mr" if direction == "ab" else "ct")
    run_alone(tmp_path / "bundle", volumes, tmp_path / "out", tmp_path)
    written = convert(run, [volumes], tmp_path / "convert", direction=direction, device="cpu").written
    assert len(written) == 2
    for path in written.values():
        apart = difference(path, tmp_path / "out" / path.name)
        print(f"{direction} {path.name}: 99.9 % within {np.percentile(apart, 99.9):.3g}, largest {apart.max():.3g}")
        # MR has no unit: a share of its range. One voxel of the body's rim is enough to change a slice a little.
        limit = 1 if direction == "ab" else 0.02 * np.ptp(np.asarray(nib.load(path).dataobj))
        assert np.percentile(apart, 99.9) <= limit


def test_stacks_of_slices_are_refused(prepared: PreparedCohort, tmp_path: Path) -> None:
    content = {**TINY, "patches": {"size": [32, 32], "neighbors": 1}, "data": {"prepared": str(prepared.folder)}}
    content["training"] = {**TINY["training"], "steps": 1}
    build.train(config.parse(content, "the test"), tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match=r"stacks of 3 neighboring slices"):
        export_run(tmp_path / "run", tmp_path / "out", self_contained=True)
    assert not (tmp_path / "out").exists()
