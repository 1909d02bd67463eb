"""The checkpoint: one self-describing file, from which training resumes bit for bit.

It is a dictionary of tensors and plain data:

    format, version     what this is
    program             versions of the packages that wrote it
    experiment          the resolved config as plain data
    domains             "a", "b" -> name; channels, the preparation of each and the scaler of translations into it;
                        cohort, the features of the training volumes
    step                optimizer steps done
    best                step and score of the best validation so far, or None
    given, changes      the config before it was resolved, and what was changed in it under way
    cohort              fingerprint of the prepared volumes
    processes, batch    how many trained together, and the patches of each domain that they took in a step
    networks, ema       name -> state dict
    optimizers, schedulers, objective, random      the rest of the training's state

It is loaded with `weights_only=True`: nothing in it can run. Classes that its experiment names by a dotted path are
imported only as `trust` says, as those of a config are. A field that is missing, of another type, or holds a
value that is not a number is refused by name.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from medcyclegan.atomic import atomic_file
from medcyclegan.errors import InputError
from medcyclegan.training.finite import weights_are_finite
from medcyclegan.trust import require_trusted

FORMAT = "medcyclegan-checkpoint"
VERSION = 2
FILE_NAME = "checkpoint.pt"
BEST_NAME = "best.pt"  # of the step whose validation was the best
OLDER = re.compile(r"checkpoint-(\d+)\.pt")
NEEDED_TO_TRANSLATE = ("experiment", "domains", "step", "ema")
NEEDED_TO_GO_ON = (
    *NEEDED_TO_TRANSLATE,
    *("networks", "optimizers", "schedulers", "objective", "random", "best", "companions", "given", "processes"),
)
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("program", "experiment", "domains", "given", "companions", "networks", "ema"), (dict,)),
    **dict.fromkeys(("optimizers", "schedulers", "objective", "random"), (dict,)),
    **dict.fromkeys(("step", "processes", "batch"), (int,)),
    "changes": (list,),
    "cohort": (str,),
    "best": (dict, type(None)),
}
_LEAST = {"step": 0, "processes": 1, "batch": 1}


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
        InputError: if there is none, or it is damaged, not ours, of another version, or names classes from elsewhere.
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
    except Exception as error:  # a foreign pickle can make the reader raise anything
        reason = "not a file of tensors and plain data, or damaged"
        raise InputError(f"{file} is not a medcyclegan checkpoint ({reason}).", _instead(file) or remedy) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{file} is not a medcyclegan checkpoint (it holds something else).", remedy)
    version = content.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise damaged(file, "version", "is no number of a version")
    if version > VERSION:
        raise InputError(
            f"{file} was written by a newer medcyclegan (format {version}, this program knows {VERSION}).",
            "Update medcyclegan.",
        )
    if version < VERSION:
        program = content.get("program")
        wrote = program.get("medcyclegan") if isinstance(program, dict) else None
        raise InputError(
            f"{file} was written by medcyclegan {wrote or 'of an earlier version'} (format {version}), and this one "
            f"reads format {VERSION}.",
            "Use the medcyclegan that wrote it, or train again (an import: import it again).",
        )
    for field, problem in _problems(content):
        raise damaged(file, field, problem)
    require_trusted(content.get("experiment"), str(file), allow)
    return content


def require_fields(content: Mapping[str, Any], path: Path, fields: Iterable[str]) -> None:
    """Raise an `InputError` where a checkpoint lacks one of the fields."""
    for field in fields:
        if field not in content:
            raise damaged(path, field, "is missing")


def damaged(path: Path, field: str, problem: str) -> InputError:
    """The error for an invalid `field` of a checkpoint file, or of the checkpoint in a run folder."""
    file = path / FILE_NAME if path.is_dir() else path
    remedy = _instead(file) or "Take another checkpoint of the run, or a copy of this one."
    return InputError(f"{file} is damaged: {field} {problem}.", remedy)


class WrongState(InputError):
    """A training cannot go on from a snapshot: `field` of it has the `problem`."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"the checkpoint is damaged: {field} {problem}.", "Go back to another one.")
        self.field, self.problem = field, problem


@contextmanager
def using(field: str) -> Iterator[None]:
    """Report any error in the block as a fault of this field of the snapshot or checkpoint.

    Raises:
        WrongState: with the first lines of the library's message.
    """
    try:
        yield
    except KeyError as error:
        raise WrongState(field, f"lacks {error}") from error
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise WrongState(field, f"cannot be used ({' '.join(lines[:2]).rstrip('.')})") from error


@contextmanager
def reading(path: Path, field: str) -> Iterator[None]:
    """As `using`, for the checkpoint at `path`, which the error names."""
    try:
        with using(field):
            yield
    except WrongState as error:
        raise damaged(path, field, error.problem) from error.__cause__


