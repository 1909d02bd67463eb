"""Training as a whole: resuming bit for bit, stopping, what a run leaves, and the parts of a step."""

from __future__ import annotations

import csv
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from medcyclegan import config, factory
from medcyclegan.config import Experiment
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.errors import InputError
from medcyclegan.io.reader import read_volume
from medcyclegan.training.checkpoint import load_checkpoint
from medcyclegan.training.recorder import Panel, RunRecorder
from medcyclegan.training.schedules import linear_decay
from medcyclegan.training.trainer import ExponentialMovingAverage


class StopAt:
    """Ends a training as Ctrl-C does, while the given step is computed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Any) -> None:
        if engine.state.iteration == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Every place where two snapshots are not equal bit for bit."""
    if isinstance(a, Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict):
        assert set(a) == set(b), path
        return [found for key in a for found in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple):
        assert len(a) == len(b), path
        return [found for i, (x, y) in enumerate(zip(a, b, strict=True)) for found in differences(x, y, f"{path}/{i}")]
    return [] if a == b else [path]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_four_steps_equal_two_and_resume_and_two(experiment: Experiment, tmp_path: Path, precision: str) -> None:
    experiment = experiment.model_copy(
        update={"training": experiment.training.model_copy(update={"precision": precision})}
    )
    whole = factory.train(experiment, tmp_path / "whole", device="cpu")
    first = factory.train(experiment, tmp_path / "parts", device="cpu", handlers=[StopAt(2)])
    assert (first.interrupted, first.step) == (True, 2)
    second = factory.resume(tmp_path / "parts", device="cpu")
    assert (second.interrupted, second.step) == (False, 4)
    a, b = load_checkpoint(whole.run), load_checkpoint(second.run)
    assert a["step"] == 4
    assert differences(a, b) == []


def test_resumed_metrics_have_every_step_once(experiment: Experiment, tmp_path: Path) -> None:
    factory.train(experiment, tmp_path / "run", device="cpu", handlers=[StopAt(3)])
    factory.resume(tmp_path / "run", device="cpu")
    with (tmp_path / "run" / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert {"cycle_a", "identity_b", "adversarial_ab", "discriminator_a", "learning_rate"} <= set(rows[0])


def test_steps_done_again_after_a_crash_are_written_once(experiment: Experiment, tmp_path: Path) -> None:
    """The pictures of step 2 are validated before its checkpoint; the crash at step 4 throws steps 3 and 4 away."""
    every = {"picture_every": 1, "checkpoint_every": 2}
    experiment = experiment.model_copy(update={"training": experiment.training.model_copy(update=every)})

    class Crash:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_STARTED(once=4), self)

        def __call__(self, engine: Any) -> None:
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        factory.train(experiment, tmp_path / "run", device="cpu", handlers=[Crash()])
    assert load_checkpoint(tmp_path / "run")["step"] == 2
    with (tmp_path / "run" / "metrics.csv").open("a") as stream:
        stream.write("1,0.5")  # a line that the crash cut off
    factory.resume(tmp_path / "run", device="cpu")
    for name in ("metrics.csv", "validation.csv"):
        with (tmp_path / "run" / name).open(newline="") as stream:
            assert [row["step"] for row in csv.DictReader(stream)] == ["1", "2", "3", "4"], name


def test_a_finished_run_resumes_to_nothing(run: Path) -> None:
    before = (run / "checkpoint.pt").read_bytes()
    with pytest.warns(UserWarning, match="has done all its 4 steps already; go on with"):
        assert factory.resume(run, device="cpu").step == 4
    assert (run / "checkpoint.pt").read_bytes() == before


