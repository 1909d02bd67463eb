"""The checkpoint: one file that describes itself and from which training goes on bit for bit.

It is a dictionary of tensors and plain data:

    format, version     what this is
    program             versions of the packages that wrote it
    experiment          the resolved config as plain data
    domains             "a", "b" -> name, modality, preparation, and the scaler of translations into it
    step                optimizer steps done
    best                step and score of the best validation so far, or None
    given, changes      the config before it was resolved, and what was changed in it under way
    cohort              fingerprint of the prepared volumes
    processes, batch    how many trained together, and the patches of each domain that they took in a step
    networks, ema       name -> state dict
    optimizers, schedulers, objective, random      the rest of the training's state

It is loaded with `weights_only=True`: nothing in it can run. Classes that its experiment names by a dotted path are
imported only as `trust` says, as those of a config are.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from medcyclegan.atomic import atomic_file
from medcyclegan.errors import InputError
from medcyclegan.training.guards import weights_are_finite
from medcyclegan.trust import require_trusted

FORMAT = "medcyclegan-checkpoint"
VERSION = 1
FILE_NAME = "checkpoint.pt"
BEST_NAME = "best.pt"  # of the step whose validation was the best
OLDER = re.compile(r"checkpoint-(\d+)\.pt")


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write atomically: after a crash or on a full disk the previous checkpoint is still whole.

    Raises:
        OSError: if there is no space; the previous file is untouched.
    """
    try:
        with atomic_file(path) as temporary:
            torch.save({"format": FORMAT, "version": VERSION, **content}, temporary)
    except RuntimeError as error:
        # torch reports a failed write (full disk, lost mount) as a RuntimeError of its zip writer.
        raise OSError(f"the checkpoint {path} could not be written: {str(error).splitlines()[0]}") from error


def load_checkpoint(path: Path, allow: Iterable[str] = ()) -> dict[str, Any]:
    """Read a checkpoint file, or the one of a run folder, onto the CPU.

    Args:
        path: the file or folder.
        allow: modules or packages of the user's own from which the checkpoint's experiment may name classes.

    Raises:
        InputError: if there is none, or it is damaged, not ours, of a newer version, or names classes from elsewhere.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        what = f"the run {path} holds no {FILE_NAME}" if path.is_dir() else f"there is no run or checkpoint {path}"
        raise InputError(f"{what}.", "Give the output folder of `medcyclegan train`, or a checkpoint file.")
    remedy = "Give the output folder of `medcyclegan train`, or the checkpoint.pt in it."
    if reason := _damage(file):
        raise InputError(f"{file} is not a medcyclegan checkpoint ({reason}).", _instead(file) or remedy)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        reason = "not a file of tensors and plain data, or damaged"
        raise InputError(f"{file} is not a medcyclegan checkpoint ({reason}).", _instead(file) or remedy) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{file} is not a medcyclegan checkpoint (it holds something else).", remedy)
    if content["version"] > VERSION:
        raise InputError(
            f"{file} was written by a newer medcyclegan (format {content['version']}, this program knows {VERSION}).",
            "Update medcyclegan.",
        )
    require_trusted(content.get("experiment"), str(file), allow)
    return content


def older_checkpoints(run: Path) -> list[Path]:
    """What a run keeps besides its newest checkpoint, the latest first."""
    found = [(int(match[1]), path) for path in run.glob("checkpoint-*.pt") if (match := OLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _damage(file: Path) -> str | None:
    """What is wrong with a file as a zip archive; its parts have checksums that torch itself does not look at."""
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, NotImplementedError, zlib.error):
        return "not a file of tensors and plain data, or damaged"
    return f"damaged: {broken} in it does not have its checksum" if broken else None


def _instead(file: Path) -> str | None:
    """What to do about a damaged checkpoint of a run that has an older one."""
    if file.suffix != ".pt":  # a config or a picture of the run: nothing is damaged
        return None
    whole = next((path for path in older_checkpoints(file.parent) if path != file and _damage(path) is None), None)
    if whole is None:
        return None
    return (
        f"The one before it, {whole}, is whole: give that instead; `medcyclegan train --resume {whole}` does the steps "
        "since then again."
    )


class CheckpointHandler:
    """Saves the trainer's snapshot beside what describes it, every so many steps and at the end.

    `checkpoint.pt` is the newest; the ones before it become `checkpoint-<step>.pt`. At every moment, whatever happens,
    the newest that was completely written is there.

    Args:
        path: the file.
        header: what the checkpoint says of itself besides the training's state.
        every: steps between two checkpoints.
        keep: checkpoints that are kept, the newest among them; the best one (`save_best`) does not count.
        saved: the step of the file that is at `path` already; None if there is none, or one not worth keeping.
    """

    def __init__(self, path: Path, header: dict[str, Any], every: int, keep: int = 1, saved: int | None = None) -> None:
        if keep < 1:
            raise ValueError(f"keep is at least 1, got {keep}")
        self.path = path
        self.header = header
        self.every = every
        self.keep = keep
        self.saved = saved

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        # A damaged state never replaces a good one; it is the guards that say so and go back to this file.
        if not weights_are_finite([engine.objective.networks, *engine.ema.averages.values()]):
            return
        step = engine.state.iteration
        if self.saved is not None and self.saved != step and self.keep > 1:
            self._keep_newest()
        self._save(engine, self.path)
        self.saved = step
        for number, path in enumerate(older_checkpoints(self.path.parent), start=1):
            # Those of later steps were left behind by going back.
            if number >= self.keep or _step_of(path) >= step:
                path.unlink(missing_ok=True)

    def save_best(self, engine: Any) -> None:
        """Save the present state as `best.pt` beside the newest; `engine.best` says which it is."""
        if weights_are_finite([engine.objective.networks, *engine.ema.averages.values()]):
            self._save(engine, self.path.with_name(BEST_NAME))

    def _keep_newest(self) -> None:
        older = self.path.with_name(f"checkpoint-{self.saved:07d}.pt")
        try:
            older.unlink(missing_ok=True)
            os.link(self.path, older)
        except OSError:  # a file system without hard links
            with (
                self._told_of_failure(f"the checkpoint of step {self.saved} could not be kept"),
                atomic_file(older) as t,
            ):
                shutil.copyfile(self.path, t)

    def _save(self, engine: Any, path: Path) -> None:
        with self._told_of_failure(f"step {engine.state.iteration} could not be saved"):
            save_checkpoint({**self.header, **engine.snapshot()}, path)

    @contextmanager
    def _told_of_failure(self, what: str) -> Iterator[None]:
        """Say what is left after a failed write, and how to go on."""
        try:
            yield
        except OSError as error:
            run = self.path.parent
            if self.path.exists():
                left = f"{self.path} is still whole" + ("" if self.saved is None else f", of step {self.saved}")
                remedy = f"Free some space and continue with `medcyclegan train --resume {run}`"
            else:
                left, remedy = "there is no checkpoint yet", "Free some space and start again"
            reason = error.strerror or str(error)
            raise OSError(f"{what} ({reason}); {left}. {remedy}") from error


def _step_of(path: Path) -> int:
    match = OLDER.fullmatch(path.name)
    return int(match[1]) if match else 0
