"""Schedules: their numbers by hand, and what the config makes of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from medcyclegan import config, factory
from medcyclegan.config import Experiment
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.errors import InputError
from medcyclegan.training.schedules import Schedule


def factors(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.factor(step) for step in range(steps + 1)]


def test_cosine_falls_by_half_a_wave_after_its_start() -> None:
    found = factors(Schedule("cosine", steps=8, decay_start=0.5), 8)
    wave = [(1 + math.cos(math.pi * n / 4)) / 2 for n in range(5)]
    assert found == pytest.approx([1, 1, 1, 1, *wave])
    assert found[8] == pytest.approx(0)


def test_warmup_rises_linearly_and_the_rest_is_as_without() -> None:
    plain, warm = (factors(Schedule("linear", steps=10, warmup=w), 10) for w in (0, 3))
    assert warm[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert warm[4:] == plain[4:]


def test_plateau_cuts_after_the_patience_and_only_then() -> None:
    schedule = Schedule("plateau", steps=100, plateau_patience=2, plateau_factor=0.1)
    scores = [5, 4, 4.5, 4.1, 3, 3, 2.9999, 3.1, 3.1]
    cut = [schedule.observe(score) for score in scores]
    # 2.9999 is better by less than a thousandth and counts as no better.
    assert cut == [False, False, False, True, False, False, True, False, True]
    assert schedule.factor(50) == pytest.approx(1e-3)
    again = Schedule("plateau", steps=100, plateau_patience=2, plateau_factor=0.1)
    again.load_state_dict(schedule.state_dict())
    assert again.state_dict() == schedule.state_dict() and again.factor(50) == schedule.factor(50)


def test_other_schedules_leave_scores_alone() -> None:
    schedule = Schedule("linear", steps=10)
    assert not any(schedule.observe(1.0) for _ in range(50))
    assert schedule.factor(0) == 1


@pytest.mark.parametrize("wrong", [{"kind": "step"}, {"warmup": -1}, {"plateau_factor": 1.0}, {"decay_start": 2}])
def test_impossible_schedules_are_programmers_errors(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Schedule(**{"steps": 10, **wrong})  # type: ignore[arg-type]


def test_two_time_scales_and_warmup_from_the_config(
    experiment: Experiment, prepared: PreparedCohort, tmp_path: Path
) -> None:
    settings = {"learning_rate": 1e-4, "learning_rate_discriminator": 4e-4, "warmup": 1, "schedule": "cosine"}
    given = experiment.model_copy(update={"training": experiment.training.model_copy(update=settings)})
    trainer = factory.make_trainer(
        factory.Training(factory.cohorts.resolve(given, prepared), prepared, tmp_path, torch.device("cpu"))
    )
    rates = {role: optimizer.param_groups[0]["lr"] for role, optimizer in trainer.optimizers.items()}
    assert rates == pytest.approx({"generators": 0.5e-4, "discriminators": 2e-4})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": 10}, "warmup: 10 steps are no fewer than the training's 10"),
        ({"patience": 3, "validate_every": 4}, "patience: 3 validations, one in 4 steps, never pass within 10 steps"),
        ({"schedule": "plateau", "validate_every": 2}, "plateau_patience: 5 validations"),
        ({"gradient_clip": 0}, r"gradient_clip: .*greater than 0"),
        ({"schedule": "step"}, "schedule: .*'linear', 'cosine' or 'plateau'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config.parse({"training": {"steps": 10, **settings}}, "the test")
