"""The trainer of an experiment."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medcyclegan import config, ranks
from medcyclegan.config import Experiment
from medcyclegan.data.augment import Augmentation
from medcyclegan.data.patches import PLANES, PatchSpec, Sampling, Share, TrainingPatches, require_fitting
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.errors import InputError
from medcyclegan.factory.devices import wants_bf16
from medcyclegan.factory.networks import ct_windows, make_objective, predict_memory
from medcyclegan.factory.watching import attach_guards, attach_validation, describe_domains, make_writers
from medcyclegan.machine import free_memory
from medcyclegan.networks.discriminators.windowed import Windowed
from medcyclegan.training.mlflow import attach_mlflow
from medcyclegan.training.objectives import Objective
from medcyclegan.training.schedules import Schedule
from medcyclegan.training.trainer import TranslationTrainer


def make_trainer(
    experiment: Experiment,
    prepared: PreparedCohort,
    run: Path,
    device: torch.device,
    checkpoint: dict[str, Any] | None = None,
    handlers: Any = (),
    *,
    given: dict[str, Any] | None = None,
    newest: bool = True,
) -> TranslationTrainer:
    """The trainer of a resolved experiment, at its beginning or where `checkpoint` was saved.

    Args:
        handlers: further MONAI or ignite handlers to attach, in every process.
        given: the experiment before it was resolved, as plain data.
        newest: whether `checkpoint` is the run's newest, and not one to go back to.
    """
    settings, patches = experiment.training, experiment.patches
    if patches.size is None:
        raise ValueError("make_trainer takes a resolved experiment, whose patches.size is set")
    shape = PatchSpec(patches.size, patches.plane, patches.neighbors)
    _refuse_single_slices(prepared, patches)
    objective = make_objective(experiment, ct_windows(experiment))
    _require_large_enough(objective, patches.size)
    if objective.paired and prepared.preparations["a"][0].crop_margin is not None:
        raise InputError(
            "paired training needs both volumes of a patient on one grid, and preparation.crop_margin cuts each to its "
            "own body.",
            "Prepare without crop_margin.",
        )
    _require_memory(experiment, device)
    rank, processes = ranks.rank_and_world()
    batch, pieces = _shares(settings, processes, checkpoint)
    sampling = Sampling(
        shape,
        batch_size=batch,
        steps=settings.steps,
        seed=experiment.seed,
        minimum_body=patches.minimum_body,
        flip=patches.flip,
        matching=patches.matching,
        augmentation=_augmentation(experiment, prepared),
        spacing=prepared.spacing,
    )
    dataset = TrainingPatches(
        prepared.cases["a"],
        prepared.cases["b"],
        sampling,
        Share(rank, processes, pieces),
        prepared.common if objective.paired else None,
    )
    start = checkpoint["step"] if checkpoint else 0
    if checkpoint is None:
        require_fitting(dataset)
        random.seed(experiment.seed)  # nothing of ours draws from these two, but what users bring may
        np.random.seed(experiment.seed % 2**32)  # noqa: NPY002
    trainer = TranslationTrainer(
        device=device,
        objective=objective,
        loader=dataset.loader(start, workers=settings.workers, pin_memory=device.type == "cuda"),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        betas=settings.betas,
        learning_rate_discriminator=settings.learning_rate_discriminator,
        schedule=Schedule(
            settings.schedule,
            steps=settings.steps,
            decay_start=settings.decay_start,
            warmup=settings.warmup,
            plateau_patience=settings.plateau_patience,
            plateau_factor=settings.plateau_factor,
        ),
        gradient_clip=settings.gradient_clip,
        ema_decay=settings.ema_decay,
        bf16=wants_bf16(settings.precision, device),
        accumulate=pieces,
    )
    domains = describe_domains(experiment, prepared)
    recorder, checkpoints = None, None
    if ranks.is_first():
        recorder, checkpoints = make_writers(
            experiment, prepared, run, shape, domains, checkpoint, given, batch, newest
        )
    attach_guards(trainer, recorder, dataset, run, settings, experiment.allow)
    if recorder is not None:
        recorder.attach(trainer)
    attach_validation(trainer, recorder, checkpoints, prepared, shape, domains, settings, _contrasts(experiment))
    if checkpoints is not None:
        checkpoints.attach(trainer)
    if settings.mlflow is not None and ranks.is_first():
        attach_mlflow(trainer, settings.mlflow, run, experiment.to_dict(), settings.log_every)
    if checkpoint:
        trainer.restore(checkpoint)
    for handler in handlers:
        handler.attach(trainer)
    return trainer


def _contrasts(experiment: Experiment) -> dict[str, int]:
    return {name: domain.volumes for name, domain in experiment.domains}


def _shares(settings: config.Training, processes: int, checkpoint: dict[str, Any] | None) -> tuple[int, int]:
    """Patches of each domain that all processes take in a step, and the equal pieces that each works through them in.

    A run that goes on with another number of processes keeps its batch: the patches of every step, their order and what
    the image pools do stay the same.

    Raises:
        InputError: if that many processes cannot share the batch.
    """
    batch = settings.batch_size * settings.accumulate * processes
    if checkpoint:
        before = checkpoint.get("processes", 1)
        batch = checkpoint.get("batch", settings.batch_size * settings.accumulate * before)
        if batch % processes:
            possible = [str(n) for n in range(1, batch + 1) if batch % n == 0]
            raise InputError(
                f"the run takes {batch} patches of each domain in a step, which {processes} processes cannot share "
                "equally.",
                f"Start {', '.join(possible)} processes, or change training.batch_size with --allow-changes.",
            )
        if before != processes:
            warnings.warn(
                f"goes on with {processes} processes instead of {before}: each step's {batch} patches, their order and "
                "the image pools stay the same, but sums are formed in another order, so that the weights are equal to "
                "within rounding and no longer bit for bit",
                stacklevel=2,
            )
    share = batch // processes
    pieces = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= settings.batch_size)
    return batch, pieces


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


def _require_large_enough(objective: Objective, size: tuple[int, ...]) -> None:
    for name in objective.discriminators:
        network = objective.networks[name]
        smallest = getattr(network.discriminator if isinstance(network, Windowed) else network, "smallest", 1)
        if min(size) < smallest:
            raise InputError(
                f"patches.size is {list(size)}, and {name} needs at least {smallest} voxels along every axis.",
                "Give it fewer layers, or take larger patches.",
            )


def _require_memory(experiment: Experiment, device: torch.device) -> None:
    """Refuse at once what would run out of memory after a while."""
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
    """How each domain's patches are varied; empty if not at all."""
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
