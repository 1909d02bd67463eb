"""Every example runs as its first lines say."""

from __future__ import annotations

import csv
import importlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    output = run_example(
        "02_real_heads.py", "--data", HEADS, "-o", "out", "--steps", 2, "--score-every", 1, *narrow, cwd=tmp_path
    )
    assert "head: 513235 voxels" in output
    assert "best constant: MAE 70.1 HU" in output
    assert "in hand: MAE 64.1 HU" in output
    with (tmp_path / "out/run/exam.csv").open(newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["1", "2"]


@pytest.mark.slow
def test_03_memory_in_3d(tmp_path: Path) -> None:
    """One step with and without checkpointing; at this size it saves half of the memory, and a quarter at least."""
    output = run_example("03_memory_in_3d.py", "--size", 32, 64, 64, "--blocks", 2, "--device", "cpu", cwd=tmp_path)
    off, on = (float(line.split(" GiB")[0].split()[-1]) for line in output.splitlines())
    assert 0.2 < on < 0.75 * off


@pytest.mark.slow
def test_04_methods_compared(tmp_path: Path) -> None:
    few = ["--steps", 2, "--seeds", 0, "--heads", 1, "--test", 1, "--jobs", 1]
    output = run_example(
        "04_methods_compared.py", "-o", "out", *few, "--methods", "cyclegan", "pix2pix, true pairs", cwd=tmp_path
    )
    table = [line for line in output.splitlines() if line.startswith("|")]
    assert len(table) == 4 and table[2].startswith("| cyclegan | ")
    assert output.strip() == (tmp_path / "out/table.md").read_text().strip()


@pytest.mark.slow
def test_05_generators_compared(tmp_path: Path) -> None:
    few = ["--steps", 2, "--heads", 1, "--generators", "attention_unet", "swin_unetr"]
    lines = run_example("05_generators_compared.py", "-o", "out", *few, cwd=tmp_path).splitlines()
    assert [line.split(":")[0] for line in lines] == ["best table from intensity to HU", "attention_unet", "swin_unetr"]
    assert (tmp_path / "out/generators.png").stat().st_size > 10_000


def test_06_handlers(tmp_path: Path) -> None:
    output = run_example("06_handlers.py", "out", cwd=tmp_path)
    assert "cycle_a: " in output and "a step takes " in output


def test_16_planted_faults(tmp_path: Path, run: Path, cohort: phantom.Cohort) -> None:
    """Even of a network that has learned nothing the maps find voxels that do not come from it."""
    output = run_example(
        "16_planted_faults.py", run, cohort.test_mr[0], "--ct", cohort.test_ct[0], "--trials", 1, cwd=tmp_path
    )
    table = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in output.splitlines() if line.startswith("| ")}
    assert set(table) >= {"spread", "structure", "cycle", "combined"} and len(table["spread"]) == 5
    assert all(0 <= float(value) <= 1 for row in list(table.values())[1:] for value in row)
    assert float(table["spread"][0]) > 0.7  # 0.5 is chance


