"""Validation: the proxy's laws, the best checkpoint, early stopping, and what is recorded."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medcyclegan import config, factory
from medcyclegan.config import Experiment
from medcyclegan.convert import Options, convert
from medcyclegan.data.patches import PatchSpec
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.data.probe import probe_patches
from medcyclegan.errors import InputError
from medcyclegan.training import mlflow
from medcyclegan.training.checkpoint import load_checkpoint
from medcyclegan.training.probe import Probe
from medcyclegan.training.schedules import Schedule
from medcyclegan.training.validation import (
    Validation,
    distribution_distance,
    relative_error,
    structure_disagreement,
    unpaired_scores,
)


@pytest.fixture(scope="module")
def probe(prepared: PreparedCohort) -> Probe:
    patches = {domain: probe_patches(prepared.cases[domain], PatchSpec((48, 48))) for domain in ("a", "b")}
    return Probe({d: p[0] for d, p in patches.items()}, {d: p[1] for d, p in patches.items()})


def test_cycle_is_0_for_the_same_and_1_for_the_best_constant(probe: Probe) -> None:
    real, body = probe.real["a"], probe.bodies["a"]
    assert relative_error(real, real, body) == 0
    median = float(np.sort(real[body].numpy())[(int(body.sum()) - 1) // 2])
    assert relative_error(torch.full_like(real, median), real, body) == pytest.approx(1, rel=1e-5)


def test_structure_is_0_for_the_same_and_the_inverted_and_1_for_strangers(probe: Probe) -> None:
    real, body = probe.real["a"], probe.bodies["a"]
    assert structure_disagreement(real, real, body) == pytest.approx(0, abs=1e-6)
    assert structure_disagreement(real, 0.3 - 0.5 * real, body) == pytest.approx(0, abs=1e-3)
    strangers = torch.rand(real.shape, generator=torch.Generator().manual_seed(0))
    assert structure_disagreement(real, strangers, body) == pytest.approx(1, abs=0.05)
    moved = [structure_disagreement(real, real.roll(n, dims=2), body) for n in (1, 3)]
    assert 0.05 < moved[0] < moved[1]


def test_distribution_is_wasserstein_over_the_spread() -> None:
    sample = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    spread = math.sqrt(2 / math.pi)  # mean absolute deviation of a normal distribution
    assert distribution_distance(sample.flip(0), sample) == 0
    assert distribution_distance(sample[:10_000] + 0.3, sample) == pytest.approx(0.3 / spread, rel=0.05)
    assert distribution_distance(torch.full((7,), float(sample.median())), sample) == pytest.approx(1, rel=0.01)


def test_the_proxy_is_the_mean_and_0_for_the_perfect(probe: Probe) -> None:
    perfect = {"fake_b": probe.real["a"], "cycle_a": probe.real["a"], "cycle_b": probe.real["b"]}
    same = Probe({"a": probe.real["a"], "b": probe.real["b"]}, probe.bodies)
    scores = unpaired_scores(same, perfect)
    assert scores["cycle"] == 0 and scores["structure"] == pytest.approx(0, abs=1e-6)
    assert scores["proxy"] == pytest.approx(sum(scores[n] for n in ("cycle", "structure", "distribution")) / 3)
    one_way = unpaired_scores(same, {"fake_b": probe.real["a"]})
    assert "cycle" not in one_way
    assert one_way["proxy"] == pytest.approx((one_way["structure"] + one_way["distribution"]) / 2)


def test_probes_are_the_same_every_time_and_differ_among_themselves(prepared: PreparedCohort) -> None:
    for shape in (PatchSpec((32, 40)), PatchSpec((16, 16, 16)), PatchSpec((32, 40), neighbors=1)):
        image, body = probe_patches(prepared.cases["a"], shape)
        again, _ = probe_patches(prepared.cases["a"], shape)
        assert torch.equal(image, again)
        assert image.shape == body.shape == (2 if len(shape.size) == 3 else 8, shape.slices, *shape.size)
        assert bool((image[~body] == -1).all()) and bool(body.flatten(1).any(dim=1).all())
        assert not torch.equal(image[0], image[-1])


def make_engine() -> Any:
    engine = SimpleNamespace(
        state=SimpleNamespace(iteration=0, epoch_length=1000, device=torch.device("cpu")),
        ema=SimpleNamespace(averages={"gen_ab": torch.nn.Identity()}),
        best=None,
        ended=False,
    )
    engine.terminate = lambda: setattr(engine, "ended", True)
    return engine


class NoGuards:
    raised = False

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.heard: list[tuple[int, str]] = []

    def report(self, step: int, name: str, _: Any) -> None:
        self.heard.append((step, name))

    def observe(self, step: int, translated: dict[str, Any]) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}


def test_best_patience_and_plateau_follow_the_scores(probe: Probe) -> None:
    scores = [5.0, 4.0, 4.5, 3.0, math.nan, 3.5, 3.1, 2.0]
    guards, saved = NoGuards(probe), []
    series: Iterator[float] = iter(scores)
    schedule = Schedule("plateau", steps=1000, plateau_patience=2)
    validation = Validation(
        every=10,
        score_pairs=lambda: {"mae": next(series)},
        guards=guards,  # type: ignore[arg-type]
        save_best=lambda engine: saved.append(engine.state.iteration),
        record=lambda *_: None,
        patience=3,
    )
    engine = make_engine()
    engine.schedule = schedule
    for step in range(1, 75):
        engine.state.iteration = step
        guards.raised = step == 20  # a guard objects to the score 4
        validation(engine)
        if engine.ended:
            break
    assert saved == [10, 30, 40]
    assert engine.best == {"step": 40, "score": 3.0, "name": "mae"}
    assert guards.heard == [(60, "plateau"), (70, "patience")]
    assert (step, validation.exhausted) == (70, True)


def test_early_stop_best_and_conversion_with_it(
    experiment: Experiment, prepared: PreparedCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = iter([3.0, 2.0, 4.0, 1.0])
    monkeypatch.setattr(factory.monitoring, "_score_pairs", lambda *_: lambda: {"mae": next(series)})
    content = experiment.to_dict()
    content["training"] |= {"validate_every": 1, "patience": 1, "checkpoint_every": 4}
    with pytest.warns(UserWarning, match="step 3: patience: mae was no better in 1 validations than 2 at step 2"):
        result = factory.train(config.parse(content, "the test"), tmp_path / "run", device="cpu")
    assert (result.step, result.stopped_early, result.interrupted) == (3, True, False)
    assert result.best == {"step": 2, "score": 2.0, "name": "mae"}
    assert (load_checkpoint(result.run)["step"], load_checkpoint(result.run / "best.pt")["step"]) == (3, 2)
    with pytest.raises(InputError, match="stopped early at step 3"):
        factory.resume(result.run, device="cpu")
    last, best = (factory.load_translator(result.run, device="cpu", checkpoint=which) for which in ("last", "best"))
    assert (last.description[-6:], best.description[-6:]) == ("step 3", "step 2")
    for key, value in load_checkpoint(result.run / "best.pt")["ema"]["gen_ab"].items():
        assert torch.equal(best.generator.state_dict()[key], value)
    mr = prepared.cases["pairs_a"][0].image_files[0]
    done = convert(result.run, [mr], tmp_path / "sct", Options(device="cpu", which="best"))
    assert done.model == f"{result.run / 'best.pt'} (model run step 2)"


def test_a_resumed_training_checks_its_data(run: Path, prepared: PreparedCohort, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(prepared.folder, tmp_path / "prepared"))
    raw = bytearray((copied / "b/ct_001/image.npy").read_bytes())
    raw[-1000] ^= 1
    (copied / "b/ct_001/image.npy").write_bytes(raw)
    overrides = [f"data.source={copied}", "training.steps=6"]
    with pytest.raises(InputError, match=r"b/ct_001/image\.npy is damaged or was changed"):
        factory.resume(run, new=factory.NewSettings(overrides=overrides, allowed=True), device="cpu")


def test_a_word_or_a_run_without_a_best_checkpoint(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checkpoint is 'last' or 'best', got 'newest'"):
        factory.load_translator(run, device="cpu", checkpoint="newest")
    (tmp_path / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    with pytest.raises(InputError, match=r"holds no best\.pt"):
        factory.load_translator(tmp_path, device="cpu", checkpoint="best")


def test_without_pairs_the_proxy_chooses(experiment: Experiment, prepared: PreparedCohort, tmp_path: Path) -> None:
    alone = replace(prepared, cases={**prepared.cases, "pairs_a": (), "pairs_b": ()})
    training = factory.Training(factory.cohorts.resolve(experiment, alone), alone, tmp_path, torch.device("cpu"))
    factory.runs._run(factory.make_trainer(training), training)
    with (tmp_path / "validation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {"cycle", "structure", "distribution", "proxy", "spread_ab", "order_ab"} <= set(rows[0])
    assert "mae" not in rows[0]
    scores = {int(row["step"]): float(row["proxy"]) for row in rows}
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["step"] == min(scores, key=lambda step: scores[step])
    assert best["best"]["name"] == "proxy"
    assert best["best"]["score"] == pytest.approx(min(scores.values()), rel=1e-4)


def test_the_mae_is_that_of_evaluate_on_the_working_grid(run: Path, prepared: PreparedCohort) -> None:
    content = load_checkpoint(run)
    experiment = config.parse(content["experiment"], "the run")
    generator = factory.networks.make_network("gen_ab", experiment)
    generator.load_state_dict(content["ema"]["gen_ab"])
    a, b = prepared.cases["pairs_a"][0], prepared.cases["pairs_b"][0]
    made = factory.monitoring.translate_volume(
        generator.eval(), np.asarray(a.image), np.asarray(a.body), factory.monitoring.SlidingWindow((32, 32))
    )
    hu, truth = ((values.astype(float) + 1) / 2 * (3071 + 1024) - 1024 for values in (made, np.asarray(b.image)))
    expected = np.abs(hu - truth)[:, np.asarray(b.body)].mean()
    with (run / "validation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert float(rows[-1]["mae"]) == pytest.approx(expected, rel=1e-4)


def test_tensorboard_holds_histograms_in_hu_and_the_panel(run: Path) -> None:
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert {"in the body/fake_b, HU", "in the body/real_b, HU", "in the body/real_a, intensity"} <= set(
        tags["histograms"]
    )
    last = board.Histograms("in the body/real_b, HU")[-1].histogram_value
    assert -1024 <= last.min < 200 < last.max <= 3071
    assert "panel" in tags["images"]
    assert {"train/images_per_s", "validation/mae", "train/cycle_a"} <= set(tags["scalars"])


def test_mlflow_that_is_not_installed_is_asked_for(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow, "find_spec", lambda name: None)
    content = experiment.to_dict()
    content["training"]["mlflow"] = str(tmp_path / "board")
    with pytest.raises(InputError, match="package mlflow is not installed"):
        factory.train(config.parse(content, "the test"), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
