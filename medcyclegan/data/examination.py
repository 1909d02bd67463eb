"""Examine the files of a case before preparation, and reuse what an earlier preparation stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medcyclegan.cohort.cases import Case
from medcyclegan.data.stored_case import read_record
from medcyclegan.errors import InputError
from medcyclegan.io.dicom.files import split_choice
from medcyclegan.io.grid import Grid
from medcyclegan.io.pictures import PICTURE_SUFFIXES
from medcyclegan.io.reader import grid_of, read_mask, read_volume, volume_files
from medcyclegan.qc import NOTE, Volume, volume_findings
from medcyclegan.survey.volume import Survey, measure_volume


@dataclass(frozen=True)
class Source:
    """The examined files of a case.

    Attributes:
        content: hashes of the files.
        surveys: of the channels, in order.
        findings: what is suspicious, one line each.
        stored: case.json of an earlier preparation of the same content.
    """

    content: dict[str, Any]
    surveys: tuple[Survey, ...]
    findings: tuple[str, ...]
    stored: dict[str, Any] | None

    @property
    def grid(self) -> Grid:
        """Of the first channel."""
        grid = self.surveys[0].grid
        assert grid is not None  # a volume without a grid cannot be read
        return grid

    @property
    def hu(self) -> bool:
        """Whether the values of the first channel look like Hounsfield units."""
        return self.surveys[0].kind == "hu"


def content_of(job: Case) -> dict[str, Any]:
    """Hashes of all files that a case is made from, and how pictures are understood."""
    content: dict[str, Any] = {
        "images": [content_hash(image) for image in job.images],
        "body": content_hash(job.body) if job.body else None,
    }
    if job.levels is not None and job.images[0].name.lower().endswith(PICTURE_SUFFIXES):
        content["levels"] = repr(job.levels)
    return content


def examine(job: Case, folder: Path, modality: str) -> Source:
    """Survey the files of a case, or take the surveys that an earlier preparation of the same files stored.

    Args:
        job: the case.
        folder: of the prepared case.
        modality: of its domain, "MR" or "CT".

    Raises:
        InputError: a file cannot be used, or a contrast is a CT.
    """
    content = content_of(job)
    surveys, stored = None, None
    try:
        stored = read_record(folder / "case.json")
        if stored["key"]["content"] == content:
            # Files may have moved since.
            stored_surveys = [Survey.from_dict(survey) for survey in stored["surveys"]]
            surveys = [replace(s, file=image) for s, image in zip(stored_surveys, job.images, strict=True)]
    except (ValueError, KeyError, TypeError):
        pass  # nothing usable is stored: the case is prepared again
    if surveys is None:
        surveys, stored = _measured(job), None
    if len(surveys) > 1 and modality == "MR" and (ct := [str(s.file) for s in surveys if s.kind == "hu"]):
        raise InputError(
            f"{', '.join(ct)}: a contrast is MR, and these values look like a CT in Hounsfield units.",
            "Take the file out of the list, or put the right one in its place.",
        )
    return Source(content, tuple(surveys), tuple(_findings(job, surveys, modality)), stored)


def _measured(job: Case) -> list[Survey]:
    surveys: list[Survey] = []
    for image in job.images:
        volume = read_volume(image, job.levels)
        body = read_mask(job.body, grid_of(volume)) if job.body and not surveys else None
        surveys.append(replace(measure_volume(volume, body=body), file=image))
    return surveys


def _findings(job: Case, surveys: Sequence[Survey], modality: str) -> Iterator[str]:
    """The findings of `inspect` on single volumes, without notes and without what preparation reports itself."""
    for survey in surveys:
        if survey.single_slice:
            continue  # too unspecific
        for finding in volume_findings(Volume("", job.id, modality, survey)):
            if finding.severity != NOTE and finding.code not in ("modality", "no_body"):
                yield str(finding)


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
