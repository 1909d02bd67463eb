"""The checkpoint: one file that describes itself and from which training goes on bit for bit.

It is a dictionary of tensors and plain data:

    format, version     what this is
    program             versions of the packages that wrote it
    experiment          the resolved config as plain data
    domains             "a", "b" -> name, modality, preparation, and the scaler of translations into it
    step                optimizer steps done
    networks, ema       name -> state dict
    optimizers, schedulers, objective, random      the rest of the training's state

It is loaded with `weights_only=True`: nothing in it can run. Classes that its experiment names by a dotted path are
imported only from this program, `monai.networks.nets` and modules that the user allows.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from medcyclegan.atomic import atomic_file
from medcyclegan.errors import InputError
from medcyclegan.registry import require_trusted
from medcyclegan.training.guards import weights_are_finite

FORMAT = "medcyclegan-checkpoint"
VERSION = 1
FILE_NAME = "checkpoint.pt"
BEST_NAME = "best.pt"  # of the step whose validation was the best


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
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        reason = "not a file of tensors and plain data, or damaged"
        raise InputError(f"{file} is not a medcyclegan checkpoint ({reason}).", remedy) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{file} is not a medcyclegan checkpoint (it holds something else).", remedy)
    if content["version"] > VERSION:
        raise InputError(
            f"{file} was written by a newer medcyclegan (format {content['version']}, this program knows {VERSION}).",
            "Update medcyclegan.",
        )
    require_trusted(content.get("experiment"), str(file), allow)
    return content


class CheckpointHandler:
    """Saves the trainer's snapshot beside what describes it, every so many steps and at the end.

    Args:
        path: the file.
        header: what the checkpoint says of itself besides the training's state.
        every: steps between two checkpoints.
    """

    def __init__(self, path: Path, header: dict[str, Any], every: int) -> None:
        self.path = path
        self.header = header
        self.every = every

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        self._save(engine, self.path)

    def save_best(self, engine: Any) -> None:
        """Write the state as the best so far, beside the newest."""
        self._save(engine, self.path.with_name(BEST_NAME))

    def _save(self, engine: Any, path: Path) -> None:
        # A damaged state never replaces a good one; it is the guards that say so and go back to this file.
        if weights_are_finite([engine.objective.networks, *engine.ema.averages.values()]):
            save_checkpoint({**self.header, **engine.snapshot()}, path)
