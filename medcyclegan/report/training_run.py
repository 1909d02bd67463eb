"""Reads the folder of a training: curves, validation, picture panels, guard warnings and settings."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from medcyclegan.documents import read_yaml
from medcyclegan.errors import InputError

CURVES_FILE, VALIDATION_FILE, GUARDS_FILE = "metrics.csv", "validation.csv", "guards.csv"
PICTURES, CONFIG_FILE = "pictures", "config.yaml"
# Columns of metrics.csv that are no losses; they are drawn last.
_ABOUT_THE_RUN = ("steps per s", "images per s", "learning rate", "learning rate discriminator", "steps left out")
_MOST_PICTURES = 40
_PICTURE_NAME = re.compile(r"step_(\d+)\.png")

T = TypeVar("T")
Series = dict[str, tuple[list[float], list[float]]]


@dataclass(frozen=True)
class RunPicture:
    """A panel of pictures.

    Attributes:
        step: of the training.
        webp: lossless.
    """

    step: int
    webp: bytes


@dataclass(frozen=True)
class GuardWarning:
    """A message of a guard of the training, in sentences; missing parts are empty.

    Attributes:
        step: of the training.
        guard: its name, such as "saturation".
        saw: what it saw.
        did: what was done about it.
        remedy: what to try.
    """

    step: int
    guard: str
    saw: str
    did: str
    remedy: str


@dataclass(frozen=True)
class TrainingRun:
    """A run.

    Attributes:
        folder: where it was read from.
        losses: name -> (steps, values); the seconds are left out.
        seconds: of the training so far, None if unknown.
        validation: name -> (steps, values); empty without validation pairs.
        warnings: of the guards, in the order in which they were made.
        pictures: from the first step to the last, at most 40, evenly spaced.
        picture_count: how many there are in the folder.
        size: of a picture, (width, height) in pixels; None without pictures.
        config: the resolved experiment, empty if it was not found.
    """

    folder: Path
    losses: Series
    seconds: float | None
    validation: Series
    warnings: tuple[GuardWarning, ...]
    pictures: tuple[RunPicture, ...]
    picture_count: int
    size: tuple[int, int] | None
    config: Mapping[str, Any]


def holds_run(folder: Path) -> bool:
    """True if the folder looks like that of a training."""
    return (folder / CURVES_FILE).is_file()


def read_run(folder: Path) -> TrainingRun:
    """Read the folder of a training, finished or not.

    Raises:
        InputError: a file is damaged, or no step has been logged yet.
    """
    losses = _read_series(folder / CURVES_FILE)
    if not losses:
        raise InputError(f"{folder / CURVES_FILE} holds no step yet.", "Wait until the training has logged some.")
    clock = losses.pop("seconds", None)
    last = {name: losses.pop(name) for name in _ABOUT_THE_RUN if name in losses}
    validation = _read_series(folder / VALIDATION_FILE) if (folder / VALIDATION_FILE).is_file() else {}
    files = sorted(
        (int(found[1]), path)
        for path in folder.glob(f"{PICTURES}/*.png")
        if (found := _PICTURE_NAME.fullmatch(path.name))
    )
    pictures, size = [], None
    for step, path in _spread(files):
        webp, size = _picture(path)
        pictures.append(RunPicture(step, webp))
    return TrainingRun(
        folder=folder,
        losses=losses | last,
        seconds=clock[1][-1] if clock else None,
        validation=validation,
        warnings=_read_warnings(folder / GUARDS_FILE) if (folder / GUARDS_FILE).is_file() else (),
        pictures=tuple(pictures),
        picture_count=len(files),
        size=size,
        config=_read_config(folder / CONFIG_FILE),
    )


def _read_series(path: Path) -> Series:
    """The columns of a file of curves but "step", by their names with spaces for underscores."""
    remedy = "Give the folder of a run of 'medcyclegan train'."
    rows = _rows(path, lambda row: (float(row.pop("step")), {n: float(v) for n, v in row.items()}), "curves", remedy)
    steps = [step for step, _ in rows]
    names = rows[0][1] if rows else ()
    return {name.replace("_", " "): (steps, [values[name] for _, values in rows]) for name in names}


def _read_warnings(path: Path) -> tuple[GuardWarning, ...]:
    def line(row: dict[str, str]) -> GuardWarning:
        return GuardWarning(int(row["step"]), row["guard"], row["saw"], row["did"], row["remedy"])

    return tuple(_rows(path, line, "what guards said", "Restore it, or move it away to leave it out of the report."))


def _rows(path: Path, read: Callable[[dict[str, str]], T], content: str, remedy: str) -> list[T]:
    """The rows of a table that a training writes; one that is still being written is left out."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        return [read(row) for row in csv.DictReader(lines)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        message = f"{path} is not a table of {content} as a training writes it ({type(error).__name__}: {error})."
        raise InputError(message, remedy) from error


def _spread(files: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """At most `_MOST_PICTURES`, evenly, with the first and the last."""
    if len(files) <= _MOST_PICTURES:
        return files
    return [files[round(n * (len(files) - 1) / (_MOST_PICTURES - 1))] for n in range(_MOST_PICTURES)]


def _picture(path: Path) -> tuple[bytes, tuple[int, int]]:
    try:
        with Image.open(path) as image:
            stream = io.BytesIO()
            image.convert("L").save(stream, format="WEBP", lossless=True, method=4)
            return stream.getvalue(), (image.width, image.height)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a picture that can be read ({error}).", "Remove it.") from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = read_yaml(path, f"config {path}")
    return content if isinstance(content, dict) else {}
