"""Duplicate scans under two names, found by their voxels, whatever the format and the order of the axes."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from medcyclegan.cohort.layouts.scan import Scan, unite_patients
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.pictures import GrayLevels
from medcyclegan.io.reader import read_volume
from medcyclegan.machine import cores
from medcyclegan.progress import Progress, Silent
from medcyclegan.survey.volume import Survey, measure_volume


def survey_images(
    images: Iterable[Path], *, progress: Progress | None = None, workers: int | None = None
) -> tuple[dict[Path, Survey], dict[Path, str]]:
    """Read every volume once, several at a time; anatomy is not looked at.

    Args:
        images: files, DICOM folders or choices of a series.
        progress: watches the files.
        workers: threads; by default one per core, at most 8. Each holds one volume in memory.

    Returns:
        Image -> survey, and image -> why it cannot be read.
    """
    listed = sorted(set(images))
    found: dict[Path, Survey] = {}
    failed: dict[Path, str] = {}
    pool = ThreadPoolExecutor(workers or min(8, cores()))
    try:
        # Warnings about readable volumes are reported during preparation.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = zip(listed, pool.map(_survey, listed), strict=True)
            for image, result in (progress or Silent()).track(results, len(listed), "comparing volumes"):
                if isinstance(result, Survey):
                    found[image] = result
                else:
                    failed[image] = result
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption does not wait for the rest
    return found, failed


def _survey(image: Path) -> Survey | str:
    try:
        # Whether color is accepted is checked during preparation; gray is enough to find copies.
        return measure_volume(read_volume(image, GrayLevels(gray=True)), anatomy=False)
    except (InputError, OSError) as error:
        return str(error)


def refuse_one_as_two(scans: Sequence[Scan], surveys: Mapping[Path, Survey]) -> None:
    """Refuse cases of which two contrasts have the same voxels."""
    problems = []
    for scan in scans:
        digests = [surveys[image].digest for image in scan.images if image in surveys]
        if len(set(digests)) < len(digests):
            problems.append(f"domain {scan.domain}, '{scan.case}': {', '.join(map(str, scan.images))}")
    raise_all(problems, "two contrasts of a case are copies of one scan:")


def without_copies(scans: Sequence[Scan], surveys: Mapping[Path, Survey]) -> tuple[list[Scan], list[str]]:
    """One scan of every group of copies, its patients merged into one, and notes on what was done.

    Raises:
        InputError: copies are in both domains, or on two sides of the split.
    """
    groups = defaultdict(list)
    for scan in scans:
        if scan.image in surveys:
            groups[surveys[scan.image].digest].append(scan)
    crossing, leaking, notes = [], [], []
    owners: list[set[str]] = []
    dropped: set[Scan] = set()
    for group in groups.values():
        if len(group) == 1:
            continue
        # The shortest name first: a copy is called "x copy" or "x (1)".
        copies = sorted(group, key=lambda scan: (len(str(scan.image)), str(scan.image)))
        files = ", ".join(str(scan.image) for scan in copies)
        if len({scan.domain for scan in copies}) > 1:
            crossing.append(files)
        elif len({scan.split or "train" for scan in copies}) > 1:
            leaking.append(files)
        else:
            dropped |= set(copies[1:])
            notes.append(f"copies of one scan, of which only the first is taken: {files}")
            # Patients without a name stay without one.
            owners.append({scan.patient for scan in copies if scan.patient})
    raise_all(crossing, "the same scan is in both domains; take one away:")
    raise_all(leaking, "copies of one scan are in more than one of train, val and test; keep one:")
    return unite_patients((scan for scan in scans if scan not in dropped), owners), notes
