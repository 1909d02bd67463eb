"""What watches a training: curves, pictures, checkpoints, guards and validation."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medcyclegan import __version__, config, ranks
from medcyclegan.config import Experiment
from medcyclegan.data.patches import PLANES, PatchSpec, TrainingPatches
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.data.probe import probe_patches
from medcyclegan.data.stored_case import StoredCase
from medcyclegan.data.windows import crop_or_pad, stack_of_slices
from medcyclegan.evaluation.metrics.mae import mae
from medcyclegan.inference.sliding_window import SlidingWindow, translate_volume
from medcyclegan.io.grid import on_one_grid
from medcyclegan.training.checkpoint import FILE_NAME, CheckpointHandler, load_checkpoint
from medcyclegan.training.guards import (
    FiniteGuard,
    SaturationGuard,
    TranslationGuards,
    bodies_for,
    silent,
    undecided_loss,
)
from medcyclegan.training.recorder import RunRecorder
from medcyclegan.training.trainer import TranslationTrainer
from medcyclegan.training.validation import Probe, Validation
from medcyclegan.transforms.intensity import DISPLAY_HU, Scaler

DESCRIBED = 64  # volumes of a domain whose features a checkpoint keeps


def make_writers(
    experiment: Experiment,
    prepared: PreparedCohort,
    run: Path,
    shape: PatchSpec,
    domains: dict[str, dict[str, Any]],
    checkpoint: dict[str, Any] | None,
    given: dict[str, Any] | None,
    batch: int,
    newest: bool,
) -> tuple[RunRecorder, CheckpointHandler]:
    """What one process writes for all: curves and pictures, and checkpoints."""
    settings = experiment.training
    recorder = RunRecorder(
        run,
        log_every=settings.log_every,
        picture_every=settings.picture_every,
        picture_batch=_picture_batch(prepared, shape),
        window={domain: _display_window(domains[domain]) for domain in ("a", "b")},
        batch_size=batch,
        contrasts={name: domain.volumes for name, domain in experiment.domains},
    )
    header = {
        "program": _versions(),
        "experiment": experiment.to_dict(),
        "given": checkpoint["given"] if checkpoint and "given" in checkpoint else given or experiment.to_dict(),
        "changes": checkpoint.get("changes", []) if checkpoint else [],
        "domains": domains,
        "cohort": prepared.fingerprint(),
        "processes": ranks.rank_and_world()[1],
        "batch": batch,
    }
    saved = checkpoint["step"] if checkpoint and newest else None
    return recorder, CheckpointHandler(
        run / FILE_NAME, header, settings.checkpoint_every, settings.keep_checkpoints, saved
    )


def describe_domains(experiment: Experiment, prepared: PreparedCohort) -> dict[str, dict[str, Any]]:
    """What a checkpoint says of each domain, so that converting needs nothing else."""
    return {
        domain: {
            "name": getattr(experiment.domains, domain).name,
            "channels": [
                {"preparation": asdict(preparation), "scaler": prepared.typical_scaler(domain, number).to_dict()}
                for number, preparation in enumerate(prepared.preparations[domain])
            ],
            "cohort": _features(prepared.cases[domain]),
        }
        for domain in ("a", "b")
    }


def _features(cases: Sequence[StoredCase]) -> list[dict[str, Any]]:
    """What the training volumes are like, of at most `DESCRIBED` of them, so that conversion can tell strangers."""
    every = max(1, -(-len(cases) // DESCRIBED))
    return [case.features.to_dict() for case in cases[::every]]


def _display_window(domain: dict[str, Any]) -> tuple[float, float]:
    if not _is_ct(domain):
        return (-1.0, 1.0)
    low, high = _scalers(domain)[0].apply(np.array(DISPLAY_HU))
    return float(low), float(high)


def _picture_batch(prepared: PreparedCohort, shape: PatchSpec) -> dict[str, Tensor]:
    """Two patches of each domain's first case, around 40 and 65 % of the body's extent across the slices.

    Of a pair both domains show the same places, by the body that they have in common.
    """
    batch = {}
    axis = PLANES[shape.plane]
    cases = {domain: (prepared.cases[f"pairs_{domain}"] or prepared.cases[domain])[0] for domain in ("a", "b")}
    bodies = {domain: np.asarray(case.body) for domain, case in cases.items()}
    if cases["a"].id == cases["b"].id and on_one_grid(cases["a"].grid, cases["b"].grid):
        common = bodies["a"] & bodies["b"]
        bodies = dict.fromkeys(bodies, common) if common.any() else bodies
    for domain, case in cases.items():
        image, body = np.asarray(case.image), bodies[domain]
        slices = np.flatnonzero(body.any(axis=tuple(i for i in range(3) if i != axis)))
        chosen = [int(slices[int(share * (len(slices) - 1))]) for share in (0.4, 0.65)]
        random = np.random.default_rng(0)
        if shape.spatial_dims == 3:
            patches = [crop_or_pad(image, body[None], shape.size, random)]
        else:
            stacks = [
                tuple(stack_of_slices(values, axis, k, shape.neighbors) for values in (image, body[None]))
                for k in chosen
            ]
            patches = [crop_or_pad(values, inside, shape.size, random) for values, inside in stacks]
        batch[domain] = torch.from_numpy(np.stack(patches))
    return batch


def attach_guards(
    trainer: TranslationTrainer,
    recorder: RunRecorder | None,
    dataset: TrainingPatches,
    run: Path,
    settings: config.Training,
    allow: tuple[str, ...] = (),
) -> None:
    """In every process of a training: they must all go back together. Only the one with a recorder speaks."""
    report = recorder.report if recorder else silent
    finite = FiniteGuard(
        every=settings.log_every,
        checkpoint=lambda: _checkpoint_for_all(run, allow),
        # Step n is item n - 1 of the data.
        describe=lambda step: dataset.describe(step - 1),
        report=report,
    )
    trainer.companions["finite"] = finite
    finite.attach(trainer)
    adversarial = getattr(trainer.objective, "adversarial", None)
    undecided = undecided_loss(adversarial) if adversarial is not None else None
    if recorder is not None and undecided is not None:
        recorder.saturation = SaturationGuard(undecided, report)
        trainer.companions["saturation"] = recorder.saturation


def _checkpoint_for_all(run: Path, allow: tuple[str, ...]) -> dict[str, Any] | None:
    """The run's newest checkpoint, the same in every process: none goes on, and writes, before all have read it."""
    content = load_checkpoint(run, allow) if (run / FILE_NAME).exists() else None
    ranks.largest(0)
    return content