def test_training_changes_every_network_and_validates_the_pair(
    run: Path, prepared: PreparedCohort, experiment: Experiment
) -> None:
    content, fresh = load_checkpoint(run), factory.make_networks(experiment)
    for name, state in content["networks"].items():
        for key, value in state.items():
            assert not torch.equal(value, fresh[name].state_dict()[key]), f"{name}.{key}"
    with (run / "validation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert float(rows[-1]["mae"]) > 0
    assert len(list((run / "pictures").glob("*.png"))) == 2
    assert list((run / "tensorboard").iterdir())


def test_validation_is_the_error_inside_the_body_in_hu(run: Path, prepared: PreparedCohort) -> None:
    with (run / "validation.csv").open(newline="") as stream:
        last = float(list(csv.DictReader(stream))[-1]["mae"])
    a, b = prepared.cases["pairs_a"][0], prepared.cases["pairs_b"][0]
    translator = factory.load_translator(run, device="cpu")
    translator.window = replace(translator.window, bf16=False)
    mask = a.image_files[0].parents[1] / "mask" / "case_001.nii.gz"
    source = translator.read(a.image_files[0], read_volume(mask).numpy()[0] > 0)
    made = translator.predict(source).values
    # On the working grid, where 32767 is 1, and -1 to 1 are -1024 to 3071 HU.
    (real,) = np.load(b.folder / "image.npy") / 32767
    body = np.load(b.folder / "body.npy")
    assert made.shape == real.shape and 0 < body.mean() < 1
    error = np.abs(made.clip(-1, 1) - real)[body].mean() / 2 * 4095
    assert last == pytest.approx(float(error), rel=1e-3)


def test_run_folder_with_content_is_refused(run: Path, experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--resume"):
        factory.train(experiment, run, device="cpu")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        factory.train(experiment, tmp_path, device="cpu")


def test_generator_phase_leaves_discriminators_untouched(
    experiment: Experiment, prepared: PreparedCohort, tmp_path: Path
) -> None:
    resolved = factory.cohorts.resolve(experiment, prepared)
    trainer = factory.make_trainer(factory.Training(resolved, prepared, tmp_path, torch.device("cpu")))
    batch = next(iter(trainer.data_loader))
    with trainer._training("generators"):
        for direction in trainer.objective.directions:
            losses, _ = trainer.objective.generator_losses(batch, direction)
            torch.stack(list(losses.values())).sum().backward()
    networks = trainer.objective.networks
    assert all(p.grad is None for name in ("disc_a", "disc_b") for p in networks[name].parameters())
    assert all(p.grad is not None for name in ("gen_ab", "gen_ba") for p in networks[name].parameters())
    assert all(p.requires_grad for p in networks.parameters())


def test_a_recorder_that_cannot_begin_leaves_the_reason_visible(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where its folder should be")
    recorder = RunRecorder(tmp_path, log_every=1, picture_every=1, panel=Panel({}, {}))
    engine = Engine(lambda engine, batch: None)
    recorder.attach(engine)
    with pytest.raises(OSError, match="tensorboard"):
        engine.run([0])


def test_linear_decay() -> None:
    factors = [linear_decay(step, 10, 0.5) for step in range(11)]
    assert factors == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])
    assert linear_decay(9, 10, 1.0) == 1


def test_moving_average_equals_the_recursion() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    ema = ExponentialMovingAverage({"n": network}, decay=0.5)
    expected = float(network.weight.detach())
    for step, value in enumerate([2.0, -1.0, 4.0, 0.5, 3.0, 1.0, 7.0, 2.0, 5.0, 6.0], start=1):
        torch.nn.init.constant_(network.weight, value)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(ema.averages["n"].weight) == pytest.approx(expected, rel=1e-5)
    assert not ema.averages["n"].weight.requires_grad


def test_panel_puts_anterior_up_and_keeps_the_order() -> None:
    a, b = torch.full((1, 1, 2, 3), -1.0), torch.full((1, 1, 2, 3), -1.0)
    a[0, 0, 1, 2] = 1.0  # left, anterior
    panel = Panel({}, {"a": (-1, 1), "b": (-1, 1)}).picture({"real_a": a, "fake_b": b + 1})
    assert panel.shape == (6, 6)
    assert panel[0, 1] == 1 and panel[:3, :2].sum() == 1
    assert (panel[:3, 2:4] == 0.5).all()


def test_config_that_contradicts_the_prepared_data_is_refused(prepared: PreparedCohort, tmp_path: Path) -> None:
    given = {"data": {"source": str(prepared.folder)}, "preparation": {"spacing": [1, 1, 1]}}
    with pytest.raises(InputError, match=r"preparation\.spacing is \(1\.0, 1\.0, 1\.0\), but .* was prepared with"):
        factory.train(config.parse(given, "the test"), tmp_path / "run", device="cpu")
    given = {"data": {"source": str(prepared.folder)}, "domains": {"b": {"name": "T2", "modality": "MR"}}}
    with pytest.raises(InputError, match=r"domains\.b\.modality is MR"):
        factory.train(config.parse(given, "the test"), tmp_path / "run", device="cpu")


@pytest.mark.parametrize(("name", "message"), [("gpu", "allowed are auto"), ("cuda:97", "no usable device")])
def test_devices_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        factory.choose_device(name)


def test_patches_too_small_for_the_discriminator_are_refused(experiment: config.Experiment, tmp_path: Path) -> None:
    deep = experiment.model_dump(mode="json")
    deep["model"]["discriminator"]["layers"] = 4
    with pytest.raises(InputError, match=r"patches.size is \[32, 32\], and disc_a needs at least \d+ voxels"):
        factory.train(config.parse(deep, "the test"), tmp_path / "run", device="cpu")
