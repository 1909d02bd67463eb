"""The trainer of an experiment."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from medcyclegan import config, ranks
from medcyclegan.config import Experiment
from medcyclegan.data.augment import Augmentation
from medcyclegan.data.patches import PLANES, Sampling, Share, TrainingPatches, require_fitting
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.errors import InputError
from medcyclegan.factory.devices import wants_bf16
from medcyclegan.factory.monitoring import attach_monitors
from medcyclegan.factory.networks import make_objective, predict_memory, require_patch_size
from medcyclegan.factory.training import Training
from medcyclegan.machine import free_memory
from medcyclegan.training.objectives import Objective
from medcyclegan.training.schedules import Schedule
from medcyclegan.training.trainer import Optimization, TranslationTrainer


def make_trainer(training: Training, handlers: Sequence[Any] = ()) -> TranslationTrainer:
    """The trainer of a training, with guards, curves, validation and checkpoints attached.

    Args:
        training: what is trained, on what, and from where.
        handlers: other MONAI or ignite handlers to attach, in every process.
    """
    experiment, device, settings = training.experiment, training.device, training.experiment.training
    _refuse_single_slices(training.prepared, experiment.patches)
    objective = make_objective(experiment)
    _require_fitting_objective(objective, training)
    _require_memory(experiment, device)
    dataset = _dataset(training, paired=objective.paired)
    if training.checkpoint is None:
        require_fitting(dataset)
        random.seed(experiment.seed)  # nothing of ours draws from these two, but what users bring may
        np.random.seed(experiment.seed % 2**32)  # noqa: NPY002
    trainer = TranslationTrainer(
        device=device,
        objective=objective,
        loader=dataset.loader(training.step, workers=settings.workers, pin_memory=device.type == "cuda"),
        schedule=Schedule(
            settings.schedule,
            steps=settings.steps,
            decay_start=settings.decay_start,
            warmup=settings.warmup,
            plateau_patience=settings.plateau_patience,
            plateau_factor=settings.plateau_factor,
        ),
        optimization=Optimization(
            learning_rate=settings.learning_rate,
            betas=settings.betas,
            learning_rate_discriminator=settings.learning_rate_discriminator,
            gradient_clip=settings.gradient_clip,
            ema_decay=settings.ema_decay,
            accumulate=training.shares[1],
            bf16=wants_bf16(settings.precision, device),
        ),
    )
    # Step n is item n - 1 of the data.
    attach_monitors(trainer, training, describe_step=lambda step: dataset.describe(step - 1))
    if training.checkpoint:
        trainer.restore(training.checkpoint)
    for handler in handlers:
        handler.attach(trainer)
    return trainer


def _dataset(training: Training, *, paired: bool) -> TrainingPatches:
    experiment, prepared, patches = training.experiment, training.prepared, training.experiment.patches
    sampling = Sampling(
        training.patches,
        batch_size=training.shares[0],
        steps=experiment.training.steps,
        seed=experiment.seed,
        minimum_body=patches.minimum_body,
        flip=patches.flip,
        matching=patches.matching,
        augmentation=_augmentation(experiment, prepared),
        spacing=prepared.spacing,
    )
    share = Share(*ranks.rank_and_world(), training.shares[1])
    common = prepared.common if paired else None
    return TrainingPatches(prepared.cases["a"], prepared.cases["b"], sampling, share, common)


def _refuse_single_slices(prepared: PreparedCohort, patches: config.Patches) -> None:
    """A 2D image is one axial slice: it has no neighbors, no other planes and no boxes."""
    if patches.spatial_dims == 2 and patches.plane == "axial" and not patches.neighbors:
        return
    single = [case.id for domain in ("a", "b") for case in prepared.cases[domain] if case.grid.shape[2] == 1]
    if single:
        raise InputError(
            f"{len(single)} volumes are single 2D images, for example {single[0]}.",
            "Take axial slices without neighbors: patches.spatial_dims 2, plane axial, neighbors 0.",
        )


def _require_fitting_objective(objective: Objective, training: Training) -> None:
    require_patch_size(objective, training.patches.size)
    if objective.paired and training.prepared.preparations["a"][0].crop_margin is not None:
        raise InputError(
            "paired training needs both volumes of a patient on one grid, and preparation.crop_margin cuts each to its "
            "own body.",
            "Prepare without crop_margin.",
        )


def _require_memory(experiment: Experiment, device: torch.device) -> None:
    """Refuse at the start a training that would run out of memory."""
    memory = predict_memory(experiment, bf16=wants_bf16(experiment.training.precision, device), device=device.type)
    if memory is None:
        return
    needed, free = memory.total, free_memory(device)
    if needed <= free:
        return
    remedies = ["training.batch_size"] if experiment.training.batch_size > 1 else []
    remedies += ["patches.size", "model.generator.filters"]
    if experiment.model.generator.get("checkpointing") is False:
        remedies.append("or set model.generator.checkpointing=true")
    raise InputError(
        f"a training step is expected to take {needed / 2**30:.1f} GiB, and {device} has {free / 2**30:.1f} GiB left.",
        f"Lower {', '.join(remedies)}.",
    )


def _augmentation(experiment: Experiment, prepared: PreparedCohort) -> dict[str, Augmentation]:
    """The augmentation of each domain's patches; empty if there is none."""
    settings = experiment.augmentation
    if settings == config.Augmentation():
        return {}
    varied = {}
    for domain, (preparation, *_) in prepared.preparations.items():
        spacing = list(preparation.spacing)
        if experiment.patches.spatial_dims == 2:
            del spacing[PLANES[experiment.patches.plane]]
        chosen = settings.model_dump()
        if preparation.modality != "MR":
            chosen |= {"bias_field": 0.0, "gamma": 0.0, "noise": 0.0}
        varied[domain] = Augmentation(
            spacing=tuple(spacing),
            inverted=preparation.mr_inverted,
            floor=preparation.mr_floor,
            contrasts=getattr(experiment.domains, domain).volumes,
            **chosen,
        )
    return varied
