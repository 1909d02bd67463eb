"""Trainings as run folders: started and resumed."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcyclegan import config, ranks
from medcyclegan.atomic import atomic_file, is_temporary, sweep
from medcyclegan.changes import Change, changes, replaced, require_allowed
from medcyclegan.config import Experiment
from medcyclegan.data.prepared import PreparedCohort, open_prepared
from medcyclegan.errors import InputError
from medcyclegan.factory.cohorts import prepare_or_open, prepared_folder, resolve, verified
from medcyclegan.factory.devices import choose_device
from medcyclegan.factory.trainers import make_trainer
from medcyclegan.factory.training import Training
from medcyclegan.progress import Progress, Silent
from medcyclegan.training.checkpoint import (
    FILE_NAME,
    NEEDED_TO_GO_ON,
    WrongState,
    damaged,
    load_checkpoint,
    reading,
    require_fields,
)
from medcyclegan.training.mlflow import require_mlflow
from medcyclegan.training.trainer import TranslationTrainer
from medcyclegan.training.validation import Validation, require_not_exhausted

PLAN_NAME = "plan.yaml"  # of a run whose config was planned
NEAR = 5  # folders above a run, and last parts of a path, among which data that were moved are looked for
_held: set[Path] = set()  # runs that this process trains
LEFTOVERS_S = 10.0  # readers of a training that was killed notice it after five seconds, and hold its lock until then


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training; `left_out` is the share of the slices of "a" and "b" that were never used."""

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
    """Refuse a run folder that holds something; a preparation that was interrupted in it is resumed.

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
    with ranks.joined(where), ExitStack() as held:

        def begin() -> PreparedCohort:
            held.enter_context(alone_in(run))  # before the look at what is there, which two would both find empty
            require_new_run(run)
            sweep(run)
            return prepare_or_open(experiment, run, progress or Silent(), workers)

        prepared = ranks.first_then_all(begin, lambda: open_prepared(prepared_folder(experiment, run)))
        resolved = resolve(experiment, prepared)
        training = Training(resolved, prepared, run, where, given=_given(experiment))
        trainer = make_trainer(training, handlers)
        if ranks.is_first():
            _save_config(resolved, run)
        return _run(trainer, training)


@dataclass(frozen=True)
class NewSettings:
    """Settings that a resumed training takes instead of the run's own.

    Attributes:
        config_file, overrides: an experiment, as for a new training. Another `data.source` is no change as long as it
            holds the same cases.
        allowed: resume although it differs from the run's own. Only `changes.CHANGEABLE` may differ; a change is warned
            of and recorded in the checkpoint.
    """

    config_file: Path | None = None
    overrides: Sequence[str] = ()
    allowed: bool = False


def resume(
    run: Path,
    *,
    new: NewSettings | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    handlers: Any = (),
    allow: Iterable[str] = (),
) -> TrainingResult:
    """Continue a training from its last checkpoint as if it had not stopped.

    Args:
        run: the folder of the run; or a checkpoint in it, to go back to that.
        new: changed settings.
        device, progress, handlers: as in `train`. With other processes, a step still takes the same patches.
        allow: as in `load_translator`.

    Raises:
        InputError: if there is nothing to continue, or it cannot be continued as asked.
    """
    where, allow, new = choose_device(ranks.own_device(device)), tuple(allow), new or NewSettings()
    folder = run if run.is_dir() else run.parent
    with ranks.joined(where), ExitStack() as held:
        if folder.is_dir():
            # Before the checkpoint is read: it may be another's, who trains this run, and be old when that one ends.
            ranks.first_then_all(lambda: held.enter_context(alone_in(folder)), lambda: None)
            if ranks.is_first():
                sweep(folder)
        stopped = _stopped(run, allow)
        found = _changes(stopped, new, run, allow)
        experiment = config.parse(replaced(stopped.resolved, found), "the changed experiment", allow)
        _require_steps_left(experiment.training.steps, stopped.step, run)
        recorded = Path(str(experiment.data.source))
        place = _find_prepared(recorded, folder, stopped.cohort)
        if place != recorded:
            moved = Change("data.source", str(recorded), str(place))
            found = [*(change for change in found if change.key != moved.key), moved]
            experiment = config.parse(replaced(stopped.resolved, found), "the changed experiment", allow)
        prepared = ranks.first_then_all(lambda: verified(place, progress or Silent()), lambda: open_prepared(place))
        resolve(experiment, prepared)
        if stopped.cohort and stopped.cohort != prepared.fingerprint():
            raise InputError(
                f"{prepared.folder} does not hold the volumes that {run} was trained on, or not as they were prepared.",
                "Name the right folder with --set data.source=FOLDER, or train a new run.",
            )
        for change in found:
            warnings.warn(f"goes on from step {stopped.step} with {change}", stacklevel=2)
        checkpoint = stopped.checkpoint and _changed_checkpoint(stopped, found, experiment)
        newest = run.is_dir() or run.name == FILE_NAME
        training = Training(experiment, prepared, folder, where, checkpoint=checkpoint, newest=newest)
        try:
            trainer = make_trainer(training, handlers)
        except WrongState as error:
            raise damaged(run, error.field, error.problem) from error
        validation = trainer.companions["validation"]
        if isinstance(validation, Validation):
            require_not_exhausted(validation, stopped.step)
        if ranks.is_first() and (found or not (folder / "config.yaml").exists()):
            _save_config(experiment, folder)
        return _run(trainer, training)


@dataclass(frozen=True)
class _Stopped:
    """A stopped training: its experiment, resolved and as given, and its checkpoint."""

    resolved: dict[str, Any]
    given: dict[str, Any]
    checkpoint: dict[str, Any] | None = None

    @property
    def step(self) -> int:
        return int(self.checkpoint["step"]) if self.checkpoint else 0

    @property
    def cohort(self) -> str | None:
        """Fingerprint of the prepared volumes."""
        return self.checkpoint.get("cohort") if self.checkpoint else None


def _stopped(run: Path, allow: tuple[str, ...]) -> _Stopped:
    if run.is_dir() and not (run / FILE_NAME).exists() and (run / "config.yaml").exists():
        # It was stopped before its first checkpoint; the seed makes the same beginning again.
        own = config.load(run / "config.yaml", allow=allow).to_dict()
        return _Stopped(own, own)
    checkpoint = load_checkpoint(run, allow)
    if "optimizers" not in checkpoint:
        raise InputError(f"{run} was imported and holds no state of a training to continue.", "It can only convert.")
    require_fields(checkpoint, run, NEEDED_TO_GO_ON)
    own = config.parse(checkpoint["experiment"], f"the config in {run}", allow).to_dict()
    return _Stopped(own, checkpoint["given"], checkpoint)


def _changes(stopped: _Stopped, new: NewSettings, run: Path, allow: tuple[str, ...]) -> list[Change]:
    """The changes in the new settings, after checking that they are allowed."""
    own = None if new.config_file else stopped.resolved
    wanted = _given(config.load(new.config_file, new.overrides, base=own, allow=allow))
    with reading(run, "given"):
        found = changes(stopped.resolved, stopped.given, wanted)
    # Another path to the same cases is no change; that they are the same is checked later.
    own_place = [change for change in found if change.key == "data.source" and stopped.cohort]
    require_allowed([change for change in found if change not in own_place], str(run), allow=new.allowed)
    return found


def _require_steps_left(steps: int, done: int, run: Path) -> None:
    """Refuse fewer steps than were done; as many are warned of."""
    if steps < done:
        raise InputError(
            f"{run} has done {done} steps already, and training.steps is {steps}.",
            "Give more steps, or go back with --resume to one of the run's older checkpoints.",
        )
    if steps == done:
        more = f"--set training.steps={2 * done} --allow-changes"
        warnings.warn(f"{run} has done all its {done} steps already; go on with, for example, {more}", stacklevel=3)


def _changed_checkpoint(stopped: _Stopped, found: list[Change], experiment: Experiment) -> dict[str, Any]:
    """The checkpoint with a record of what was changed in its experiment."""
    content = dict(stopped.checkpoint or {})
    content["given"] = replaced(stopped.given, [change for change in found if change.key != "data.source"])
    if any(change.key == "data.source" for change in found):
        content["given"]["data"] = experiment.to_dict()["data"]
    record = [{"step": stopped.step, "key": c.key, "old": c.old, "new": c.new} for c in found]
    content["changes"] = [*content.get("changes", []), *record]
    if {"training.batch_size", "training.accumulate"} & {change.key for change in found}:
        content.pop("batch", None)
    return content


def _find_prepared(recorded: Path, run: Path, cohort: str | None) -> Path:
    """Find the prepared data of a run, which may have been moved with or without the run.

    The last parts of the recorded path are searched below the run's folder and its parents, as if both had been moved
    together. The cases found must be the same.

    Args:
        recorded: where they were.
        run: the run's folder.
        cohort: their fingerprint; None where it is not known, as before the first checkpoint.

    Raises:
        InputError: they are found neither there nor near the run.
    """
    if recorded.exists():
        return recorded
    above = run.resolve()
    seen = {}
    for place in (above, *above.parents)[:NEAR]:
        for count in range(1, min(NEAR, len(recorded.parts)) + 1):
            candidate = place.joinpath(*recorded.parts[-count:])
            if not (candidate / "prepared.json").is_file():
                continue
            if cohort is None and candidate != above / "prepared":  # which a run has made for itself
                continue
            try:
                if cohort is None or open_prepared(candidate).fingerprint() == cohort:
                    return candidate
                seen[candidate] = "it holds other volumes, or they were prepared in another way."
            except InputError as error:
                seen[candidate] = str(error)
    near = (
        "\n  - ".join(["; near the run there is:", *(f"{path}: {why}" for path, why in seen.items())]) if seen else "."
    )
    raise InputError(
        f"the prepared data of {run} are not at {recorded} any more{near}",
        ("\n" if seen else "") + "Say where they are now with --set data.source=FOLDER.",
    )


def _given(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain data whose paths mean the same wherever the program is started."""
    content = experiment.to_dict()
    for key in config.DATA_PATHS:
        if content["data"][key] is not None:
            content["data"][key] = str(Path(content["data"][key]).resolve())
    return content