def attach_validation(
    trainer: TranslationTrainer,
    recorder: RunRecorder | None,
    checkpoints: CheckpointHandler | None,
    prepared: PreparedCohort,
    shape: PatchSpec,
    domains: dict[str, dict[str, Any]],
    settings: config.Training,
    contrasts: dict[str, int],
) -> None:
    """In every process of a training: schedules and early stopping follow the scores. Only one of them writes."""
    report = recorder.report if recorder else silent
    patches = {domain: probe_patches(prepared.cases[domain], shape) for domain in ("a", "b")}
    probe = Probe(
        {d: image for d, (image, _) in patches.items()}, {d: body for d, (_, body) in patches.items()}, contrasts
    )
    scalers = {domain: _scalers(domains[domain]) for domain in ("a", "b")}

    def record(step: int, values: dict[str, float], images: dict[str, Tensor]) -> None:
        if recorder is None:
            return
        shown = {f"real_{d}": (probe.real[d], probe.bodies[d]) for d in ("a", "b")}
        for name in ("fake_a", "fake_b"):
            if name in images:
                shown[name] = images[name], probe.bodies["a" if name == "fake_b" else "b"]
        unit = {d: "HU" if _is_ct(domains[d]) else "intensity" for d in ("a", "b")}
        histograms = {}
        for name, (made, body) in shown.items():
            domain = name[-1]
            names = [f"{name} {channel['preparation']['name']}" for channel in domains[domain]["channels"]]
            names = names if len(names) > 1 else [name]
            for part, scaler, shown_as in zip(made.chunk(len(names), dim=1), scalers[domain], names, strict=True):
                values_inside = part[bodies_for(body, part)].numpy()
                histograms[f"{shown_as}, {unit[domain]}"] = torch.from_numpy(scaler.undo(values_inside))
        recorder.validation(step, values, histograms)

    validation = Validation(
        every=settings.validate_every or settings.picture_every,
        probe=probe,
        score_pairs=_score_pairs(prepared, trainer, shape, domains["b"]),
        guards=TranslationGuards(probe.real, probe.bodies, report, contrasts),
        schedule=trainer.schedule,
        save_best=checkpoints.save_best if checkpoints else lambda engine: None,
        record=record,
        report=report,
        patience=settings.patience,
    )
    trainer.companions["validation"] = validation
    validation.attach(trainer)


def _score_pairs(
    prepared: PreparedCohort, trainer: TranslationTrainer, shape: PatchSpec, target: dict[str, Any]
) -> Callable[[], dict[str, float]] | None:
    """Mean absolute error of the averaged generator over the pairs, inside the body, in the target's unit.

    It is the mean over the channels of the target.

    It is `evaluate`'s, on the working grid; against `convert` and `evaluate` it lacks the resampling onto the source
    grid and the rounding to whole HU.
    """
    pairs = list(zip(prepared.cases["pairs_a"], prepared.cases["pairs_b"], strict=True))
    if not pairs:
        return None
    scalers = _scalers(target)
    window = SlidingWindow(shape.size, shape.plane, shape.neighbors, device=trainer.state.device)

    def error(a: StoredCase, b: StoredCase) -> float:
        generator = trainer.ema.averages["gen_ab"]
        values = translate_volume(
            generator, np.asarray(a.image), np.asarray(a.body), window, out_contrasts=len(scalers)
        ).reshape(len(scalers), *a.body.shape)
        body = np.asarray(b.body)
        return float(
            np.mean(
                [
                    mae(own.scaler.undo(wanted), scaler.undo(made), body, (scaler.low, scaler.high)).value
                    for own, scaler, wanted, made in zip(b.channels, scalers, np.asarray(b.image), values, strict=True)
                ]
            )
        )

    return lambda: {"mae": float(np.mean([error(a, b) for a, b in pairs]))}


def _scalers(domain: dict[str, Any]) -> list[Scaler]:
    """Of the channels of a domain, in order."""
    return [Scaler.from_dict(channel["scaler"]) for channel in domain["channels"]]


def _is_ct(domain: dict[str, Any]) -> bool:
    return bool(domain["channels"][0]["preparation"]["modality"] == "CT")


def _versions() -> dict[str, str]:
    packages = ("torch", "monai", "nibabel", "SimpleITK", "numpy")
    return {"medcyclegan": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
