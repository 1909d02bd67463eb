"""The first look at the files of a case: what they are, and whether the same ones were prepared before."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medcyclegan.cohort.datalist import Case
from medcyclegan.data.stored_case import read_record
from medcyclegan.errors import InputError
from medcyclegan.io.dicom.files import split_choice
from medcyclegan.io.grid import Grid
from medcyclegan.io.headers import Header
from medcyclegan.io.pictures import PICTURE_SUFFIXES
from medcyclegan.io.reader import grid_of, read_volume, volume_files
from medcyclegan.qc import NOTE, Volume, of_volume
from medcyclegan.qc.hounsfield import looks_like_hu
from medcyclegan.qc.survey import measure_values


@dataclass(frozen=True)
class Source:
    """What the first look at a case's files told."""

    content: dict[str, Any]  # hashes of the files
    grid: Grid
    hu: bool
    findings: tuple[str, ...]
    stored: dict[str, Any] | None  # case.json of an earlier preparation of the same content


def content_of(job: Case) -> dict[str, Any]:
    """Hashes of all files that a case is made from, and how pictures are understood."""
    content: dict[str, Any] = {
        "image": content_hash(job.image),
        "body": content_hash(job.body) if job.body else None,
    }
    if job.further:
        content["further"] = [content_hash(image) for image in job.further]
    if job.levels is not None and job.image.name.lower().endswith(PICTURE_SUFFIXES):
        content["levels"] = repr(job.levels)
    return content


def examine(job: Case, folder: Path, modality: str) -> Source:
    content = content_of(job)
    try:
        stored = read_record(folder / "case.json")
        if stored["key"]["content"] == content:
            told = tuple(stored["findings"])
            return Source(content, Grid.from_dict(stored["source_grid"]), stored["hu"], told, stored)
    except (ValueError, KeyError, TypeError):
        pass  # nothing usable is stored: the case is made anew
    first: Grid | None = None
    hu: list[bool] = []
    findings: list[str] = []
    for number, image in enumerate(job.images):
        volume = read_volume(image, job.levels)
        grid, values = grid_of(volume), volume.numpy()[0]
        first = first or grid
        hu.append(looks_like_hu(values))
        one = replace(job, id=f"{job.id} (contrast {number + 1})", image=image) if job.further else job
        findings += _findings(one, values, grid, modality)
    if job.further and any(hu) and modality == "MR":
        files = ", ".join(str(image) for image, is_hu in zip(job.images, hu, strict=True) if is_hu)
        raise InputError(
            f"{files}: a contrast is MR, and these values look like a CT in Hounsfield units.",
            "Take the file out of the list, or put the right one in its place.",
        )
    assert first is not None  # a case has an image
    return Source(content, first, hu[0], tuple(findings), None)


def _findings(job: Case, values: npt.NDArray[np.float32], grid: Grid, modality: str) -> tuple[str, ...]:
    """What `inspect` would say of this volume by itself, notes and what is told elsewhere aside."""
    if job.image.name.lower().endswith(PICTURE_SUFFIXES):
        return ()  # one slice says too little
    facts = measure_values(values, grid, Header(grid, str(values.dtype)), job.image)
    told = of_volume(Volume("", job.id, modality, facts))
    return tuple(str(s) for s in told if s.severity != NOTE and s.code not in ("modality", "no_body"))


def content_hash(path: Path) -> str:
    """BLAKE2b of all of a volume's files, of their sizes, and of the choice of a series."""
    digest = hashlib.blake2b(split_choice(path)[1].encode(), digest_size=16)
    for file in volume_files(path) or [path]:
        try:
            with file.open("rb") as stream:
                size = 0
                while block := stream.read(1 << 22):
                    digest.update(block)
                    size += len(block)
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}.") from None
        digest.update(f" {size} ".encode())
    return digest.hexdigest()