def _visible(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if not is_temporary(entry)}


def _save_config(experiment: Experiment, run: Path) -> None:
    with atomic_file(run / "config.yaml") as temporary:
        config.save(experiment, temporary)


def _run(trainer: TranslationTrainer, training: Training) -> TrainingResult:
    loader: Any = trainer.data_loader
    started = time.monotonic()
    try:
        with training.prepared.in_use():
            trainer.run()
    except RuntimeError as error:
        if not ranks.is_connection_lost(error):
            raise
        raise ranks.LostProcess(
            f"another process of this training has ended, at step {trainer.state.iteration}; the last checkpoint is "
            "whole. Continue it, with any number of processes, with "
            f"`torchrun --nproc-per-node N -m medcyclegan train --resume {training.run}`."
        ) from error
    return TrainingResult(
        run=training.run,
        checkpoint=training.run / FILE_NAME,
        step=trainer.state.iteration,
        steps=training.experiment.training.steps,
        seconds=time.monotonic() - started,
        precision="bf16" if trainer.optimization.bf16 else "float32",
        interrupted=trainer.interrupted,
        left_out=loader.dataset.left_out,
        stopped_early=getattr(trainer.companions.get("validation"), "exhausted", False),
        best=trainer.best,
    )


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Keep other trainings out of a run folder, which is made where it is missing; within it, again is no harm.

    Raises:
        InputError: if another process trains this run.
    """
    if run.resolve() in _held:
        yield
        return
    made = not run.exists()
    if made:
        run.mkdir(parents=True)
    try:
        with _locked(run):
            _held.add(run.resolve())
            try:
                yield
            finally:
                _held.discard(run.resolve())
    finally:
        if made:
            with suppress(OSError):  # unless it holds something by now
                run.rmdir()


@contextmanager
def _locked(run: Path) -> Iterator[None]:
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
        yield
    finally:
        os.close(folder)
