"""The only place where a config becomes objects: prepared cohorts, networks, trainings, translators."""

from __future__ import annotations

import os
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medcyclegan import __version__, config, ranks
from medcyclegan.atomic import atomic_file
from medcyclegan.changes import changes, replaced, require_allowed
from medcyclegan.config import Experiment
from medcyclegan.data.assembly import assemble
from medcyclegan.data.augment import Augmentation
from medcyclegan.data.datalist import Cohort, from_folders, from_json
from medcyclegan.data.patches import PLANES, Shape, UnpairedPatches, crop_or_pad, require_fitting, stack_of_slices
from medcyclegan.data.prepared import PreparedCohort, StoredCase, open_prepared, prepare_cohort
from medcyclegan.data.probe import probe_patches
from medcyclegan.errors import InputError, raise_all
from medcyclegan.evaluation.metrics.mae import mae
from medcyclegan.inference.ensemble import Ensemble
from medcyclegan.inference.planes import translate_volume
from medcyclegan.inference.quality import features
from medcyclegan.inference.statistics import Statistics
from medcyclegan.inference.translator import Translator
from medcyclegan.io.pictures import GrayLevels
from medcyclegan.machine import free_memory
from medcyclegan.networks.discriminators.windowed import Windowed
from medcyclegan.networks.instance_norm import use_channels_last
from medcyclegan.progress import Progress, Silent
from medcyclegan.registry import (
    ADVERSARIAL_LOSSES,
    DISCRIMINATORS,
    GENERATORS,
    OBJECTIVES,
    RECONSTRUCTION_LOSSES,
    STRUCTURE_LOSSES,
)
from medcyclegan.training.checkpoint import BEST_NAME, FILE_NAME, CheckpointHandler, load_checkpoint
from medcyclegan.training.guards import FiniteGuard, SaturationGuard, TranslationGuards, silent, undecided_loss
from medcyclegan.training.memory import StepMemory, predict_step_memory
from medcyclegan.training.mlflow import attach_mlflow, require_mlflow
from medcyclegan.training.objectives import Objective
from medcyclegan.training.recorder import RunRecorder
from medcyclegan.training.schedules import Schedule
from medcyclegan.training.trainer import CycleGANTrainer, bf16_is_safe
from medcyclegan.training.validation import Probe, Validation, require_not_exhausted
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.pipeline import Preparation

NETWORKS = {"gen_ab": GENERATORS, "gen_ba": GENERATORS, "disc_a": DISCRIMINATORS, "disc_b": DISCRIMINATORS}
PLAN_NAME = "plan.yaml"  # of a run whose config was planned
LARGEST_WINDOW = {2: 256, 3: 96}  # voxels; spatial dimensions -> what fits a small GPU
DESCRIBED = 64  # volumes of a domain whose features a checkpoint keeps
MR_FLOOR = -0.5  # of inverted MR: fat, the brightest, then lies near soft tissue of CT and not near air
LEFTOVERS_S = 10.0  # readers of a training that was killed notice it after five seconds, and hold its lock until then
DISPLAY_HU = (-250.0, 1250.0)  # shown black and white in picture panels: soft tissue and bone both visible


@dataclass(frozen=True)
class TrainingResult:
    """What a training left; `left_out` is the share of the slices of "a" and "b" that were never shown."""

    run: Path
    checkpoint: Path
    step: int
    steps: int
    seconds: float
    precision: str
    interrupted: bool
    left_out: dict[str, float]
    stopped_early: bool = False  # by training.patience
    best: dict[str, Any] | None = None  # "step", "score" and "name" of the score


