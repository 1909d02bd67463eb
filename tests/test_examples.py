"""Every example runs as its first lines say."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from medcyclegan import phantom

ROOT = Path(__file__).parents[1]
HEADS = ROOT.parent / "shared" / "data" / "heads"


def run_example(name: str, *arguments: object, cwd: Path) -> str:
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_01_python_api(tmp_path: Path) -> None:
    assert "MAE in the body" in run_example("01_python_api.py", "out", cwd=tmp_path)
    assert (tmp_path / "out/case_001_sct.nii.gz").exists()


@pytest.mark.skipif(not HEADS.is_dir(), reason="needs ../shared/data/heads")
def test_02_real_heads(tmp_path: Path) -> None:
    narrow = ["--set", "model.generator.filters=4", "--set", "model.discriminator.filters=4"]
    told = run_example(
        "02_real_heads.py", "--data", HEADS, "-o", "out", "--steps", 2, "--score-every", 1, *narrow, cwd=tmp_path
    )
    assert "head: 513235 voxels" in told
    assert "best constant: MAE 70.1 HU" in told
    assert "in hand: MAE 64.1 HU" in told
    with (tmp_path / "out/run/exam.csv").open(newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["1", "2"]


@pytest.mark.slow
def test_03_memory_in_3d(tmp_path: Path) -> None:
    """One step with and without checkpointing; at this size it saves half of the memory, and a quarter at least."""
    told = run_example("03_memory_in_3d.py", "--size", 32, 64, 64, "--blocks", 2, "--device", "cpu", cwd=tmp_path)
    off, on = (float(line.split(" GiB")[0].split()[-1]) for line in told.splitlines())
    assert 0.2 < on < 0.75 * off


@pytest.mark.slow
def test_04_methods_compared(tmp_path: Path) -> None:
    few = ["--steps", 2, "--seeds", 0, "--heads", 1, "--test", 1, "--jobs", 1]
    told = run_example(
        "04_methods_compared.py", "-o", "out", *few, "--methods", "cyclegan", "pix2pix, true pairs", cwd=tmp_path
    )
    table = [line for line in told.splitlines() if line.startswith("|")]
    assert len(table) == 4 and table[2].startswith("| cyclegan | ")
    assert told.strip() == (tmp_path / "out/table.md").read_text().strip()


@pytest.mark.slow
def test_05_generators_compared(tmp_path: Path) -> None:
    few = ["--steps", 2, "--heads", 1, "--generators", "attention_unet", "swin_unetr"]
    told = run_example("05_generators_compared.py", "-o", "out", *few, cwd=tmp_path).splitlines()
    assert [line.split(":")[0] for line in told] == ["best table from intensity to HU", "attention_unet", "swin_unetr"]
    assert (tmp_path / "out/generators.png").stat().st_size > 10_000


def test_06_handlers(tmp_path: Path) -> None:
    told = run_example("06_handlers.py", "out", cwd=tmp_path)
    assert "cycle_a: " in told and "a step takes " in told


def test_16_planted_faults(tmp_path: Path, run: Path, cohort: phantom.Cohort) -> None:
    """Even of a network that has learned nothing the maps find voxels that do not come from it."""
    told = run_example(
        "16_planted_faults.py", run, cohort.test_mr[0], "--ct", cohort.test_ct[0], "--trials", 1, cwd=tmp_path
    )
    table = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in told.splitlines() if line.startswith("| ")}
    assert set(table) >= {"spread", "structure", "cycle", "combined"} and len(table["spread"]) == 5
    assert all(0 <= float(value) <= 1 for row in list(table.values())[1:] for value in row)
    assert float(table["spread"][0]) > 0.7  # 0.5 is chance


@pytest.mark.slow
def test_17_planted_defects(tmp_path: Path) -> None:
    """With the fewest volumes; what it must find is tested in test_inspect.py."""
    told = run_example("17_planted_defects.py", "-o", "out", "--sound", 2, cwd=tmp_path)
    assert "4 sound volumes, 35 defects" in told and (tmp_path / "out/inspection.html").exists()


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for example in (ROOT / "examples").glob("*.py"):
        assert f'"{example.name}"' in source
