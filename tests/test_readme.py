"""The README is the contract: its commands are run here, its verbs and its test command exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

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
    verbs = []
    for line in section.strip().splitlines():
        program, verb, *rest = (str(folders.get(word, word)) for word in shlex.split(line, comments=True))
        assert program == "medcyclegan"
        verbs.append(verb)
        # Coarse and narrow, so that it takes seconds.
        extra = {
            "prepare": ["--set=preparation.spacing=[6,6,8]"],
            "train": [*NARROW, "-d", "cpu"],
            "convert": ["-d", "cpu"],
        }
        if verb == "train":
            extra["train"].append("--set=preparation.spacing=[6,6,8]")
        result = subprocess.run(
            [sys.executable, "-m", "medcyclegan", verb, *rest, *extra.get(verb, [])],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert result.returncode == 0, f"{line}\n{result.stderr}"
    assert verbs == ["prepare", "train", "convert", "evaluate"]
    assert (tmp_path / "SCORES" / "summary.json").exists()


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