def choose_device(name: str) -> torch.device:
    """The device of a `--device` argument; "auto" takes a GPU if there is one.

    Raises:
        InputError: for an unknown name, or a device that this machine does not have.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *(["mps"] if mps else [])]
    known = name in ("cpu", "cuda", "mps") or (name.startswith("cuda:") and name[5:].isdigit())
    if not known:
        raise InputError(f"there is no device '{name}'; allowed are auto, cpu, cuda, cuda:N and mps.")
    if name not in here and not (name == "cuda" and cuda):
        raise InputError(
            f"this machine has no usable device '{name}'; it has: {', '.join(here)}.", "Use --device auto."
        )
    return torch.device(name)


def cohort(experiment: Experiment, progress: Progress | None = None) -> Cohort:
    """The volumes that `experiment.data` names."""
    data = experiment.data
    modalities = {domain: getattr(experiment.domains, domain).modality for domain in ("a", "b")}
    if data.datalist is not None:
        found = from_json(data.datalist, data.fold)
    elif data.root is not None:
        assembly = assemble(
            data.root,
            layout=data.layout,
            modalities=modalities,
            contrasts={"a": data.contrast_a, "b": data.contrast_b},
            patient=data.patient,
            progress=progress,
        )
        for note in assembly.notes:
            warnings.warn(note, stacklevel=2)
        found = assembly.cohort()
    elif data.a is not None and data.b is not None:
        found = from_folders(data.a, data.b, masks_a=data.masks_a, masks_b=data.masks_b, pairs=data.pairs)
    else:
        raise InputError(
            "the experiment names no data.",
            "Set data.prepared, or data.root, or data.a and data.b, or data.datalist (in the config or with --set).",
        )
    windows = {domain: data.picture_window if modality == "CT" else None for domain, modality in modalities.items()}
    return replace(found, levels={d: GrayLevels(window, data.picture_gray) for d, window in windows.items()})


def prepare(experiment: Experiment, output: Path, progress: Progress | None = None, workers: int = 1) -> PreparedCohort:
    """Prepare the cohort that `experiment.data` names into `output`, in `workers` processes."""
    settings = experiment.preparation
    modalities = {"a": experiment.domains.a.modality, "b": experiment.domains.b.modality}
    inverted = set(modalities.values()) == {"MR", "CT"} if settings.mr_inverted is None else settings.mr_inverted
    return prepare_cohort(
        cohort(experiment, progress),
        output,
        modalities=modalities,
        spacing=settings.spacing,
        ct_window=settings.ct_window,
        mr_percentiles=settings.mr_percentiles,
        mr_inverted=inverted,
        mr_floor=(MR_FLOOR if inverted else -1.0) if settings.mr_floor is None else settings.mr_floor,
        interpolation=settings.interpolation,
        crop_margin=settings.crop_margin,
        mr_n4_shrink=settings.mr_n4_shrink,
        mr_standardization=settings.mr_standardization,
        mr_exclude_blanked=settings.mr_exclude_blanked,
        register_pairs=settings.register_pairs,
        workers=workers,
        progress=progress,
    )


def left_out(experiment: Experiment, prepared: PreparedCohort) -> dict[str, float]:
    """Domain -> share of the slices with body that a training of `experiment` would never show, see `data.patches`."""
    patches = experiment.patches
    shape = Shape((16,) * patches.spatial_dims, patches.plane)
    dataset = UnpairedPatches(
        prepared.cases["a"],
        prepared.cases["b"],
        shape=shape,
        batch_size=1,
        steps=1,
        seed=experiment.seed,
        minimum_body=patches.minimum_body,
        matching=patches.matching,
        spacing=prepared.preparations["a"].spacing,
    )
    return dataset.left_out


def require_new_run(run: Path) -> None:
    """Refuse a run folder that holds something; a preparation that was interrupted in it goes on where it stopped.

    Raises:
        InputError: saying how to continue a run.
    """
    if run.exists() and (not run.is_dir() or _visible(run) - {"prepared", PLAN_NAME}):
        known = any((run / name).exists() for name in (FILE_NAME, "config.yaml"))
        remedy = "Continue it with `medcyclegan train --resume RUN`, or give" if known else "Give"
        raise InputError(f"{run} exists and is not empty.", f"{remedy} a new folder as output.")


def train(
    experiment: Experiment,
    run: Path,
    *,
    device: str = "auto",
    progress: Progress | None = None,
    handlers: Any = (),
    workers: int = 1,
) -> TrainingResult:
    """Train from the beginning into a new run folder; `workers` processes prepare what is not prepared yet.

    Raises:
        InputError: if the run folder holds something already, or the experiment cannot be carried out.
    """
    where = choose_device(ranks.own_device(device))
    if experiment.training.mlflow is not None:
        require_mlflow()
    with ranks.joined(where):

        def begin() -> PreparedCohort:
            require_new_run(run)
            return _prepared(experiment, run, progress or Silent(), workers)

        prepared = ranks.first_then_all(begin, lambda: open_prepared(experiment.data.prepared or run / "prepared"))
        resolved = _resolve(experiment, prepared)
        trainer = make_trainer(resolved, prepared, run, where, handlers=handlers, given=_given(experiment))
        if ranks.is_first():
            _save_config(resolved, run)
        return _run(trainer, resolved, run)


def resume(
    run: Path,
    *,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    allow_changes: bool = False,
    device: str = "auto",
    handlers: Any = (),
    allow: Iterable[str] = (),
) -> TrainingResult:
    """Continue a training from its last checkpoint as if it had not stopped.

    Args:
        run: the folder of the run; or a checkpoint in it, to go back to that.
        config_file, overrides: the experiment to go on with, as for a new one; by default the run's own.
        allow_changes: go on although that differs from the run's own. Only `changes.CHANGEABLE` may differ; a change is
            warned of and recorded in the checkpoint.
        device, handlers: as in `train`. With other processes than before, a step still takes the same patches.
        allow: as in `load_translator`.

    Raises:
        InputError: if there is nothing to continue, or it cannot be continued as asked.
    """
    where = choose_device(ranks.own_device(device))
    folder = run if run.is_dir() else run.parent
    with ranks.joined(where):
        if run.is_dir() and not (run / FILE_NAME).exists() and (run / "config.yaml").exists():
            # It was stopped before its first checkpoint; the seed makes the same beginning again.
            checkpoint, step = None, 0
            own = config.load(run / "config.yaml")
            given = own.to_dict()
        else:
            checkpoint = load_checkpoint(run, allow)
            if "optimizers" not in checkpoint:
                raise InputError(
                    f"{run} was imported and holds no state of a training to continue.", "It can only convert."
                )
            own, step = config.parse(checkpoint["experiment"], f"the config in {run}"), checkpoint["step"]
            given = checkpoint.get("given", checkpoint["experiment"])
        resolved = own.to_dict()
        new = _given(config.load(config_file, overrides, base=None if config_file else resolved))
        found = changes(resolved, given, new)
        require_allowed(found, str(run), allow=allow_changes)
        experiment = config.parse(replaced(resolved, found), "the changed experiment")
        if experiment.training.steps < step:
            raise InputError(
                f"{run} has done {step} steps already, and training.steps is {experiment.training.steps}.",
                "Give more steps, or go back with --resume to one of the run's older checkpoints.",
            )
        prepared = open_prepared(Path(str(experiment.data.prepared)))
        _resolve(experiment, prepared)
        if checkpoint and checkpoint.get("cohort", prepared.fingerprint()) != prepared.fingerprint():
            raise InputError(
                f"{prepared.folder} does not hold the volumes that {run} was trained on, or not as they were prepared.",
                "Name the right folder with --set data.prepared=FOLDER --allow-changes, or train a new run.",
            )
        for change in found:
            warnings.warn(f"goes on from step {step} with {change}", stacklevel=2)
        if checkpoint:
            checkpoint["given"] = replaced(given, [c for c in found if c.key != "data.prepared"])
            if any(change.key == "data.prepared" for change in found):
                checkpoint["given"]["data"] = experiment.to_dict()["data"]
            record = [{"step": step, "key": c.key, "old": c.old, "new": c.new} for c in found]
            checkpoint["changes"] = [*checkpoint.get("changes", []), *record]
            if {"training.batch_size", "training.accumulate"} & {change.key for change in found}:
                checkpoint.pop("batch", None)
        trainer = make_trainer(
            experiment, prepared, folder, where, checkpoint, handlers, newest=run.is_dir() or run.name == FILE_NAME
        )
        validation = trainer.companions["validation"]
        if isinstance(validation, Validation):
            require_not_exhausted(validation, step)
        if ranks.is_first() and (found or not (folder / "config.yaml").exists()):
            _save_config(experiment, folder)
        return _run(trainer, experiment, folder)


def predict_memory(experiment: Experiment, *, bf16: bool, device: str) -> StepMemory | None:
    """What a training step will take; None where it cannot be told.

    Args:
        experiment: resolved, at least its patches.size.
        bf16: whether convolutions run in bfloat16.
        device: "cpu" or "cuda".
    """
    patches = experiment.patches
    if patches.size is None:
        raise ValueError("predict_memory takes an experiment whose patches.size is set")
    channels = 2 * patches.neighbors + 1
    try:
        return predict_step_memory(
            lambda: make_objective(experiment, _windows(experiment)),
            experiment.training.batch_size,
            channels,
            patches.size,
            bf16=bf16,
            together=device == "cpu" and torch.get_num_threads() > 1,
        )
    except (RuntimeError, NotImplementedError, TypeError) as error:
        # A network from elsewhere may look at values, which fake tensors do not have.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"the memory that training takes cannot be predicted: {reason}", stacklevel=2)
        return None


def measure_step(experiment: Experiment, device: torch.device, steps: int) -> float:
    """Median seconds of a training step on noise, after one to warm up; patches.size must be set."""
    patches, settings = experiment.patches, experiment.training
    if patches.size is None:
        raise ValueError("measure_step takes an experiment whose patches.size is set")
    trainer = CycleGANTrainer(
        device=device,
        objective=make_objective(experiment, _windows(experiment)),
        loader=DataLoader(cast(Any, [{}])),  # is not asked
        steps=steps + 1,
        bf16=_wants_bf16(settings.precision, device),
    )
    shape = (settings.batch_size, 2 * patches.neighbors + 1, *patches.size)
    noise = torch.Generator().manual_seed(0)
    batch = {domain: torch.rand(shape, generator=noise) * 2 - 1 for domain in ("a", "b")}
    batch |= {f"body_{domain}": torch.ones(shape, dtype=torch.bool) for domain in ("a", "b")}
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        trainer._iteration(trainer, batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def make_networks(experiment: Experiment) -> nn.ModuleDict:
    """The objective's networks with fresh weights; the same seed gives the same weights."""
    torch.manual_seed(experiment.seed)
    objective = OBJECTIVES.class_of(experiment.objective)
    return nn.ModuleDict({name: _make_network(name, experiment, objective.paired) for name in objective.required})


