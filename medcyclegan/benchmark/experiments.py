"""The experiments that are timed, data of their shape, and our trainer and the reference on them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medcyclegan import factory
from medcyclegan.benchmark.plain import PlainStep, plain_networks
from medcyclegan.config import Experiment, load, parse
from medcyclegan.errors import InputError
from medcyclegan.training.schedules import Schedule
from medcyclegan.training.trainer import Optimization, TranslationTrainer


def example_experiment(spatial_dims: int = 2, changes: dict[str, Any] | None = None) -> Experiment:
    """The paper's networks on one channel: ResNet-9 with 64 filters in 2D, with 6 blocks and 32 filters in 3D."""
    generator = {"filters": 64, "blocks": 9} if spatial_dims == 2 else {"filters": 32, "blocks": 6}
    content: dict[str, Any] = {
        "patches": {"spatial_dims": spatial_dims},
        "model": {"generator": generator, "discriminator": {}, "discriminator_windows": []},
    }
    for section, values in (changes or {}).items():
        content[section] = {**content.get(section, {}), **values}
    return parse(content, "the benchmark")


def experiment_for(
    path: Path | None, overrides: Iterable[str], allow: Iterable[str] = (), prepared: Path | None = None
) -> Experiment:
    """The experiment of a config file, or the example, on prepared data; overrides and allow as in `config.load`."""
    chosen = list(overrides)
    if path is None:
        dims = 3 if any(o.replace(" ", "") == "patches.spatial_dims=3" for o in chosen) else 2
        example = example_experiment(dims).model_dump(mode="json", exclude_unset=True)
        chosen = [f"{key}={json.dumps(value)}" for key, value in example.items()] + chosen
    experiment = load(path, chosen, allow=allow, data={"source": prepared})
    for name, domain in experiment.domains:
        if domain.volumes > 1:
            raise InputError(
                f"domains.{name}.contrasts names {domain.volumes} ({', '.join(domain.contrasts)}), and benchmark "
                "measures one volume per case.",
                "Leave them out.",
            )
    return experiment


def patch_size(given: str, experiment: Experiment, default: int) -> tuple[int, ...]:
    """The numbers of `--size`: one for all axes, or one each; without any the experiment's own, or the default."""
    dims = experiment.patches.spatial_dims
    if not given:
        return experiment.patches.size or (default if dims == 2 else 96,) * dims
    try:
        numbers = tuple(int(number) for number in given.split(","))
    except ValueError:
        raise InputError(f"--size takes 128 or numbers like 96,96,96, got '{given}'.") from None
    return numbers * dims if len(numbers) == 1 else numbers


def checked_device(experiment: Experiment, size: Sequence[int], batch: int, steps: int, device: str) -> torch.device:
    dims = experiment.patches.spatial_dims
    if len(size) != dims or min(size) < 16:
        raise InputError(
            f"--size is {dims} numbers of at least 16 for this experiment, got {','.join(map(str, size))}."
        )
    if batch < 1 or steps < 1:
        raise InputError(f"--batch and --steps are at least 1, got {batch} and {steps}.")
    if experiment.objective["_target_"] != "cyclegan":
        raise InputError(
            f"the reference is a CycleGAN, and this config trains {experiment.objective['_target_']}.",
            "Measure a config with objective cyclegan.",
        )
    return factory.choose_device(device)


def random_batch(
    experiment: Experiment, size: Sequence[int], batch: int, device: torch.device, seed: int = 1
) -> dict[str, Tensor]:
    """Smooth noise in [-1, 1], (B, C, *size) per domain: instance norm never meets a constant."""
    random = torch.Generator().manual_seed(seed)
    shape = (batch, 2 * experiment.patches.neighbors + 1, *size)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    made: dict[str, Tensor] = {}
    for domain in ("a", "b"):
        coarse = torch.rand(*shape[:2], *(max(2, n // 8) for n in size), generator=random) * 2 - 1
        made[domain] = F.interpolate(coarse, size=tuple(size), mode=mode, align_corners=False).to(device)
        made[f"body_{domain}"] = torch.ones(shape, dtype=torch.bool, device=device)
    return made


def bare_trainer(experiment: Experiment, device: torch.device, bf16: bool) -> TranslationTrainer:
    objective = factory.make_objective(experiment)
    return TranslationTrainer(
        device=device,
        objective=objective,
        loader=[],  # type: ignore[arg-type]
        schedule=Schedule(steps=100_000),
        optimization=Optimization(bf16=bf16),
    )


def plain_step(experiment: Experiment, device: torch.device) -> PlainStep:
    return PlainStep(plain_networks(factory.make_networks(experiment), experiment, "transposed").to(device))
