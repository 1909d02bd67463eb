"""Handlers attached to a trainer: curves, pictures, checkpoints, guards and validation."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medcyclegan import __version__, ranks
from medcyclegan.data.patches import PLANES, PatchSpec
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.data.probe import probe_patches
from medcyclegan.data.stored_case import StoredCase
from medcyclegan.data.windows import crop_or_pad, stack_of_slices
from medcyclegan.evaluation.metrics.mae import mae
from medcyclegan.factory.training import Training
from medcyclegan.inference.sliding_window import SlidingWindow, translate_volume
from medcyclegan.io.grid import on_one_grid
from medcyclegan.training.checkpoint import FILE_NAME, CheckpointHandler, load_checkpoint
from medcyclegan.training.finite import FiniteGuard
from medcyclegan.training.guards import Report, SaturationGuard, TranslationGuards, silent, undecided_loss
from medcyclegan.training.mlflow import attach_mlflow
from medcyclegan.training.probe import Probe, bodies_for
from medcyclegan.training.recorder import Panel, RunRecorder
from medcyclegan.training.trainer import TranslationTrainer
from medcyclegan.training.validation import Record, Validation
from medcyclegan.transforms.intensity import DISPLAY_HU, Scaler


def attach_monitors(trainer: TranslationTrainer, training: Training, describe_step: Callable[[int], str]) -> None:
    """Attach guards, curves and pictures, validation, checkpoints and MLflow, in this order.

    Guards and validation are in every process, since all must go back together, and schedules and early stopping follow
    the scores; only the first process writes and prints.

    Args:
        trainer: gets the handlers.
        training: what it is made from.
        describe_step: gives the cases and positions of a step.
    """
    recorder = _recorder(training) if ranks.is_first() else None
    checkpoints = _checkpoints(training) if ranks.is_first() else None
    report = recorder.report if recorder else silent
    _attach_guards(trainer, training, describe_step, report)
    if recorder is not None:
        recorder.saturation = _saturation_guard(trainer, report)
        recorder.attach(trainer)
    validation = Validation(
        every=training.experiment.training.validate_every or training.experiment.training.picture_every,
        guards=TranslationGuards(_probe(training), report),
        score_pairs=_score_pairs(training, trainer),
        save_best=checkpoints.save_best if checkpoints else lambda engine: None,
        record=_record(recorder, training) if recorder else lambda *_: None,
        patience=training.experiment.training.patience,
    )
    trainer.companions["validation"] = validation
    validation.attach(trainer)
    if checkpoints is not None:
        checkpoints.attach(trainer)
    uri = training.experiment.training.mlflow
    if uri is not None and ranks.is_first():
        attach_mlflow(trainer, uri, training.run, training.experiment.to_dict(), training.experiment.training.log_every)


def _recorder(training: Training) -> RunRecorder:
    settings = training.experiment.training
    window = {domain: _display_window(training.domains[domain]) for domain in ("a", "b")}
    return RunRecorder(
        training.run,
        log_every=settings.log_every,
        picture_every=settings.picture_every,
        panel=Panel(_picture_batch(training.prepared, training.patches), window, training.contrasts),
        batch_size=training.shares[0],
    )


def _checkpoints(training: Training) -> CheckpointHandler:
    settings, plain, before = training.experiment.training, training.experiment.to_dict(), training.checkpoint or {}
    header = {
        "program": _versions(),
        "experiment": plain,
        "given": before.get("given", training.given or plain),
        "changes": before.get("changes", []),
        "domains": training.domains,
        "cohort": training.prepared.fingerprint(),
        "processes": ranks.rank_and_world()[1],
        "batch": training.shares[0],
    }
    saved = training.step if training.checkpoint and training.newest else None
    path = training.run / FILE_NAME
    return CheckpointHandler(path, header, settings.checkpoint_every, settings.keep_checkpoints, saved)


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


def _attach_guards(
    trainer: TranslationTrainer, training: Training, describe_step: Callable[[int], str], report: Report
) -> None:
    finite = FiniteGuard(
        every=training.experiment.training.log_every,
        checkpoint=lambda: _checkpoint_for_all(training.run, training.experiment.allow),
        describe=describe_step,
        report=report,
    )
    trainer.companions["finite"] = finite
    finite.attach(trainer)


def _saturation_guard(trainer: TranslationTrainer, report: Report) -> SaturationGuard | None:
    """None where an undecided discriminator's loss has no lower bound."""
    adversarial = getattr(trainer.objective, "adversarial", None)
    undecided = undecided_loss(adversarial) if adversarial is not None else None
    if undecided is None:
        return None
    guard = SaturationGuard(undecided, report)
    trainer.companions["saturation"] = guard
    return guard


def _checkpoint_for_all(run: Path, allow: tuple[str, ...]) -> dict[str, Any] | None:
    """The run's newest checkpoint, the same in every process: none continues, and writes, before all have read it."""
    content = load_checkpoint(run, allow) if (run / FILE_NAME).exists() else None
    ranks.maximum(0)
    return content


def _probe(training: Training) -> Probe:
    patches = {domain: probe_patches(training.prepared.cases[domain], training.patches) for domain in ("a", "b")}
    real, bodies = ({domain: pair[part] for domain, pair in patches.items()} for part in (0, 1))
    return Probe(real, bodies, training.contrasts)


def _record(recorder: RunRecorder, training: Training) -> Record:
    """Writes the results of a validation, and histograms of its images in the target's unit."""

    def record(step: int, values: dict[str, float], probe: Probe, images: dict[str, Tensor]) -> None:
        shown = {f"real_{d}": (probe.real[d], probe.bodies[d]) for d in ("a", "b")}
        for name in ("fake_a", "fake_b"):
            if name in images:
                shown[name] = images[name], probe.bodies["a" if name == "fake_b" else "b"]
        histograms = {}
        for name, (image, body) in shown.items():
            domain = training.domains[name[-1]]
            unit = "HU" if _is_ct(domain) else "intensity"
            names = [f"{name} {channel['preparation']['name']}" for channel in domain["channels"]]
            names = names if len(names) > 1 else [name]
            for part, scaler, label in zip(image.chunk(len(names), dim=1), _scalers(domain), names, strict=True):
                inside = part[bodies_for(body, part)].numpy()
                histograms[f"{label}, {unit}"] = torch.from_numpy(scaler.undo(inside))
        recorder.validation(step, values, histograms)

    return record


def _score_pairs(training: Training, trainer: TranslationTrainer) -> Callable[[], dict[str, float]] | None:
    """Mean absolute error of the averaged generator over the pairs, inside the body, in the target's unit.

    It is the mean over the channels of the target.

    It is `evaluate`'s, on the working grid; against `convert` and `evaluate` it lacks the resampling onto the source
    grid and the rounding to whole HU.
    """
    cases, patches = training.prepared.cases, training.patches
    pairs = list(zip(cases["pairs_a"], cases["pairs_b"], strict=True))
    if not pairs:
        return None
    scalers = _scalers(training.domains["b"])
    window = SlidingWindow(patches.size, patches.plane, patches.neighbors, device=trainer.state.device)

    def error(a: StoredCase, b: StoredCase) -> float:
        generator = trainer.ema.averages["gen_ab"]
        values = translate_volume(generator, np.asarray(a.image), np.asarray(a.body), window, out_channels=len(scalers))
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