def lay_out(network: nn.Module, device: torch.device) -> None:
    """Lay the weights out in memory as the device computes fastest with them."""
    if device.type == "cpu":
        use_channels_last(network)


def make_objective(experiment: Experiment, windows: dict[str, tuple[float, float] | None]) -> Objective:
    """The objective with fresh networks.

    Args:
        windows: domain -> the HU that are -1 and 1; None for a domain that is not CT.
    """
    losses = experiment.losses
    structure = {
        leaf["_target_"].rpartition(".")[2]: STRUCTURE_LOSSES.build(leaf, windows=windows) for leaf in losses.structure
    }
    example = torch.full((1, 2 * experiment.patches.neighbors + 1, *[32] * experiment.patches.spatial_dims), -1.0)
    objective: Objective = OBJECTIVES.build(
        experiment.objective,
        networks=make_networks(experiment),
        adversarial=ADVERSARIAL_LOSSES.build(losses.adversarial),
        reconstruction=RECONSTRUCTION_LOSSES.build(losses.reconstruction),
        structure=structure,
        example={"a": example, "b": example},
        seed=experiment.seed,
    )
    return objective


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
) -> CycleGANTrainer:
    """The trainer of a resolved experiment, at its beginning or where `checkpoint` was saved.

    Args:
        handlers: further MONAI or ignite handlers to attach, in every process.
        given: the experiment before it was resolved, as plain data.
        newest: whether `checkpoint` is the run's newest, and not one to go back to.
    """
    settings, patches = experiment.training, experiment.patches
    if patches.size is None:
        raise ValueError("make_trainer takes a resolved experiment, whose patches.size is set")
    shape = Shape(patches.size, patches.plane, patches.neighbors)
    _refuse_single_slices(prepared, patches)
    objective = make_objective(experiment, _windows(experiment))
    _require_large_enough(objective, patches.size)
    if objective.paired and prepared.preparations["a"].crop_margin is not None:
        raise InputError(
            "paired training needs both volumes of a patient on one grid, and preparation.crop_margin cuts each to its "
            "own body.",
            "Prepare without crop_margin.",
        )
    _require_memory(experiment, device)
    rank, processes = ranks.here()
    batch, pieces = _shares(settings, processes, checkpoint)
    dataset = UnpairedPatches(
        prepared.cases["a"],
        prepared.cases["b"],
        shape=shape,
        batch_size=batch,
        steps=settings.steps,
        seed=experiment.seed,
        rank=rank,
        processes=processes,
        pieces=pieces,
        minimum_body=patches.minimum_body,
        flip=patches.flip,
        matching=patches.matching,
        paired=objective.paired,
        augmentation=_augmentation(experiment, prepared),
        spacing=prepared.preparations["a"].spacing,
    )
    start = checkpoint["step"] if checkpoint else 0
    if checkpoint is None:
        require_fitting(dataset)
        random.seed(experiment.seed)  # nothing of ours draws from these two, but what users bring may
        np.random.seed(experiment.seed % 2**32)  # noqa: NPY002
    trainer = CycleGANTrainer(
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
        bf16=_wants_bf16(settings.precision, device),
        accumulate=pieces,
    )
    domains = _describe_domains(experiment, prepared)
    recorder, checkpoints = None, None
    if ranks.is_first():
        recorder, checkpoints = _writers(experiment, prepared, run, shape, domains, checkpoint, given, batch, newest)
    _attach_guards(trainer, recorder, dataset, run, settings)
    if recorder is not None:
        recorder.attach(trainer)
    _attach_validation(trainer, recorder, checkpoints, prepared, shape, domains, settings)
    if checkpoints is not None:
        checkpoints.attach(trainer)
    if settings.mlflow is not None and ranks.is_first():
        attach_mlflow(trainer, settings.mlflow, run, experiment.to_dict(), settings.log_every)
    if checkpoint:
        trainer.restore(checkpoint)
    for handler in handlers:
        handler.attach(trainer)
    return trainer


