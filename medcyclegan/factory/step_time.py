"""Time of a training step on this machine under its present load."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader

from medcyclegan.config import Experiment
from medcyclegan.factory.devices import wants_bf16
from medcyclegan.factory.networks import make_objective
from medcyclegan.training.schedules import Schedule
from medcyclegan.training.trainer import Optimization, TranslationTrainer

WARM_UP = 2  # steps that allocate memory, choose kernels and raise the clock, and are not counted
LEAST, MOST = 7, 40  # steps that are counted
ENOUGH_S = 20.0  # of counted steps; after this long no more than `LEAST` are taken


@dataclass(frozen=True)
class StepTime:
    """Seconds of one training step.

    Attributes:
        median: of the steps that were counted.
        low, high: their 10th and 90th percentile; far apart where other programs use the processor too.
        steps: how many were counted.
    """

    median: float
    low: float
    high: float
    steps: int


def measure_step(
    experiment: Experiment, device: torch.device, *, least: int = LEAST, most: int = MOST, enough: float = ENOUGH_S
) -> StepTime:
    """Time training steps on noise, after two to warm up.

    Args:
        experiment: its patches.size must be set.
        device: to train on.
        least, most: how many steps are counted.
        enough: seconds after which no more than `least` are.
    """
    patches, settings = experiment.patches, experiment.training
    if patches.size is None:
        raise ValueError("measure_step takes an experiment whose patches.size is set")
    trainer = TranslationTrainer(
        device=device,
        objective=make_objective(experiment),
        loader=DataLoader(cast(Any, [{}])),  # is not used
        schedule=Schedule(steps=WARM_UP + most),
        optimization=Optimization(bf16=wants_bf16(settings.precision, device)),
    )
    shapes = {d: (settings.batch_size, experiment.channels(d), *patches.size) for d in ("a", "b")}
    noise = torch.Generator().manual_seed(0)
    batch = {domain: torch.rand(shape, generator=noise) * 2 - 1 for domain, shape in shapes.items()}
    batch |= {f"body_{domain}": torch.ones(shape, dtype=torch.bool) for domain, shape in shapes.items()}
    seconds: list[float] = []
    for step in range(WARM_UP + most):
        started = time.perf_counter()
        trainer._iteration(trainer, batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if step >= WARM_UP:
            seconds.append(time.perf_counter() - started)
        if len(seconds) >= least and sum(seconds) >= enough:
            break
    low, median, high = (float(value) for value in np.percentile(seconds, (10, 50, 90)))
    return StepTime(median, low, high, len(seconds))