def _problems(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Invalid fields, and what is wrong with each."""
    for field, kinds in _TYPES.items():
        if field not in content:
            continue
        value = content[field]
        if not isinstance(value, kinds) or isinstance(value, bool):
            yield field, f"is of type {type(value).__name__}, not {kinds[0].__name__}"
        elif isinstance(value, int) and value < _LEAST.get(field, value):
            yield field, f"is {value}, and at least {_LEAST[field]}"
    for field in ("networks", "ema"):
        for name, state in content.get(field, {}).items():
            if not isinstance(state, dict):
                yield f"{field}.{name}", f"is of type {type(state).__name__}, not dict"
                continue
            for key, value in state.items():
                if not isinstance(value, torch.Tensor):
                    yield f"{field}.{name}.{key}", f"is of type {type(value).__name__}, not Tensor"
                elif value.is_floating_point() and bool(value.isnan().any()):
                    yield f"{field}.{name}.{key}", "holds values that are not numbers"
    for name, domain in content.get("domains", {}).items():
        if not isinstance(domain, dict):
            yield f"domains.{name}", f"is of type {type(domain).__name__}, not dict"
            continue
        for field, kind in (("name", str), ("channels", list), ("cohort", list)):
            if field in domain and not isinstance(domain[field], kind):
                yield f"domains.{name}.{field}", f"is of type {type(domain[field]).__name__}, not {kind.__name__}"
    best = content.get("best")
    if best is not None and not (isinstance(best.get("step"), int) and isinstance(best.get("score"), float)):
        yield "best", "does not have a step and a score"


def older_checkpoints(run: Path) -> dict[int, Path]:
    """Step -> file of a run's older checkpoints, the latest first."""
    found = {int(match[1]): path for path in run.glob("checkpoint-*.pt") if (match := OLDER.fullmatch(path.name))}
    return dict(sorted(found.items(), reverse=True))


def _damage(file: Path) -> str | None:
    """What is wrong with a file as a zip archive; torch itself does not check its checksums."""
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, NotImplementedError, zlib.error):
        return "not a file of tensors and plain data, or damaged"
    return f"damaged: {broken} in it does not have its checksum" if broken else None


def _instead(file: Path) -> str | None:
    """The remedy for a damaged checkpoint of a run that has an older one."""
    if file.suffix != ".pt":  # a config or a picture of the run: nothing is damaged
        return None
    older = older_checkpoints(file.parent).values()
    whole = next((path for path in older if path != file and _damage(path) is None), None)
    if whole is None:
        return None
    return (
        f"The one before it, {whole}, is whole: give that instead; `medcyclegan train --resume {whole}` does the steps "
        "since then again."
    )


class CheckpointHandler:
    """Saves the trainer's snapshot with its description, every `every` steps and at the end.

    `checkpoint.pt` is the newest; the ones before it become `checkpoint-<step>.pt`. The newest complete one is there
    at every moment, even after a crash.

    Args:
        path: the file.
        header: the checkpoint's content besides the training's state.
        every: steps between two checkpoints.
        keep: checkpoints that are kept, the newest among them; the best one (`save_best`) does not count.
        saved: the step of the file that is at `path` already; None if there is none, or it need not be kept.
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
        # A damaged state never replaces a good one; the guards report it and go back to this file.
        if not weights_are_finite(engine):
            return
        step = engine.state.iteration
        if self.saved is not None and self.saved != step and self.keep > 1:
            self._keep_newest()
        self._save(engine, self.path)
        self.saved = step
        for number, (saved, path) in enumerate(older_checkpoints(self.path.parent).items(), start=1):
            # Those of later steps are left from before a rollback.
            if number >= self.keep or saved >= step:
                path.unlink(missing_ok=True)

    def save_best(self, engine: Any) -> None:
        """Save the present state as `best.pt`; `engine.best` has its step and score."""
        if weights_are_finite(engine):
            self._save(engine, self.path.with_name(BEST_NAME))

    def _keep_newest(self) -> None:
        older = self.path.with_name(f"checkpoint-{self.saved:07d}.pt")
        try:
            older.unlink(missing_ok=True)
            os.link(self.path, older)
        except OSError:  # a file system without hard links
            with (
                self._failure_explained(f"the checkpoint of step {self.saved} could not be kept"),
                atomic_file(older) as t,
            ):
                shutil.copyfile(self.path, t)

    def _save(self, engine: Any, path: Path) -> None:
        with self._failure_explained(f"step {engine.state.iteration} could not be saved"):
            save_checkpoint({**self.header, **engine.snapshot()}, path)

    @contextmanager
    def _failure_explained(self, what: str) -> Iterator[None]:
        """Add to a failed write's error which checkpoint is left, and how to continue."""
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