@pytest.mark.slow
def test_17_planted_defects(tmp_path: Path) -> None:
    """With the fewest volumes; what it must find is tested in test_inspect.py."""
    output = run_example("17_planted_defects.py", "-o", "out", "--sound", 2, cwd=tmp_path)
    assert "4 sound volumes, 35 defects" in output and (tmp_path / "out/inspection.html").exists()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs an example in this process, which has torch and MONAI already, as Python runs a script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")

    def run_here(name: str, *arguments: object) -> str:
        assert len((ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()) < 60
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run_here


def test_07_transforms_in_compose(here) -> None:
    batch, prepared = here("07_transforms_in_compose.py", "out").splitlines()
    assert batch == "a batch: (4, 1, 32, 32, 16), -1.00 to 1.00"
    assert "back: (1, 36, 44, 20)" in prepared
    # Clipping at two percentiles and two linear interpolations blur the borders a little.
    assert 0 < float(re.findall(r"change ([\d.]+) %", prepared)[0]) < 15


def test_08_generator_in_a_bundle(here, tmp_path: Path) -> None:
    line = here("08_generator_in_a_bundle.py", "out").splitlines()[-1]
    assert line == "4 iterations; from (1, 1, 32, 32, 16) to (1, 1, 32, 32, 16)"
    assert json.loads((tmp_path / "out/train.json").read_text())["network"]["_target_"].startswith("medcyclegan.")


@pytest.mark.slow
def test_09_monai_network(here) -> None:
    assert here("09_monai_network.py", "out").splitlines()[-1].startswith("SwinUNETR: (44, 20, 36), ")


@pytest.mark.slow
def test_10_segment_mr_with_a_ct_network(here, run: Path) -> None:
    scores = [line.split(": Dice ") for line in here("10_segment_mr_with_a_ct_network.py", run, 60).splitlines()]
    assert [name for name, _ in scores] == ["MR, its percentiles scaled to [0, 1]", "MR, translated", "true CT"]
    # The run is hardly trained, but the network has seen CTs.
    assert float(scores[2][1]) > 0.5


@pytest.mark.slow
def test_11_sct_as_augmentation(here, run: Path) -> None:
    lines = here("11_sct_as_augmentation.py", run, 2).splitlines()
    assert [line.split(":")[0] for line in lines] == ["1 CT", "and 8 sCT", "all 9 CT"]


def test_12_new_generator(here) -> None:
    assert "model run step 4: " in here("12_new_generator.py", "out").splitlines()[-1]


def test_13_new_structure_loss(here) -> None:
    line = here("13_new_structure_loss.py", "out").splitlines()[-1]
    assert set(json.loads(line.replace("'", '"'))) == {"SmoothStaysSmooth_ab", "SmoothStaysSmooth_ba"}


def test_13_is_its_formula(here) -> None:
    """A ramp of 0.1 per voxel along one axis: 0.1 where the source is flat, 0.1 exp(-1) where it rises by `edge`."""
    from medcyclegan.losses.structure import View

    loss = importlib.import_module("13_new_structure_loss").SmoothStaysSmooth(edge=0.2)
    ramp = torch.arange(5.0).view(1, 1, 5, 1).expand(1, 1, 5, 4)
    body = torch.ones(1, 1, 5, 4, dtype=torch.bool)
    body[..., 0] = False

    def value(source: torch.Tensor) -> float:
        return float(loss(View(source, 0.1 * ramp, None, body, "b", torch.nn.Identity())))

    assert value(torch.zeros(1, 1, 5, 4)) == pytest.approx(0.1)
    assert value(0.2 * ramp) == pytest.approx(0.1 * 0.36788, rel=1e-4)


def test_14_new_dataset_layout(here) -> None:
    lists = json.loads(here("14_new_dataset_layout.py", "out").splitlines()[-1].replace("'", '"'))
    assert lists["a"] == ["p01_visit1", "p02_visit1"]
    assert lists["b"] == ["p03_visit1", "p04_visit1"]
    assert lists["pairs_a"] == lists["pairs_b"] == ["p05_visit1"]


@pytest.mark.slow
def test_15_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its code cells in their order, as a kernel runs them; and it is kept without outputs."""
    import matplotlib

    notebook = json.loads((ROOT / "examples" / "15_notebook.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    namespace: dict[str, object] = {"__name__": "__main__"}
    for cell in cells:
        exec("".join(cell["source"]), namespace)
    assert re.search(r"MAE in the body: \d+ HU", capsys.readouterr().out)
    assert [axis.get_title() for axis in namespace["figure"].axes] == ["MR", "sCT [HU]", "CT [HU]", "uncertainty map"]


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for example in (ROOT / "examples").iterdir():
        assert not example.is_file() or f'"{example.name}"' in source
