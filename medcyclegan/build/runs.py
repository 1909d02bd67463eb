"""Trainings as folders: begun, and gone on with."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcyclegan import config, ranks
from medcyclegan.atomic import atomic_file
from medcyclegan.build.cohorts import prepare_or_open, resolve, verified
from medcyclegan.build.devices import choose_device
from medcyclegan.build.trainers import make_trainer
from medcyclegan.changes import changes, replaced, require_allowed
from medcyclegan.config import Experiment
from medcyclegan.data.prepared import PreparedCohort, open_prepared
from medcyclegan.errors import InputError
from medcyclegan.progress import Progress, Silent
from medcyclegan.training.checkpoint import FILE_NAME, load_checkpoint
from medcyclegan.training.mlflow import require_mlflow
from medcyclegan.training.trainer import CycleGANTrainer
from medcyclegan.training.validation import Validation, require_not_exhausted

PLAN_NAME = "plan.yaml"  # of a run whose config was planned
LEFTOVERS_S = 10.0  # readers of a training that was killed notice it after five seconds, and hold its lock until then


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
            return prepare_or_open(experiment, run, progress or Silent(), workers)

        prepared = ranks.first_then_all(begin, lambda: open_prepared(experiment.data.prepared or run / "prepared"))
        resolved = resolve(experiment, prepared)
        trainer = make_trainer(resolved, prepared, run, where, handlers=handlers, given=_given(experiment))
        if ranks.is_first():
            _save_config(resolved, run)
        return _run(trainer, resolved, run, prepared)


def resume(
    run: Path,
    *,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    allow_changes: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
    handlers: Any = (),
    allow: Iterable[str] = (),
) -> TrainingResult:
    """Continue a training from its last checkpoint as if it had not stopped.

    Args:
        run: the folder of the run; or a checkpoint in it, to go back to that.
        config_file, overrides: the experiment to go on with, as for a new one; by default the run's own.
        allow_changes: go on although that differs from the run's own. Only `changes.CHANGEABLE` may differ; a change is
            warned of and recorded in the checkpoint.
        device, progress, handlers: as in `train`. With other processes, a step still takes the same patches.
        allow: as in `load_translator`.

    Raises:
        InputError: if there is nothing to continue, or it cannot be continued as asked.
    """
    where, allow = choose_device(ranks.own_device(device)), tuple(allow)
    folder = run if run.is_dir() else run.parent
    with ranks.joined(where):
        if run.is_dir() and not (run / FILE_NAME).exists() and (run / "config.yaml").exists():
            # It was stopped before its first checkpoint; the seed makes the same beginning again.
            checkpoint, step = None, 0
            own = config.load(run / "config.yaml", allow=allow)
            given = own.to_dict()
        else:
            checkpoint = load_checkpoint(run, allow)
            if "optimizers" not in checkpoint:
                raise InputError(
                    f"{run} was imported and holds no state of a training to continue.", "It can only convert."
                )
            own, step = config.parse(checkpoint["experiment"], f"the config in {run}", allow), checkpoint["step"]
            given = checkpoint.get("given", checkpoint["experiment"])
        resolved = own.to_dict()
        new = _given(config.load(config_file, overrides, base=None if config_file else resolved, allow=allow))
        found = changes(resolved, given, new)
        require_allowed(found, str(run), allow=allow_changes)
        experiment = config.parse(replaced(resolved, found), "the changed experiment", allow)
        if experiment.training.steps < step:
            raise InputError(
                f"{run} has done {step} steps already, and training.steps is {experiment.training.steps}.",
                "Give more steps, or go back with --resume to one of the run's older checkpoints.",
            )
        if experiment.training.steps == step:
            more = f"--set training.steps={2 * step} --allow-changes"
            warnings.warn(f"{run} has done all its {step} steps already; go on with, for example, {more}", stacklevel=2)
        folder_of_data = Path(str(experiment.data.prepared))
        prepared = ranks.first_then_all(
            lambda: verified(folder_of_data, progress or Silent()), lambda: open_prepared(folder_of_data)
        )
        resolve(experiment, prepared)
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
        return _run(trainer, experiment, folder, prepared)


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


def _run(trainer: CycleGANTrainer, experiment: Experiment, run: Path, prepared: PreparedCohort) -> TrainingResult:
    loader: Any = trainer.data_loader
    started = time.monotonic()
    try:
        with prepared.in_use(), _alone(run) if ranks.is_first() else nullcontext():
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
