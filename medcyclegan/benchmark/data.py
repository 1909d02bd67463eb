"""Patches read from a prepared folder, against the consumption of training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from medcyclegan import factory
from medcyclegan.benchmark.experiments import bare_trainer, checked_device, random_batch
from medcyclegan.benchmark.timing import device_name, interleaved
from medcyclegan.config import Experiment
from medcyclegan.data.patches import PatchSpec, Sampling, TrainingPatches
from medcyclegan.data.prepared import open_prepared
from medcyclegan.errors import InputError
from medcyclegan.factory.devices import wants_bf16
from medcyclegan.registry import OBJECTIVES


def benchmark_data(
    experiment: Experiment, *, size: Sequence[int], batch: int = 1, steps: int = 10, device: str = "auto"
) -> dict[str, Any]:
    """Patches per second of the loader from memory-mapped volumes, and what our training step consumes.

    Returns:
        Plain data; `speedup` is patches read over patches consumed per second, to be at least 5.
    """
    where = checked_device(experiment, size, batch, steps, device)
    factory.require_patch_size(factory.make_objective(experiment), size)
    if experiment.data.source is None:
        raise InputError("benchmark data reads a prepared folder.", "Give one as DATA.")
    prepared = open_prepared(experiment.data.source)
    patches = experiment.patches
    count = max(steps * 20, 100)
    sampling = Sampling(
        PatchSpec(tuple(size), patches.plane, patches.neighbors),
        batch_size=batch,
        steps=count,
        seed=experiment.seed,
        minimum_body=patches.minimum_body,
        flip=patches.flip,
        matching=patches.matching,
        spacing=prepared.spacing,
    )
    common = prepared.common if OBJECTIVES.class_of(experiment.objective).paired else None
    dataset = TrainingPatches(prepared.cases["a"], prepared.cases["b"], sampling, common=common)
    workers = experiment.training.workers
    started = time.perf_counter()
    for _ in dataset.loader(workers=workers, pin_memory=where.type == "cuda"):
        pass
    read = 2 * batch * count / (time.perf_counter() - started)
    data = random_batch(experiment, size, batch, where)
    trainer = bare_trainer(experiment, where, wants_bf16(experiment.training.precision, where))
    seconds = interleaved({"ours": lambda: trainer._iteration(trainer, data)}, steps, where)[0]["ours"]
    return {
        "verb": "data",
        "device": device_name(where),
        "cores": torch.get_num_threads(),
        "size": list(size),
        "batch": batch,
        "workers": workers,
        "read_patches_per_s": read,
        "consumed_patches_per_s": 2 * batch / seconds,
        "speedup": round(read * seconds / (2 * batch), 3),
    }