def _writers(
    experiment: Experiment,
    prepared: PreparedCohort,
    run: Path,
    shape: Shape,
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
    )
    header = {
        "program": _versions(),
        "experiment": experiment.to_dict(),
        "given": checkpoint["given"] if checkpoint and "given" in checkpoint else given or experiment.to_dict(),
        "changes": checkpoint.get("changes", []) if checkpoint else [],
        "domains": domains,
        "cohort": prepared.fingerprint(),
        "processes": ranks.here()[1],
        "batch": batch,
    }
    saved = checkpoint["step"] if checkpoint and newest else None
    return recorder, CheckpointHandler(
        run / FILE_NAME, header, settings.checkpoint_every, settings.keep_checkpoints, saved
    )


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


def _given(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain data whose paths mean the same wherever the program is started."""
    content = experiment.to_dict()
    for key in config.DATA_PATHS:
        if content["data"][key] is not None:
            content["data"][key] = str(Path(content["data"][key]).resolve())
    return content


def _visible(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if not entry.name.startswith(".partial-")}


def _save_config(experiment: Experiment, run: Path) -> None:
    with atomic_file(run / "config.yaml") as temporary:
        config.save(experiment, temporary)


def load_translator(
    path: str | Path,
    *,
    direction: str = "ab",
    device: str = "auto",
    ensemble: Ensemble | None = None,
    others: Sequence[str | Path] = (),
    statistics: Statistics = "window",
    allow: Iterable[str] = (),
    checkpoint: str = "last",
) -> Translator:
    """Load a run or checkpoint as a function from volume to volume.

    Args:
        path: the output folder of `medcyclegan train`, or a checkpoint file.
        direction: "ab" (source to target, MR to CT by default) or "ba".
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        ensemble: planes and flips to fuse; default: one translation along the plane of the training.
        others: further runs or checkpoints to fuse with.
        statistics: of instance norms, see `inference.statistics`.
        allow: modules or packages of your own from which the checkpoint may name a network; importing runs their code.
        checkpoint: of a run, "last" or "best", that of the best validation; of no meaning for a checkpoint file. It
            holds for `others` too.

    Raises:
        InputError: if the path holds no checkpoint of ours, or names a network from elsewhere.

    Examples:
        >>> sct = load_translator("runs/brain")("mr.nii.gz")  # doctest: +SKIP
        >>> sct.save("sct.nii.gz")  # doctest: +SKIP
    """
    if direction not in ("ab", "ba"):
        raise InputError(f"direction is 'ab' or 'ba', got '{direction}'.")
    where = choose_device(device)
    path = choose_checkpoint(Path(path), checkpoint)
    content = load_checkpoint(path, allow)
    experiment = config.parse(content["experiment"], f"the config in {path}")
    name = f"gen_{direction}"
    if name not in content["ema"]:
        raise InputError(
            f"{path} holds no generator for the direction '{direction}'; it has {', '.join(content['ema'])}."
        )
    generator = _make_network(name, experiment)
    generator.load_state_dict(content["ema"][name])
    source, target = (content["domains"][domain] for domain in direction)
    if experiment.patches.size is None:
        raise InputError(f"{path}: the checkpoint's config has no patches.size; it is damaged.")
    back = f"gen_{direction[::-1]}"
    backward = None
    if back in content["ema"]:
        backward = _make_network(back, experiment)
        backward.load_state_dict(content["ema"][back])
        backward.eval().requires_grad_(False).to(where)
    for network in (generator, backward):
        if network is not None:
            lay_out(network, where)
    return Translator(
        generator.eval().requires_grad_(False).to(where),
        preparation=Preparation(**source["preparation"]),
        scaler=Scaler.from_dict(target["scaler"]),
        modality=target["preparation"]["modality"],
        window=experiment.patches.size,
        device=where,
        description=_description(target["name"], Path(path), content["step"]),
        spatial_dims=experiment.patches.spatial_dims,
        plane=experiment.patches.plane,
        neighbors=experiment.patches.neighbors,
        statistics=statistics,
        bf16=bf16_is_safe(where),
        ensemble=ensemble,
        backward=backward,
        cohort=source.get("cohort"),
        others=[
            load_translator(
                other, direction=direction, device=device, statistics=statistics, allow=allow, checkpoint=checkpoint
            )
            for other in others
        ],
    )


def choose_checkpoint(path: Path, which: str) -> Path:
    """The file of a run's "last" or "best" checkpoint; a file is given back as it is.

    Raises:
        InputError: for another word, or a run without a best checkpoint.
    """
    if which not in ("last", "best"):
        raise InputError(f"checkpoint is 'last' or 'best', got '{which}'.")
    if not path.is_dir() or which == "last":
        return path
    if not (path / BEST_NAME).is_file():
        raise InputError(
            f"the run {path} holds no {BEST_NAME}: nothing was validated yet, or a guard objected every time.",
            "Take --checkpoint last.",
        )
    return path / BEST_NAME


def _description(target: str, path: Path, step: int) -> str:
    """What the header of a result says; NIfTI has 79 characters, and what matters most comes first."""
    run = path.resolve() if path.is_dir() else path.resolve().parent
    return f"synthetic {target}, not for clinical use, medcyclegan {__version__}, model {run.name} step {step}"


def load_untrained(path: str | Path, *, device: str = "auto") -> Translator:
    """The translator that a run began with: the same preparation and network with its initial weights."""
    translator = load_translator(path, device=device)
    experiment = config.parse(load_checkpoint(Path(path))["experiment"], f"the config in {path}")
    translator.generator.load_state_dict(make_networks(experiment)["gen_ab"].state_dict())
    return translator


def _prepared(experiment: Experiment, run: Path, progress: Progress, workers: int) -> PreparedCohort:
    if experiment.data.prepared is not None:
        return open_prepared(experiment.data.prepared)
    return prepare(experiment, run / "prepared", progress, workers)


def _resolve(experiment: Experiment, prepared: PreparedCohort) -> Experiment:
    """Fill in what the prepared cohort decides, and refuse what contradicts it."""
    problems = []
    settings = experiment.preparation
    for domain in ("a", "b"):
        done = prepared.preparations[domain]
        wanted = getattr(experiment.domains, domain).modality
        if wanted != done.modality:
            problems.append(
                f"domains.{domain}.modality is {wanted}, but {prepared.folder} was prepared as {done.modality}"
            )
    done = prepared.preparations["a"]  # both domains share all but the modality
    made_with = {
        field: getattr(prepared if field == "register_pairs" else done, field)
        for field in config.Preparation.model_fields
    }
    for field in settings.model_fields_set:
        value, made = getattr(settings, field), made_with[field]
        if value is not None and value != made:
            problems.append(f"preparation.{field} is {value}, but {prepared.folder} was prepared with {made}")
    raise_all(problems, "the config does not fit the prepared data; change it, or prepare again:")
    if prepared.failed and not experiment.data.skip_failed:
        raise_all(
            [f"{name}: {reason}" for name, reason in prepared.failed.items()],
            "some volumes could not be prepared; mend or remove them and prepare again, or train without them with "
            "data.skip_failed: true (--set data.skip_failed=true):",
        )
    for name, reason in prepared.failed.items():
        warnings.warn(f"not trained on, because it could not be prepared: {name}: {reason}", stacklevel=2)
    for line in prepared.warnings:
        warnings.warn(line, stacklevel=2)
    return experiment.model_copy(
        update={
            "data": config.Data(prepared=prepared.folder.resolve(), skip_failed=experiment.data.skip_failed),
            "preparation": config.Preparation(**made_with),
            "patches": experiment.patches.model_copy(
                update={"size": experiment.patches.size or _window_for(prepared, experiment.patches)}
            ),
        }
    )


def _window_for(prepared: PreparedCohort, patches: config.Patches) -> tuple[int, ...]:
    """The smallest window, in multiples of 16 voxels up to a limit, that holds every body."""
    extents = []
    for case in (*prepared.cases["a"], *prepared.cases["b"]):
        body = case.body
        occupied = [np.flatnonzero(body.any(axis=tuple(i for i in range(3) if i != axis))) for axis in range(3)]
        extents.append([int(indices[-1] - indices[0]) + 1 for indices in occupied])
    limit = LARGEST_WINDOW[patches.spatial_dims]
    window = [int(min(limit, -(-largest // 16) * 16)) for largest in np.max(extents, axis=0)]
    if patches.spatial_dims == 2:
        del window[PLANES[patches.plane]]
    return tuple(window)


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
    memory = predict_memory(experiment, bf16=_wants_bf16(experiment.training.precision, device), device=device.type)
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
    for domain, preparation in prepared.preparations.items():
        spacing = list(preparation.spacing)
        if experiment.patches.spatial_dims == 2:
            del spacing[PLANES[experiment.patches.plane]]
        chosen = settings.model_dump()
        if preparation.modality != "MR":
            chosen |= {"bias_field": 0.0, "gamma": 0.0, "noise": 0.0}
        varied[domain] = Augmentation(
            spacing=tuple(spacing), inverted=preparation.mr_inverted, floor=preparation.mr_floor, **chosen
        )
    return varied


def _windows(experiment: Experiment) -> dict[str, tuple[float, float] | None]:
    """Domain -> the HU that are -1 and 1, None for a domain that is not CT."""
    window = experiment.preparation.ct_window
    return {name: window if domain.modality == "CT" else None for name, domain in experiment.domains}


def _make_network(name: str, experiment: Experiment, paired: bool = False) -> nn.Module:
    """One network with fresh weights; the discriminator of a paired objective sees the source too."""
    channels = 2 * experiment.patches.neighbors + 1
    dims = experiment.patches.spatial_dims
    network: nn.Module
    if name.startswith("gen"):
        leaf = experiment.model.generator
        network = NETWORKS[name].build(leaf, in_channels=channels, out_channels=channels, spatial_dims=dims)
        return network
    judged = channels * (2 if paired else 1)
    leaf, windows = experiment.model.discriminator, experiment.model.discriminator_windows
    if not windows or getattr(experiment.domains, name[-1]).modality != "CT":
        network = NETWORKS[name].build(leaf, in_channels=judged, spatial_dims=dims)
        return network
    scaled = Scaler(*experiment.preparation.ct_window).apply(np.array(windows))
    seen = judged + channels * len(windows)
    network = NETWORKS[name].build(leaf, in_channels=seen, spatial_dims=dims)
    return Windowed(network, [(float(low), float(high)) for low, high in scaled], channels)


def _wants_bf16(precision: str, device: torch.device) -> bool:
    return precision == "bf16" or (precision == "auto" and bf16_is_safe(device))


def _describe_domains(experiment: Experiment, prepared: PreparedCohort) -> dict[str, dict[str, Any]]:
    """What a checkpoint says of each domain, so that converting needs nothing else."""
    return {
        domain: {
            "name": getattr(experiment.domains, domain).name,
            "preparation": asdict(prepared.preparations[domain]),
            "scaler": prepared.typical_scaler(domain).to_dict(),
            "cohort": _features(prepared.cases[domain]),
        }
        for domain in ("a", "b")
    }


def _features(cases: Sequence[StoredCase]) -> list[dict[str, Any]]:
    """What the training volumes are like, of at most `DESCRIBED` of them, so that conversion can tell strangers."""
    every = max(1, -(-len(cases) // DESCRIBED))
    return [features(case) for case in cases[::every]]


def _display_window(domain: dict[str, Any]) -> tuple[float, float]:
    if domain["preparation"]["modality"] != "CT":
        return (-1.0, 1.0)
    low, high = Scaler.from_dict(domain["scaler"]).apply(np.array(DISPLAY_HU))
    return float(low), float(high)


def _picture_batch(prepared: PreparedCohort, shape: Shape) -> dict[str, Tensor]:
    """Two patches of each domain's first case, around 40 and 65 % of the body's extent across the slices."""
    batch = {}
    axis = PLANES[shape.plane]
    for domain in ("a", "b"):
        case = (prepared.cases[f"pairs_{domain}"] or prepared.cases[domain])[0]
        image, body = np.asarray(case.image), np.asarray(case.body)
        slices = np.flatnonzero(body.any(axis=tuple(i for i in range(3) if i != axis)))
        chosen = [int(slices[int(share * (len(slices) - 1))]) for share in (0.4, 0.65)]
        random = np.random.default_rng(0)
        if shape.spatial_dims == 3:
            patches = [crop_or_pad(image[None], body[None], shape.size, random)]
        else:
            stacks = [
                (stack_of_slices(image, axis, k, shape.neighbors), stack_of_slices(body, axis, k, shape.neighbors))
                for k in chosen
            ]
            patches = [crop_or_pad(values, inside, shape.size, random) for values, inside in stacks]
        batch[domain] = torch.from_numpy(np.stack(patches))
    return batch


def _attach_guards(
    trainer: CycleGANTrainer,
    recorder: RunRecorder | None,
    dataset: UnpairedPatches,
    run: Path,
    settings: config.Training,
) -> None:
    """In every process of a training: they must all go back together. Only the one with a recorder speaks."""
    report = recorder.report if recorder else silent
    finite = FiniteGuard(
        every=settings.log_every,
        checkpoint=lambda: _checkpoint_for_all(run),
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


def _checkpoint_for_all(run: Path) -> dict[str, Any] | None:
    """The run's newest checkpoint, the same in every process: none goes on, and writes, before all have read it."""
    content = load_checkpoint(run) if (run / FILE_NAME).exists() else None
    ranks.largest(0)
    return content


def _attach_validation(
    trainer: CycleGANTrainer,
    recorder: RunRecorder | None,
    checkpoints: CheckpointHandler | None,
    prepared: PreparedCohort,
    shape: Shape,
    domains: dict[str, dict[str, Any]],
    settings: config.Training,
) -> None:
    """In every process of a training: schedules and early stopping follow the scores. Only one of them writes."""
    report = recorder.report if recorder else silent
    patches = {domain: probe_patches(prepared.cases[domain], shape) for domain in ("a", "b")}
    probe = Probe({d: image for d, (image, _) in patches.items()}, {d: body for d, (_, body) in patches.items()})
    scalers = {domain: Scaler.from_dict(domains[domain]["scaler"]) for domain in ("a", "b")}

    def record(step: int, values: dict[str, float], images: dict[str, Tensor]) -> None:
        if recorder is None:
            return
        shown = {f"real_{d}": probe.real[d][probe.bodies[d]] for d in ("a", "b")}
        for name in ("fake_a", "fake_b"):
            if name in images:
                shown[name] = images[name][probe.bodies["a" if name == "fake_b" else "b"]]
        unit = {d: "HU" if domains[d]["preparation"]["modality"] == "CT" else "intensity" for d in ("a", "b")}
        recorder.validation(
            step,
            values,
            {f"{n}, {unit[n[-1]]}": torch.from_numpy(scalers[n[-1]].undo(s.numpy())) for n, s in shown.items()},
        )

    validation = Validation(
        every=settings.validate_every or settings.picture_every,
        probe=probe,
        score_pairs=_score_pairs(prepared, trainer, shape, domains["b"]),
        guards=TranslationGuards(probe.real, probe.bodies, report),
        schedule=trainer.schedule,
        save_best=checkpoints.save_best if checkpoints else lambda engine: None,
        record=record,
        report=report,
        patience=settings.patience,
    )
    trainer.companions["validation"] = validation
    validation.attach(trainer)


def _score_pairs(
    prepared: PreparedCohort, trainer: CycleGANTrainer, shape: Shape, target: dict[str, Any]
) -> Callable[[], dict[str, float]] | None:
    """Mean absolute error of the averaged generator over the pairs, inside the body, in the target's unit.

    It is `evaluate`'s, on the working grid; against `convert` and `evaluate` it lacks the resampling onto the source
    grid and the rounding to whole HU.
    """
    pairs = list(zip(prepared.cases["pairs_a"], prepared.cases["pairs_b"], strict=True))
    if not pairs:
        return None
    scaler = Scaler.from_dict(target["scaler"])

    def error(a: StoredCase, b: StoredCase) -> float:
        device = trainer.state.device
        values = translate_volume(
            trainer.ema.averages["gen_ab"],
            np.asarray(a.image),
            np.asarray(a.body),
            window=shape.size,
            device=device,
            spatial_dims=shape.spatial_dims,
            plane=shape.plane,
            neighbors=shape.neighbors,
        )
        reference = b.scaler.undo(np.asarray(b.image))
        limits = (float(scaler.low), float(scaler.high))
        return mae(reference, scaler.undo(values), np.asarray(b.body), limits).value

    return lambda: {"mae": float(np.mean([error(a, b) for a, b in pairs]))}


def _run(trainer: CycleGANTrainer, experiment: Experiment, run: Path) -> TrainingResult:
    loader: Any = trainer.data_loader
    started = time.monotonic()
    try:
        with _alone(run) if ranks.is_first() else nullcontext():
            trainer.run()
    except RuntimeError as error:
        if not ranks.is_loss(error):
            raise
        raise ranks.LostProcess(
            f"another process of this training has ended, at step {trainer.state.iteration}; the last checkpoint is "
            "whole. Continue it, with any number of processes, with "
            f"`torchrun --nproc-per-node N -m medcyclegan train --resume {run}`."
        ) from error
    return TrainingResult(
        run=run,
        checkpoint=run / FILE_NAME,
        step=trainer.state.iteration,
        steps=experiment.training.steps,
        seconds=time.monotonic() - started,
        precision="bf16" if trainer.bf16 else "float32",
        interrupted=trainer.interrupted,
        left_out=loader.dataset.left_out,
        stopped_early=getattr(trainer.companions.get("validation"), "exhausted", False),
        best=trainer.best,
    )


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Keep a second training out of a run, and clear away what an earlier one was writing when it was cut off.

    Raises:
        InputError: if another process trains this run.
    """
    if sys.platform == "win32":  # which has no such locks
        yield
        return
    import fcntl

    folder = os.open(run, os.O_RDONLY)
    try:
        deadline = time.monotonic() + LEFTOVERS_S
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"another process is training {run} at this moment.", "Wait for it, or stop it first."
                    ) from None
                time.sleep(0.5)
            except OSError:  # a file system without locks
                break
        for left in run.glob(".partial-*"):
            if left.is_file():
                left.unlink(missing_ok=True)
        yield
    finally:
        os.close(folder)


def _versions() -> dict[str, str]:
    packages = ("torch", "monai", "nibabel", "SimpleITK", "numpy")
    return {"medcyclegan": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
