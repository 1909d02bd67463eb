"""Trainings that are killed, and trainings of several processes: the same weights in the end."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from test_training import differences
from torch import Tensor

from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.training.checkpoint import load_checkpoint

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}


def script(action: str, prepared: PreparedCohort, folder: Path) -> dict[str, Any]:
    command = [sys.executable, HERE / "processes.py", action, prepared.folder, folder]
    # Processes that wait for a dead one would wait for days; the limit only ends them.
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=HERE.parent, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def steps(run: Path) -> list[str]:
    with (run / "metrics.csv").open(newline="") as stream:
        return [row["step"] for row in csv.DictReader(stream)]


def apart(a: Any, b: Any) -> float:
    """The largest difference of two states."""
    if isinstance(a, Tensor):
        return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    assert set(a) == set(b)
    return max(apart(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(prepared: PreparedCohort, tmp_path: Path) -> None:
    found = script("kill", prepared, tmp_path)
    assert (found["whole"], found["last"]) == (0, 0)
    assert len(found["kills"]) >= 20
    assert found["kills"].count("saving") >= 5 and found["kills"].count("between") >= 5
    assert found["left"] == []
    a, b = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "killed")
    assert differences(a, b) == []
    assert steps(tmp_path / "killed") == steps(tmp_path / "whole") == [str(step) for step in range(1, 91)]


@pytest.fixture(scope="module")
def joined(prepared: PreparedCohort, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("joined")
    return script("join", prepared, folder), folder


@pytest.mark.slow
def test_two_processes_equal_one_on_the_joint_batch(joined: tuple[dict[str, Any], Path]) -> None:
    """Six steps of four patches: at once, or in two pieces by each of two processes."""
    found, folder = joined
    assert found["codes"]["one"] == [0] and found["codes"]["two"] == [0, 0]
    one, two = load_checkpoint(folder / "one"), load_checkpoint(folder / "two")
    assert apart(one["networks"], two["networks"]) < 1e-10
    assert apart(one["ema"], two["ema"]) < 1e-10
    assert two["processes"] == 2 and one["batch"] == two["batch"] == 4
    for domain in ("a", "b"):
        pools = [content["objective"]["pools"][domain] for content in (one, two)]
        assert torch.equal(pools[0]["random"], pools[1]["random"])
        assert max(apart(x, y) for x, y in zip(*(pool["images"] for pool in pools), strict=True)) < 1e-10
    # One process wrote, and the losses that it wrote are those of all.
    assert steps(folder / "two") == ["1", "2", "3", "4", "5", "6"]
    (x, y) = ([json.loads(line) for line in (folder / f"{run}.jsonl").open()] for run in ("one", "two"))
    assert len(x) == len(y) == 6
    assert all(alone == pytest.approx(joint, abs=1e-10, rel=0) for alone, joint in zip(x, y, strict=True))
    with (folder / "two" / "metrics.csv").open(newline="") as stream:
        for row, losses in zip(csv.DictReader(stream), y, strict=True):
            # six digits
            assert {name: float(row[name]) for name in losses} == pytest.approx(losses, rel=6e-6)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_training_which_then_goes_on(joined: tuple[dict[str, Any], Path]) -> None:
    found, folder = joined
    for run in ("again", "alone"):
        assert found["codes"][f"{run} died"] == [1, -9]
    assert "another process of this training has ended, at step 4" in found["log"] and "--resume" in found["log"]
    assert found["codes"]["again"] == [0, 0] and found["codes"]["alone"] == [0]
    # As many processes as before give the same bits, another number the same to within rounding.
    two, again, alone = (load_checkpoint(folder / run) for run in ("two", "again", "alone"))
    assert differences(two, again) == []
    assert alone["processes"] == 1 and alone["batch"] == 4
    assert apart(two["networks"], alone["networks"]) < 1e-10


@pytest.mark.slow
def test_torchrun_ends_with_a_message_and_the_run_goes_on(prepared: PreparedCohort, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {
        "data.source": prepared.folder,
        "model.generator": "{filters: 4, blocks: 1}",
        "model.discriminator": "{filters: 4, layers: 1}",
        "patches.size": "[32, 32]",
        "training.steps": 100000,
        "training.checkpoint_every": 1,
        "training.log_every": 1,
    }
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    begun = [*launcher, "-m", "medcyclegan", "train", "-o", str(run), "-d", "cpu", *given]
    process = subprocess.Popen(
        begun, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=HERE.parent
    )
    deadline = time.monotonic() + 300
    while not (run / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = [child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == "1"]
    assert len(workers) == 1
    workers[0].kill()
    _, error = process.communicate(timeout=1200)  # only ends what would wait for days
    assert process.returncode not in (0, None)
    assert "another process of this training has ended" in error and f"train --resume {run}" in error
    assert "find_unused_parameters" not in error
    done = load_checkpoint(run)["step"]
    shorter = ["--set", f"training.steps={done + 2}", "--allow-changes"]
    resumed = subprocess.run(
        [sys.executable, "-m", "medcyclegan", "train", "--resume", str(run), "-d", "cpu", "--json", *shorter],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
        cwd=HERE.parent,
    )
    assert json.loads(resumed.stdout)["step"] == done + 2
    assert "1 processes instead of 2" in resumed.stderr
    assert f"training.steps: 100000 -> {done + 2}" in resumed.stderr
