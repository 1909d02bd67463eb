"""The README is the contract: its commands are run here, its verbs and its test command exist."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medcyclegan import phantom

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NARROW = [
    "--set=model.generator.filters=4",
    "--set=model.discriminator.filters=4",
    "--set=training.steps=1",
    "--set=training.workers=0",
    "--set=patches.size=[64,64]",
]


def test_the_commands_of_use_it_run(cohort: phantom.Cohort, tmp_path: Path) -> None:
    section = README.split("## Use it")[1].split("```bash\n")[1].split("```")[0]
    folders = {
        "MR_DIR": cohort.train_mr[0].parent,
        "CT_DIR": cohort.train_ct[0].parent,
        "NEW_MR_DIR": cohort.test_mr[0].parent,
        "CT_OF_NEW_DIR": cohort.test_ct[0].parent,
        "MASK_DIR": cohort.test_mask[0].parent,
        "configs/brain_2d.yaml": ROOT / "configs" / "brain_2d.yaml",
    }
    # Coarse and narrow, so that it takes seconds.
    extra = {
        "prepare": ["--set=preparation.spacing=[6,6,8]"],
        "train": ["--set=preparation.spacing=[6,6,8]", *NARROW, "-d", "cpu"],
        "convert": ["-d", "cpu"],
    }
    printed = {}
    for line in section.strip().splitlines():
        program, verb, *rest = (str(folders.get(word, word)) for word in shlex.split(line, comments=True))
        assert program == "medcyclegan"
        result = subprocess.run(
            [sys.executable, "-m", "medcyclegan", verb, *rest, *extra.get(verb, []), "--json"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert result.returncode == 0, f"{line}\n{result.stderr}"
        printed[verb] = json.loads(result.stdout)
    assert list(printed) == ["prepare", "train", "convert", "evaluate"]
    assert printed["prepare"]["cases"] == {"a": 2, "b": 2, "pairs_a": 0, "pairs_b": 0}
    assert (printed["train"]["step"], printed["train"]["interrupted"]) == (1, False)
    sct, mr = nib.load(tmp_path / printed["convert"]["written"]["case_001"]), nib.load(cohort.test_mr[0])
    assert sct.get_data_dtype() == np.int16 and sct.shape == mr.shape
    np.testing.assert_allclose(sct.affine, mr.affine, atol=1e-5)
    assert printed["evaluate"] == json.loads((tmp_path / "SCORES" / "summary.json").read_text())
    with (tmp_path / "SCORES" / "cases.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert list(row)[:5] == ["case", "mae", "psnr", "ssim", "ms_ssim"]
    inside = nib.load(cohort.test_mask[0]).get_fdata() > 0
    by_hand = np.abs(sct.get_fdata() - nib.load(cohort.test_ct[0]).get_fdata())[inside].mean()
    assert float(row["mae"]) == pytest.approx(by_hand, rel=1e-6)


def test_the_python_code_runs(run: Path, cohort: phantom.Cohort, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    code = code.replace("runs/brain", str(run)).replace('"mr.nii.gz"', repr(str(cohort.test_mr[0])))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert (tmp_path / "sct.nii.gz").exists()


def test_install_commands_are_what_ci_uses() -> None:
    commands = re.findall(r"^pip install .*\[test\].*pytest.*$", README, flags=re.MULTILINE)
    assert len(commands) == 1
    assert re.search(r"^python3 -m venv .* && pip install .* && medcyclegan demo$", README, flags=re.MULTILINE)


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"\]\((?!http)([^)#]+)\)|`((?:configs|examples|\.github)/[^`]*)`", README):
        path = next(part for part in name if part)
        assert (ROOT / path).exists(), path
